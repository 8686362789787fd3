"""Write ensemble forecasts of a data set to a file: members, mean, probabilities, probability-matched mean."""

import json
import logging
import math
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
from simcast_hpc.storage.directory_lock import hold_directory
from simcast_hpc.storage.hdf5_target import hdf5_target

from .ensemble import Ensemble

logger = logging.getLogger(__name__)
_CODES = 255.0


@dataclass(frozen=True)
class EnsembleProducts:
    """Members of a batch and the fields computed from them.

    ``members`` fp32 ``[B, M, T, H, W]`` in [0, 1]; ``mean`` and ``matched_mean`` ``[B, T, H, W]``; ``probability``
    ``[B, thresholds, T, H, W]``.
    """

    members: Tensor
    mean: Tensor
    probability: Tensor
    matched_mean: Tensor


def ensemble_products(members: Tensor, thresholds: Sequence[float]) -> EnsembleProducts:
    """Compute mean, exceedance probabilities and probability-matched mean of an ensemble.

    Args:
        members: ``[B, M, T, H, W]`` in [0, 1].
        thresholds: as encoded values; a float reaches one where it is at least float32(threshold / 255).
    """
    levels = [float(torch.tensor(code / _CODES, dtype=torch.float32)) for code in thresholds]
    return EnsembleProducts(
        members, members.mean(dim=1), exceedance_probability(members, levels), probability_matched_mean(members)
    )


def write_ensembles(
    ensemble: Ensemble,
    source: WindowSource,
    out: Path,
    *,
    spec: DatasetSpec,
    windows: int,
    batch: int,
    single: bool = False,
    ranks: Ranks = SINGLE_RANK,
) -> None:
    """Sample an ensemble for the first ``windows`` windows and write its products to the HDF5 file ``out``. Collective.

    Windows and members are distributed over the ranks. The file is written atomically; ``simcast evaluate``
    reads its datasets ``forecast``, ``event`` and ``start``. Fields are in [0, 1], in float16 (resolution: an eighth of
    an encoded value or better). The attribute ``clip_rate``, logged too, is the fraction of elements of the clean
    latents, over all steps, that ``sampling.clip`` changed.

    Args:
        ensemble: the trained networks and their sampling settings.
        source: the windows, of at least the ensemble's input frames.
        out: path of the file; its directory is created.
        spec: description of the data set, for thresholds and units.
        windows: maximum number of windows.
        batch: windows per batch.
        single: whether fields are written in float32.
        ranks: the ranks that share the work.

    Raises:
        ConfigError: another process writes the file.
        NonFiniteLatentError: sampling diverged; no file is written.
        OSError: the file cannot be written.
    """
    if ensemble.sampling.members == 1:
        logger.warning("an ensemble of one member has no fair CRPS, and its standard CRPS is its mean absolute error")
    count = min(windows, len(source))
    frames_in = ensemble.config.sequence.frames_in
    thresholds = spec.threshold_codes()
    file, target, rates = None, None, []
    lock = hold_directory(out.parent, "a sampling", field="--out", name=out.name, ranks=ranks)
    with lock, ExitStack() as open_files:
        with ranks.together():
            if ranks.is_first:
                target = open_files.enter_context(hdf5_target(open_files.enter_context(atomic_file(out))))
                file = open_files.enter_context(h5py.File(target, "w"))
                _describe(file, ensemble, source, spec=spec, windows=count, dtype="f4" if single else "f2")
        progress = Progress(logger, "sampling", count, unit="windows")
        batches = [range(begin, min(begin + batch, count)) for begin in range(0, count, batch)]
        per_round = batches_per_round(ensemble.sampling.members, ranks.size)
        for begin in range(0, len(batches), per_round):
            in_round = batches[begin : begin + per_round]
            shares = share_members(len(in_round), ensemble.sampling.members, ranks.size)
            # 1. Sample the members of this rank
            sampled: dict[int, tuple[Tensor, float]] = {}
            with ranks.together():
                for number, members in shares[ranks.rank].items():
                    indices = in_round[number]
                    codes = torch.from_numpy(np.stack([source.read(index)[:frames_in] for index in indices]))
                    samples = ensemble.sample_members(codes, members)
                    sampled[number] = samples.frames.cpu(), float(samples.clip_rate) * len(members) * len(indices)
            # 2. Write one batch after another; after a failure rank 0 still receives, since the others send
            failure: Exception | None = None
            for number, indices in enumerate(in_round):
                senders = [rank for rank, share in enumerate(shares) if number in share]
                parts = [ranks.to_first(sampled.pop(number, None) if rank == ranks.rank else None, sender=rank)
                         for rank in senders]  # fmt: skip
                if file is None or target is None or failure is not None:
                    continue
                try:
                    target.check()
                    rates.append(sum(clipped for _, clipped in parts))
                    _write(file, indices, ensemble_products(torch.cat([frames for frames, _ in parts], 1), thresholds))
                    progress.advance(len(indices))
                except Exception as error:
                    failure = error
            with ranks.together():
                if failure is not None:
                    raise failure
        with ranks.together():
            if file is not None:
                _write_clip_rate(file, ensemble, sum(rates) / (count * ensemble.sampling.members))
                open_files.close()


def batches_per_round(members: int, ranks: int) -> int:
    """Return the least number of batches of which all ranks can sample equally many members."""
    return ranks // math.gcd(ranks, members)


def share_members(batches: int, members: int, ranks: int) -> list[dict[int, range]]:
    """Return the members that each rank samples: for each rank, a range of member numbers by number of the batch.

    The pairs of batch and member are split into contiguous parts of equal length, or lengths that differ by one. So
    more ranks than members work, and a rank reads as few windows as possible.
    """
    shares: list[dict[int, range]] = []
    total = batches * members
    for rank in range(ranks):
        first, last = rank * total // ranks, (rank + 1) * total // ranks
        share = {}
        for number in range(first // members, -(-last // members)):
            start = number * members
            share[number] = range(max(first, start) - start, min(last, start + members) - start)
        shares.append({number: numbers for number, numbers in share.items() if len(numbers)})
    return shares


def _describe(
    file: Any, ensemble: Ensemble, source: WindowSource, *, spec: DatasetSpec, windows: int, dtype: str
) -> None:
    sequence, (height, width) = ensemble.config.sequence, source.grid
    frame = (sequence.frames_out, height, width)
    axes = {
        "forecast": (ensemble.sampling.members,),
        "mean": (),
        "probability": (len(spec.threshold_codes()),),
        "matched_mean": (),
    }
    for name, axis in axes.items():
        chunk = (1, *(1 for _ in axis), *frame)
        file.create_dataset(
            name, (windows, *axis, *frame), dtype, chunks=chunk, compression="gzip", compression_opts=1, shuffle=True
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
            **ensemble.inputs,
            "data": source.fingerprint,
        }
    )


def _write_clip_rate(file: Any, ensemble: Ensemble, rate: float) -> None:
    file.attrs["clip_rate"] = rate
    if ensemble.sampling.clip is not None:
        bound = ensemble.sampling.clip
        logger.info("%.3g %% of the elements of the clean latents were clipped at sampling.clip=%g", 100 * rate, bound)


def _write(file: Any, indices: range, products: EnsembleProducts) -> None:
    rows = slice(indices[0], indices[-1] + 1)
    file["forecast"][rows] = products.members.numpy()
    for name in ("mean", "probability", "matched_mean"):
        file[name][rows] = getattr(products, name).numpy()
