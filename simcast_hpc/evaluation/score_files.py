"""Content of score files: intervals, differences and diagram data; conversion to CSV and JSON."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from simcast_hpc.verification.bootstrap import Interval, resample
from simcast_hpc.verification.diagram_statistics import power_spectra, rank_histogram, reliability
from simcast_hpc.verification.protocols import ScoreProtocol
from simcast_hpc.verification.spectrum import wavelengths_km
from simcast_hpc.verification.sufficient_statistics import Statistics

LEVEL = 0.95
_DIGITS = 6
# Differences are stored only for these scores and for means over thresholds.
_COMPARED = ("mse", "rmse", "mae", "mean_error", "correlation", "crps", "ssim")


def intervals(
    counted: Mapping[str, Mapping[str, Statistics]],
    protocols: Sequence[ScoreProtocol],
    *,
    supported: Sequence[str],
    draws: int,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return intervals by entry, protocol and key, and the differences of every pair of entries; empty without draws.

    Args:
        counted: statistics by entry and counting hash.
        protocols: the protocols of the scores.
        supported: labels of the thresholds in means.
        draws: number of resamples of events.
    """
    names = list(counted)
    if draws < 1 or any(len(one.events) < 2 for by_hash in counted.values() for one in by_hash.values()):
        return {name: {} for name in names}, []
    bounds: dict[str, Any] = {name: {} for name in names}
    differences: list[dict[str, Any]] = []
    for protocol in protocols:
        mean_over = [label for label in supported if label in protocol.labels] or None
        resamples = {
            name: resample(by_hash[protocol.counting_hash].under(protocol), draws=draws, mean_over=mean_over)
            for name, by_hash in counted.items()
        }
        for name, one in resamples.items():
            intervals_of = one.intervals(level=LEVEL)
            bounds[name][protocol.name] = {key: [interval.low, interval.high] for key, interval in intervals_of.items()}
        for index, first in enumerate(names):
            for second in names[index + 1 :]:
                # Later entries are usually models and earlier ones baselines, so the later entry is the minuend.
                pairs = resamples[second].minus(resamples[first], level=LEVEL)
                differences += [
                    {"first": second, "second": first, "protocol": protocol.name, "key": key, **_fields(pair)}
                    for key, pair in pairs.items()
                    if key.endswith("/mean") or key in _COMPARED
                ]
    return bounds, differences


def _fields(pair: Interval) -> dict[str, float]:
    return {"value": pair.value, "low": pair.low, "high": pair.high, "above_zero": pair.above_zero}


def as_csv(result: Mapping[str, Any]) -> str:
    """Return every score as CSV: one row per entry, protocol and key, with its interval if it has one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["test_set", "dataset", "entry", "protocol", "hash", "key", "value", "low", "high"])
    for entry, by_protocol in result["scores"].items():
        for protocol, scores in by_protocol.items():
            bounds = result["intervals"].get(entry, {}).get(protocol, {})
            digest = result["protocols"][protocol]["hash"]
            for key, value in scores.items():
                low, high = bounds.get(key, ("", ""))
                row = [_cell(number) for number in (value, low, high)]
                writer.writerow([result["name"], result["dataset"], entry, protocol, digest, key, *row])
    return text.getvalue()


def without_nan(data: Any) -> Any:
    """Return a copy with None in place of NaN and infinity (PSNR of a perfect forecast), which JSON lacks."""
    if isinstance(data, dict):
        return {key: without_nan(value) for key, value in data.items()}
    if isinstance(data, list):
        return [without_nan(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _cell(value: Any) -> str:
    return "" if value is None or value == "" or (isinstance(value, float) and math.isnan(value)) else f"{value:.12g}"


def diagrams(statistics: Statistics, *, grid: tuple[int, int], spacing_km: float) -> dict[str, Any]:
    """Return the data of the diagrams of one entry, as nested lists for JSON; undefined values are NaN.

    Args:
        statistics: the counts.
        grid: height and width of the windows in pixels.
        spacing_km: grid spacing.

    Returns:
        ``spectra`` if the protocol sums them: ``wavelength_km`` ``[R]``; mean power of the [0, 1] field of
        ``observed``, ``forecast`` and of the ``members`` of an ensemble, each ``[leads][R]``; ``frames`` ``[leads]``,
        the number of frames without a missing pixel. For an ensemble also ``members``, their number; ``ranks``
        ``[leads][M + 1]``; ``reliability`` by threshold label with ``probability``, ``observed_frequency`` and
        ``forecasts``, each ``[M + 1]``.
    """
    data: dict[str, Any] = {}
    if "spectrum/frames" in statistics.extra:
        data["spectra"] = {
            "wavelength_km": _numbers(wavelengths_km(grid, spacing_km)),
            "frames": statistics.extra["spectrum/frames"].sum(0).tolist(),
            **{name: _numbers(power[:, 1:]) for name, power in power_spectra(statistics).items()},
        }
    if statistics.members > 1:
        curves = reliability(statistics)
        data["members"] = statistics.members
        data["ranks"] = rank_histogram(statistics).tolist()
        data["reliability"] = {
            label: {
                "probability": _numbers(curves["probability"]),
                "observed_frequency": _numbers(curves["observed_frequency"][row]),
                "forecasts": curves["forecasts"][row].long().tolist(),
            }
            for row, label in enumerate(statistics.protocol.labels)
        }
    return data


def _numbers(values: Tensor) -> Any:
    """Return nested lists of numbers with six significant digits."""
    if values.dim() > 1:
        return [_numbers(row) for row in values]
    return [float(f"{value:.{_DIGITS}g}") for value in torch.as_tensor(values).tolist()]
