"""Earthformer's ``SEVIRDataLoader``, run from a checkout as it is, beside our readers. Nothing of it is copied.

The checkout's packages import much that the loader does not use (lightning, yacs, ...). So empty packages with its
folders as search paths stand in for them, and for its ``config`` a module whose one field is a folder name; the loader
and ``utils/layout.py`` are the public files. pandas, which the loader does use, must be installed: pip install pandas
"""

import importlib
import sys
import types
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

FRAMES, STRIDE = 25, 12


def import_loader(checkout: Path) -> Any:
    """Return the class ``SEVIRDataLoader`` of a checkout of amazon-science/earth-forecasting-transformer.

    Raises:
        ImportError: the checkout does not hold it, or pandas is not installed.
    """
    source = checkout / "src" / "earthformer"
    for name in ("earthformer", "earthformer.utils", "earthformer.datasets", "earthformer.datasets.sevir"):
        package = types.ModuleType(name)
        package.__path__ = [str(source.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    config = types.ModuleType("earthformer.config")
    config.cfg = types.SimpleNamespace(datasets_dir=".")  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules["earthformer.config"] = config
    return importlib.import_module("earthformer.datasets.sevir.sevir_dataloader").SEVIRDataLoader


def open_public(loader: Any, root: Path, *, batch: int) -> Any:
    """Return the public loader over an archive, as Earthformer's SEVIR configuration sets it up, in order."""
    return loader(
        data_types=["vil"],
        seq_len=FRAMES,
        raw_seq_len=49,
        sample_mode="sequent",
        stride=STRIDE,
        batch_size=batch,
        layout="NTHW",
        sevir_catalog=str(root / "CATALOG.csv"),
        sevir_data_dir=str(root / "data"),
        start_date=None,
        end_date=datetime(2019, 1, 1),
        rescale_method="01",
        verbose=False,
    )


def in_order(loader: Any, batches: int) -> Iterator[Any]:
    """Yield the first batches, float32 ``[N, T, H, W]`` in [0, 1]."""
    loader.reset()
    for _ in range(batches):
        yield next(loader)["vil"]


def at(loader: Any, indices: Iterator[int]) -> Iterator[Any]:
    """Yield the batches at these places."""
    for index in indices:
        yield loader[index]["vil"]


def codes_of(batch: Any) -> np.ndarray:
    """Return a batch in [0, 1] as the codes that it was made of."""
    return np.rint(batch.numpy() * 255).astype(np.uint8)
