"""Fit the quantile mapping of a run on its validation windows, distributed over ranks: ``simcast calibrate``."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from simcast_hpc.config import ConfigError, DataConfig, DataError, SequenceConfig
from simcast_hpc.data.encoding import MISSING_CODE
from simcast_hpc.data.open_windows import open_windows, target_spec
from simcast_hpc.data.shared_reads import read_together
from simcast_hpc.data.window_source import WindowSource
from simcast_hpc.distributed.ranks import SINGLE_RANK, Ranks
from simcast_hpc.monitoring.progress import Progress
from simcast_hpc.storage.directory_lock import hold_directory

from .ensemble import Ensemble
from .postprocessing import load_quantile_mapping, model_identity, no_echo_limit
from .quantile_mapping import BINS, FILE_NAME, QuantileMapping, forecast_bins, observed_codes
from .trained_model import TrainedModel

logger = logging.getLogger(__name__)


class ForecastMethod(Protocol):
    """A forecast method: a trained model, an ensemble or a baseline."""

    def forecast(self, frames: torch.Tensor, /, *, frames_out: int) -> torch.Tensor:
        """Return float32 ``[B, frames_out, H, W]`` or ``[B, M, frames_out, H, W]`` from uint8 ``[B, T, H, W]``."""
        ...


def fit_quantile_mapping(
    method: ForecastMethod,
    data: DataConfig,
    sequence: SequenceConfig,
    *,
    identity: Mapping[str, Any] | None = None,
    windows: int | None = None,
    batch_size: int = 8,
    ranks: Ranks = SINGLE_RANK,
) -> QuantileMapping:
    """Return the quantile mapping of a forecast method, fitted on the split ``val`` only. Collective.

    The forecasts of the long horizon and their observations are counted in histograms, without pixels whose observation
    is missing; members of an ensemble are counted together. The counts are integers, so the result is independent of
    the number of ranks and of ``batch_size``.

    Args:
        method: the forecast method.
        data: the data set.
        sequence: numbers of input and output frames.
        identity: what the mapping belongs to, stored with it.
        windows: number of windows, evenly spaced over the split; None for all.
        batch_size: windows per forward pass.
        ranks: the ranks over which windows are distributed.

    Raises:
        ConfigError: too few pixels with echo.
        DataError: the windows cannot be read, or there are none.
    """
    # 1. Windows of the validation split

    def open_split() -> WindowSource:
        opened = open_windows(data, split="val", frames=sequence.frames_in + sequence.frames_out)
        _ = opened.fingerprint  # computed by rank 0, it is sent with the windows
        return opened

    source = read_together(open_split, ranks)
    chosen = _evenly_spaced(len(source), windows)
    if not chosen:
        raise DataError(
            f"the split val of {data.root} has no window; a quantile mapping is fitted on validation windows"
        )
    # 2. Histograms of this rank
    forecast = torch.zeros(sequence.frames_out, BINS, dtype=torch.int64)
    observed = torch.zeros(sequence.frames_out, MISSING_CODE, dtype=torch.int64)
    with ranks.together():
        own = chosen[ranks.rank :: ranks.size]
        progress = Progress(logger, "calibration", len(own), unit="windows")
        for begin in range(0, len(own), batch_size):
            part = own[begin : begin + batch_size]
            _count(method, source, part, sequence.frames_in, forecast, observed)
            progress.advance(len(part))
    # 3. Sum over the ranks
    gathered = ranks.gather_on_first((forecast.numpy(), observed.numpy()))
    total = ranks.broadcast([np.sum(parts, axis=0) for parts in zip(*gathered, strict=True)])
    stored = {**(identity or {}), "data": source.fingerprint, "windows": len(chosen)}
    return QuantileMapping(total[0], total[1], no_echo_limit(target_spec(data).encoding), stored)


def calibrate_run(
    run_dir: Path,
    model: TrainedModel | Ensemble,
    data: DataConfig,
    *,
    windows: int | None = None,
    batch_size: int = 8,
    ranks: Ranks = SINGLE_RANK,
) -> Path:
    """Fit the quantile mapping of a run, write it to the run directory, and return the file. Collective.

    Raises:
        ConfigError, DataError: see :func:`fit_quantile_mapping`; another process writes the file.
    """
    path = run_dir / FILE_NAME
    with hold_directory(run_dir, "a calibration", field="RUN", name=FILE_NAME, ranks=ranks) as lock:
        mapping = fit_quantile_mapping(
            model,
            data,
            model.config.sequence,
            identity=model_identity(model),
            windows=windows,
            batch_size=batch_size,
            ranks=ranks,
        )
        with ranks.together():
            if ranks.is_first:
                lock.check()
                mapping.save(path)
    return path


def is_calibrated(run_dir: Path, model: TrainedModel | Ensemble, data: DataConfig) -> bool:
    """Return whether the run has a quantile mapping of this model that was fitted on all validation windows."""
    sequence = model.config.sequence
    source = open_windows(data, split="val", frames=sequence.frames_in + sequence.frames_out)
    try:
        identity = load_quantile_mapping(run_dir, model).identity
    except ConfigError:
        return False
    return identity.get("data") == source.fingerprint and identity.get("windows") == len(source)


def _evenly_spaced(total: int, count: int | None) -> list[int]:
    if count is None or count >= total:
        return list(range(total))
    return [index * total // count for index in range(count)]


def _count(
    method: ForecastMethod,
    source: WindowSource,
    indices: list[int],
    frames_in: int,
    forecast_counts: torch.Tensor,
    observed_counts: torch.Tensor,
) -> None:
    """Add the pixels of a batch of windows to the histograms, in place."""
    codes = torch.from_numpy(np.stack([source.read(index) for index in indices]))
    past, observed = codes[:, :frames_in], codes[:, frames_in:]
    forecast = method.forecast(past, frames_out=observed.shape[1])
    if not torch.isfinite(forecast).all():
        raise ConfigError(f"a forecast of the windows from {source.key(indices[0])} contains NaN or infinity")
    observed = observed.to(forecast.device)
    for lead in range(observed.shape[1]):
        truth = observed[:, lead]
        valid, values = truth != MISSING_CODE, forecast[..., lead, :, :]
        observed_counts[lead] += observed_codes(truth, valid).cpu()
        known = valid if values.dim() == 3 else valid[:, None].expand_as(values)
        forecast_counts[lead] += forecast_bins(values, known).cpu()
