"""Quantile mapping: give the forecasts of each lead time the distribution of the observed pixel values.

A value x of the forecast becomes G^-1(F(x)), with the distributions F of forecast and G of observed pixel values at the
same lead time, over the validation windows (Panofsky and Brier 1968; empirical quantile mapping in Gudmundsson et al.
2012). The mapping is monotone, so it changes intensities and the frequency bias, but not the order of pixels.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simcast_hpc.config import ConfigError
from simcast_hpc.data.encoding import LAST_CODE, MISSING_CODE
from simcast_hpc.storage.atomic_files import atomic_file
from simcast_hpc.storage.npz_files import load_npz

# Bins are centered on multiples of 1 / (255 * BINS_PER_CODE); an odd number, so that encoded values are centers.
BINS_PER_CODE = 5
BINS = MISSING_CODE * BINS_PER_CODE + 1
MIN_ECHO_PIXELS = 1000
TAIL_PIXELS = 100
VERSION = 1
FILE_NAME = "quantile_mapping.npz"


@dataclass(frozen=True, eq=False)
class QuantileMapping:
    """A quantile mapping per lead time, computed from two histograms.

    The highest 100 pixels (``TAIL_PIXELS``) of a lead time do not determine quantiles well. Above the forecast value
    at which they begin, the difference in encoded values is constant, and the result is at most the highest observed
    value of all lead times.

    Attributes:
        forecast: pixels by lead time and bin of the forecast, int64 ``[T', BINS]``.
        observed: pixels by lead time and encoded value of the observation, int64 ``[T', 255]``.
        no_echo: forecasts below this value in [0, 1] are no echo and are not increased, see
            :func:`.no_echo_limit`.
        identity: what the mapping was fitted on: hashes of weights and data.
    """

    forecast: np.ndarray
    observed: np.ndarray
    no_echo: float
    identity: Mapping[str, Any] = field(default_factory=dict)
    name = "quantile-mapping"

    def __post_init__(self) -> None:
        """Check that every lead time has enough pixels with echo.

        Raises:
            ConfigError: names the lead time and its numbers of pixels.
        """
        echo = np.ceil(self.no_echo * MISSING_CODE).astype(int)
        bins = np.ceil(self.no_echo * (BINS - 1)).astype(int)
        for lead, (forecast, observed) in enumerate(zip(self.forecast, self.observed, strict=True), start=1):
            counts = {"forecast": int(forecast[bins:].sum()), "observed": int(observed[echo:].sum())}
            if min(counts.values()) < MIN_ECHO_PIXELS:
                raise ConfigError(
                    f"a quantile mapping needs at least {MIN_ECHO_PIXELS} pixels with echo at every lead time, but the "
                    f"validation windows have {counts['forecast']} in the forecasts and {counts['observed']} in the "
                    f"observations at lead time {lead}; use more windows"
                )

    @property
    def leads(self) -> int:
        """The number of lead times."""
        return len(self.forecast)

    @property
    def note(self) -> str:
        """The description in tables and files."""
        return f"quantile mapping fitted on {self.identity.get('windows', '?')} validation windows"

    @property
    def reference(self) -> str:
        """The observations whose distribution a forecast gets, for the attributes of files."""
        return f"{self.identity.get('windows')} validation windows of the data {self.identity.get('data')}"

    @cached_property
    def table(self) -> Tensor:
        """The mapped value in [0, 1] of each bin center, float32 ``[T', BINS]``."""
        highest = float(np.flatnonzero(self.observed.sum(0))[-1])
        rows = [_mapped_bins(f, o, highest) for f, o in zip(self.forecast, self.observed, strict=True)]
        return torch.from_numpy((np.stack(rows) / MISSING_CODE).astype(np.float32))

    def check_leads(self, leads: int) -> None:
        """Check that the mapping has as many lead times as a forecast.

        Raises:
            ConfigError: it has fewer.
        """
        if leads > self.leads:
            raise ConfigError(
                f"the quantile mapping has {self.leads} lead times, the forecast {leads}; choose at most {self.leads}"
            )

    def apply(self, forecast: Tensor, frames: Tensor | None = None) -> Tensor:
        """Map a forecast, or each member of an ensemble.

        Args:
            forecast: float ``[..., T', H, W]`` in [0, 1] from lead time 1; NaN stays NaN.
            frames: not used.

        Returns:
            float32 of the same shape, in [0, 1].

        Raises:
            ConfigError: the forecast has more lead times than the mapping.
        """
        self.check_leads(forecast.shape[-3])
        table = self.table.to(forecast.device)
        mapped = torch.empty_like(forecast, dtype=torch.float32)
        for lead in range(forecast.shape[-3]):  # one lead time at a time: the indices take eight bytes per pixel
            values = forecast[..., lead, :, :].float()
            position = torch.nan_to_num(values).clamp(0.0, 1.0) * (BINS - 1)
            below = position.long().clamp(max=BINS - 2)
            row = table[lead]
            result = torch.lerp(row[below], row[below + 1], position - below)
            result = torch.where(values < self.no_echo, torch.minimum(values, result), result)
            mapped[..., lead, :, :] = torch.where(torch.isnan(values), values, result)
        return mapped

    def save(self, path: Path) -> None:
        """Write the histograms and the identity as ``.npz``, atomically."""
        identity = json.dumps({"version": VERSION, **self.identity})
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                allow_pickle=False,
                forecast=self.forecast,
                observed=self.observed,
                no_echo=np.float64(self.no_echo),
                identity=np.array(identity),
            )

    @classmethod
    def load(cls, path: Path) -> "QuantileMapping":
        """Read a file of :meth:`save`.

        Raises:
            ConfigError: the file is absent, damaged, or of another version.
        """
        arrays = load_npz(path, error=ConfigError, what="the quantile mapping")
        try:
            identity = json.loads(str(arrays["identity"]))
            version = identity.pop("version")
            forecast, observed = arrays["forecast"], arrays["observed"]
            leads = len(forecast)
            if version != VERSION or forecast.shape != (leads, BINS) or observed.shape != (leads, LAST_CODE + 1):
                raise ValueError(f"version {version}, shapes {forecast.shape} and {observed.shape}")
            if any(one.dtype != np.int64 or (one < 0).any() for one in (forecast, observed)) or not leads:
                raise ValueError("counts must be non-negative int64")
            no_echo = float(arrays["no_echo"])
            if not 0.0 < no_echo < 1.0:
                raise ValueError(f"no_echo is {no_echo}")
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is no quantile mapping of this version ({error}); fit it again") from error
        return cls(forecast, observed, no_echo, identity)


def forecast_bins(values: Tensor, valid: Tensor) -> Tensor:
    """Return the pixels of ``values`` in [0, 1] by bin, int64 ``[BINS]``, where ``valid``."""
    return torch.bincount((values[valid].clamp(0.0, 1.0) * (BINS - 1)).round().long(), minlength=BINS)


def observed_codes(codes: Tensor, valid: Tensor) -> Tensor:
    """Return the pixels of uint8 ``codes`` by encoded value, int64 ``[255]``, where ``valid``."""
    return torch.bincount(codes[valid].long(), minlength=LAST_CODE + 1)


def _mapped_bins(forecast: np.ndarray, observed: np.ndarray, highest: float) -> np.ndarray:
    """Return the mapped value of each bin center in encoded values, float64 ``[BINS]``.

    Both distributions are piecewise linear: the pixels of a bin and those of an encoded value are spread evenly over
    it, because encoding rounds to the nearest value.

    Args:
        forecast: pixels by bin.
        observed: pixels by encoded value.
        highest: bound of the result.
    """
    # 1. The distribution F at the centers of the bins that contain pixels
    knots = np.flatnonzero(forecast)
    total = forecast.sum()
    levels = ((np.cumsum(forecast) - forecast / 2) / total)[knots]
    centers = knots / BINS_PER_CODE
    # 2. The quantiles G^-1 of these levels
    upper = np.cumsum(observed) / observed.sum()
    codes = np.minimum(np.searchsorted(upper, levels), LAST_CODE)
    share = (levels - (upper - observed / observed.sum())[codes]) / (observed[codes] / observed.sum())
    mapped = np.maximum(codes - 0.5 + share, 0.0)
    # 3. A constant difference in the tail
    begin = np.searchsorted(levels, 1.0 - TAIL_PIXELS / min(total, observed.sum()), side="right") - 1
    tail = np.arange(len(knots)) > max(begin, 0)
    mapped[tail] = centers[tail] + mapped[max(begin, 0)] - centers[max(begin, 0)]
    # 4. All bins: linear between the knots, the constant difference above the last one, zero at zero
    positions = np.arange(BINS) / BINS_PER_CODE
    if centers[0] > 0.0:
        centers, mapped = np.insert(centers, 0, 0.0), np.insert(mapped, 0, 0.0)
    result = np.interp(positions, centers, mapped)
    above = positions > centers[-1]
    result[above] = positions[above] + mapped[-1] - centers[-1]
    return np.maximum.accumulate(np.clip(result, 0.0, highest))
