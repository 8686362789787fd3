"""A small archive in the layout of HKO-7: days of images with masks, some of them absent."""

import zlib
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from PIL import Image

from simcast_hpc.data.dataset_spec import DatasetSpec, read_spec

SIDE = 24
DAYS = {"train": ["20090401", "20100612"], "valid": ["20141111"], "test": ["20150107"]}
ABSENT = {"20100612": [0, 100, 101], "20141111": list(range(30, 240))}


def small(name: str) -> DatasetSpec:
    """Return a built-in description with a small grid."""
    spec = read_spec(name)
    return spec.model_copy(update={"grid": spec.grid.model_copy(update={"height": SIDE, "width": SIDE})})


def circle() -> np.ndarray:
    """Return a mask that is 1 outside a circle, as that of the radar."""
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    return (np.hypot(y, x) > SIDE / 2).astype(np.uint8)


def pixels_of(day: str, frame: int) -> np.ndarray:
    """Return the image of a frame."""
    return np.random.default_rng([int(day), frame]).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)


def noise_of(day: str, frame: int) -> np.ndarray:
    """Return where a frame is noise."""
    return np.random.default_rng([1, int(day), frame]).random((SIDE, SIDE)) < 0.1


def write_hko7(root: Path, domain: np.ndarray) -> Path:
    """Write images, noise masks, the domain mask and lists of days to ``root`` and return it."""
    np.savez(root / "mask_dat.npz", exclude_mask=domain, outlier_mask=domain * 0)
    for split, days in DAYS.items():
        (root / f"hko7_rainy_{split}_days.txt").write_text("".join(f"{day}, 1.5\n" for day in days))
        for day in days:
            for frame in set(range(240)) - set(ABSENT.get(day, [])):
                time = datetime.strptime(day, "%Y%m%d") + timedelta(minutes=6 * frame)
                stem = f"{time:%Y/%m/%d}/RAD{time:%y%m%d%H%M}00"
                for top in ("radarPNG", "radarPNG_mask"):
                    (root / top / stem).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels_of(day, frame)).save(root / "radarPNG" / f"{stem}.png")
                mask = zlib.compress((~noise_of(day, frame)).tobytes(), 2)
                (root / "radarPNG_mask" / f"{stem}.mask").write_bytes(mask)
    return root
