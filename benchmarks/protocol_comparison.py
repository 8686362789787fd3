"""Score one forecast under every protocol: differences of a score due to the way of counting alone.

    python -m benchmarks.protocol_comparison

The forecast is persistence of synthetic storms (seed 0, 24 events of 128 x 128, windows 13 -> 12), smoothed more at
every lead time, with equal floats under all protocols. ``hko7`` and ``meteonet-cascast`` interpret the same [0, 1]
field as HKO's pixel values and as dBZ / 70, so their rows also have other thresholds. Prints a Markdown table.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch

from simcast_hpc.config import DataConfig
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.data.synthetic import write_archive
from simcast_hpc.verification import PROTOCOLS, score

EVENTS, SIZE = 24, 128


def windows() -> tuple[np.ndarray, list[str]]:
    """Return test windows uint8 ``[N, 25, H, W]`` and their events."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "storms"
        write_archive(root, seed=0, events={"train": 1, "val": 1, "test": EVENTS}, size=SIZE, frames_per_event=25)
        source = open_windows(DataConfig(dataset="synthetic", root=root), split="test", frames=25)
        return np.stack([source.read(k) for k in range(len(source))]), [source.key(k).event for k in range(len(source))]


def smoothed_persistence(last: torch.Tensor, *, frames_out: int) -> torch.Tensor:
    """Return ``[N, frames_out, H, W]``: the last frame ``[N, H, W]``, averaged over squares of 2 lead + 1 pixels."""
    frames = [
        torch.nn.functional.avg_pool2d(last[:, None], 2 * lead + 1, stride=1, padding=lead, count_include_pad=False)
        for lead in range(1, frames_out + 1)
    ]
    return torch.cat(frames, dim=1)


def rows() -> list[tuple[str, ...]]:
    """Return one row per protocol."""
    fields, events = windows()
    observed = torch.from_numpy(fields[:, 13:]).float() / torch.full((), 255.0)
    last = torch.from_numpy(fields[:, 12]).float() / torch.full((), 255.0)
    forecast = smoothed_persistence(last, frames_out=12)
    result = []
    for name, protocol in PROTOCOLS.items():
        scores = score(observed, forecast, protocol=protocol, events=events)
        top = protocol.labels[-1]
        keys = ("csi/mean", f"csi/{top}", f"pod/{top}", f"far/{top}", "hss/mean", "csi_pool4/mean", "csi_pool16/mean")
        cells = ["" if (value := scores.get(key)) is None else f"{value:.4f}" for key in keys]
        others = {key: scores[key] for key in ("bias_ln2/mean", "ssim", "ssim_batch_range") if key in scores}
        text = ", ".join(f"{key} {value:.3f}" for key, value in others.items())
        result.append((f"`{name}`", protocol.hash, top, *cells, text))
    return result


def main() -> None:
    """Print the table."""
    heads = ("protocol", "hash", "top", "CSI-M", "CSI top", "POD top", "FAR top", "HSS-M", "CSI-M pool 4",
             "CSI-M pool 16", "other")  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    print("\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows())]))


if __name__ == "__main__":
    main()
