"""Write the example window of a report: inputs, observation, every forecast, and the products of ensembles."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simcast_hpc.data.window_source import WindowSource
from simcast_hpc.inference.ensemble_files import ensemble_products
from simcast_hpc.storage.atomic_files import atomic_file

from .entries import Entry

_STORED_MEMBERS = 4


def write_example(
    path: Path,
    source: WindowSource,
    index: int,
    *,
    entries: Sequence[Entry],
    thresholds: Sequence[float],
    frames_in: int,
) -> None:
    """Write one window and the forecasts of all entries as ``.npz``.

    ``inputs`` and ``observed`` are uint8 ``[T, H, W]``. ``forecast/<entry>`` is float32 ``[T', H, W]`` in [0, 1], of an
    ensemble its first member. An ensemble also has float16 arrays: ``members/<entry>`` ``[k, T', H, W]``, the first
    four; ``mean/<entry>`` and ``matched_mean/<entry>`` ``[T', H, W]``; ``probability/<entry>``
    ``[thresholds, T', H, W]`` of exceeding each threshold.

    Args:
        path: the file.
        source: the windows.
        index: index of the window.
        entries: the forecasts.
        thresholds: thresholds of the data set, in encoded values.
        frames_in: number of input frames.
    """
    window = torch.from_numpy(source.read(index))[None]
    past, observed = window[:, :frames_in], window[:, frames_in:]
    arrays: dict[str, Any] = {
        "event": np.array(str(source.key(index))),
        "inputs": past[0].numpy(),
        "observed": observed[0].numpy(),
        "thresholds": np.array(thresholds),
    }
    for entry in entries:
        forecast = entry.forecast_windows([source.key(index)], past, frames_out=observed.shape[1]).cpu()
        forecast = forecast if forecast.is_floating_point() else forecast.float() / 255.0
        if forecast.dim() == 4:
            arrays[f"forecast/{entry.name}"] = forecast[0].float().numpy()
        else:
            arrays |= _ensemble_arrays(entry.name, forecast, thresholds)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _ensemble_arrays(name: str, members: torch.Tensor, thresholds: Sequence[float]) -> dict[str, np.ndarray]:
    products = ensemble_products(members.float(), thresholds)
    fields = {
        "members": products.members[0, :_STORED_MEMBERS],
        "mean": products.mean[0],
        "matched_mean": products.matched_mean[0],
        "probability": products.probability[0],
    }
    arrays = {f"{kind}/{name}": field.numpy().astype(np.float16) for kind, field in fields.items()}
    return {f"forecast/{name}": members[0, 0].float().numpy(), **arrays}
