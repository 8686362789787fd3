"""One window with every forecast of it, for a page to show; of an ensemble its products too."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simcast_hpc.data.window_source import WindowSource
from simcast_hpc.inference.ensemble_files import products_of

from .entries import Entry

_SHOWN_MEMBERS = 4


def write_example(
    path: Path,
    source: WindowSource,
    chosen: int,
    *,
    entries: Sequence[Entry],
    thresholds: Sequence[float],
    frames_in: int,
) -> None:
    """Write one window and every entry's forecast of it as ``.npz``.

    ``inputs`` and ``observed`` are uint8 codes ``[T, H, W]``; ``forecast/<entry>`` float32 ``[T', H, W]`` in [0, 1], of
    an ensemble its first member, which is no average. Of an ensemble also, float16: ``members/<entry>``
    ``[k, T', H, W]``, the first four; ``mean/<entry>`` and ``matched_mean/<entry>`` ``[T', H, W]``; and
    ``probability/<entry>`` ``[thresholds, T', H, W]`` of reaching each threshold.

    Args:
        path: the file.
        source: the windows.
        chosen: which of them.
        entries: the forecasts.
        thresholds: of the data set, in codes.
        frames_in: how many frames of a window go in.
    """
    window = torch.from_numpy(source.read(chosen))[None]
    past, observed = window[:, :frames_in], window[:, frames_in:]
    arrays: dict[str, Any] = {
        "event": np.array(str(source.key(chosen))),
        "inputs": past[0].numpy(),
        "observed": observed[0].numpy(),
        "thresholds": np.array(thresholds),
    }
    for entry in entries:
        made = entry.of([source.key(chosen)], past, frames_out=observed.shape[1]).cpu()
        made = made if made.is_floating_point() else made.float() / 255.0
        arrays |= _single(entry.name, made) if made.dim() == 4 else _ensemble(entry.name, made, thresholds)
    np.savez_compressed(path, **arrays)


def _single(name: str, forecast: torch.Tensor) -> dict[str, np.ndarray]:
    return {f"forecast/{name}": forecast[0].float().numpy()}


def _ensemble(name: str, members: torch.Tensor, thresholds: Sequence[float]) -> dict[str, np.ndarray]:
    products = products_of(members.float(), thresholds)
    kept = {
        "members": products.members[0, :_SHOWN_MEMBERS],
        "mean": products.mean[0],
        "matched_mean": products.matched_mean[0],
        "probability": products.probability[0],
    }
    halves = {f"{kind}/{name}": field.numpy().astype(np.float16) for kind, field in kept.items()}
    return {f"forecast/{name}": members[0, 0].float().numpy(), **halves}
