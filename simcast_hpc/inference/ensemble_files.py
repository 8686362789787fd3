"""Ensembles of a data set's windows into one file: members, mean, probabilities, probability-matched mean."""

import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from simcast_hpc.data.dataset_spec import DatasetSpec
from simcast_hpc.data.window_source import WindowSource
from simcast_hpc.diffusion import exceedance_probability, probability_matched_mean
from simcast_hpc.distributed.ranks import SINGLE_RANK, Ranks
from simcast_hpc.monitoring.progress import Progress
from simcast_hpc.storage.atomic_files import atomic_file

from .ensemble import TrainedEnsemble

logger = logging.getLogger(__name__)
_CODES = 255.0


@dataclass(frozen=True)
class Products:
    """What an ensemble of one batch says.

    ``members`` fp32 ``[B, M, T, H, W]`` in [0, 1]; ``mean`` and ``matched_mean`` ``[B, T, H, W]``; ``probability``
    ``[B, thresholds, T, H, W]``.
    """

    members: Tensor
    mean: Tensor
    probability: Tensor
    matched_mean: Tensor


def products_of(members: Tensor, thresholds: Sequence[float]) -> Products:
    """Return the products of members ``[B, M, T, H, W]`` in [0, 1], with thresholds in codes."""
    # As everywhere: a float reaches a threshold where it is at least float32(threshold / 255).
    levels = [float(torch.tensor(code / _CODES, dtype=torch.float32)) for code in thresholds]
    return Products(
        members, members.mean(dim=1), exceedance_probability(members, levels), probability_matched_mean(members)
    )


def draw_ensembles(
    ensemble: TrainedEnsemble,
    source: WindowSource,
    out: Path,
    *,
    spec: DatasetSpec,
    windows: int,
    batch: int,
    single: bool = False,
    ranks: Ranks = SINGLE_RANK,
) -> None:
    """Draw an ensemble for the first ``windows`` windows and write all products to ``out``, HDF5. A collective.

    Ranks share the members of each window. The file appears whole, by a rename; ``forecast``, ``event`` and ``start``
    are what ``simcast evaluate`` reads. Fields are float16 in [0, 1], whose step is an eighth of a code or less, or
    with ``single`` float32. The attribute ``clip_rate`` is the share of the clean latents' elements, of all steps, that
    ``sampling.clip`` bounded; it is logged too.

    Raises:
        NonFiniteLatentError: sampling broke down; nothing is left behind under the name ``out``.
        OSError: the file cannot be written.
    """
    if ensemble.sampling.members == 1:
        logger.warning("one member: its fair CRPS is not defined, and its standard CRPS is its mean absolute error")
    count = min(windows, len(source))
    numbers = range(ranks.rank, ensemble.sampling.members, ranks.size)
    frames_in = ensemble.config.sequence.frames_in
    thresholds = spec.threshold_codes()
    file, rates = None, []
    with ExitStack() as opened:
        with ranks.together():
            if ranks.is_first:
                out.parent.mkdir(parents=True, exist_ok=True)
                file = opened.enter_context(h5py.File(opened.enter_context(atomic_file(out)), "w"))
                _describe(file, ensemble, source, spec=spec, windows=count, dtype="f4" if single else "f2")
        progress = Progress(logger, "sampling", count, unit="windows")
        for begin in range(0, count, batch):
            indices = range(begin, min(begin + batch, count))
            mine, clipped = torch.empty(0), 0.0
            with ranks.together():
                codes = torch.from_numpy(np.stack([source.read(index)[:frames_in] for index in indices]))
                if len(numbers):
                    drawn = ensemble.sample_members(codes, numbers)
                    mine, clipped = drawn.frames.cpu(), float(drawn.clip_rate) * len(numbers) * len(indices)
            shares = ranks.gather((mine, clipped))
            rates.append(sum(clipped for _, clipped in shares))
            with ranks.together():
                if file is not None:
                    _write(file, indices, products_of(_interleaved([mine for mine, _ in shares]), thresholds))
                    progress.advance(len(indices))
        with ranks.together():
            if file is not None:
                _tell_clipped(file, ensemble, sum(rates) / (count * ensemble.sampling.members))
                opened.close()


def _interleaved(shares: Sequence[Tensor]) -> Tensor:
    """Return members in the order of their numbers: rank r of n drew r, r + n, ..."""
    held = [share for share in shares if share.numel()]
    total = sum(share.shape[1] for share in held)
    members = held[0].new_empty(held[0].shape[0], total, *held[0].shape[2:])
    for rank, share in enumerate(held):
        members[:, rank :: len(shares)] = share
    return members


def _describe(
    file: Any, ensemble: TrainedEnsemble, source: WindowSource, *, spec: DatasetSpec, windows: int, dtype: str
) -> None:
    sequence, (height, width) = ensemble.config.sequence, source.grid
    frame = (sequence.frames_out, height, width)
    axes = {
        "forecast": (ensemble.sampling.members,),
        "mean": (),
        "probability": (len(spec.threshold_codes()),),
        "matched_mean": (),
    }
    for name, more in axes.items():
        chunk = (1, *(1 for _ in more), *frame)
        file.create_dataset(
            name, (windows, *more, *frame), dtype, chunks=chunk, compression="gzip", compression_opts=1, shuffle=True
        )
    keys = [source.key(index) for index in range(windows)]
    file["event"] = np.array([key.event for key in keys], dtype=h5py.string_dtype())
    file["start"] = np.array([key.start for key in keys])
    file.attrs.update(
        {
            "units": "code / 255 (probability: 1)",
            "quantity": spec.quantity,
            "thresholds": spec.threshold_codes(),
            "threshold_labels": json.dumps(list(spec.threshold_labels())),
            "sampling": ensemble.sampling.model_dump_json(),
            "weights": ensemble.weights_hash,
            "autoencoder": ensemble.autoencoder.weights_hash,
            "student": ensemble.student.weights_hash,
            "data": source.fingerprint,
        }
    )


def _tell_clipped(file: Any, ensemble: TrainedEnsemble, rate: float) -> None:
    file.attrs["clip_rate"] = rate
    if ensemble.sampling.clip is not None:
        bound = ensemble.sampling.clip
        logger.info("%.3g %% of the clean latents' elements were clipped at sampling.clip=%g", 100 * rate, bound)


def _write(file: Any, indices: range, products: Products) -> None:
    rows = slice(indices[0], indices[-1] + 1)
    file["forecast"][rows] = products.members.numpy()
    for name in ("mean", "probability", "matched_mean"):
        file[name][rows] = getattr(products, name).numpy()
