"""What an evaluation leaves behind: scores with intervals and differences, as JSON for a page and CSV for a paper."""

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
# Differences of every pair at every threshold would fill pages; these are what claims are made of.
_COMPARED = ("mse", "mae", "crps", "ssim")


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
        protocols: how they are scored.
        supported: labels of the thresholds in means.
        draws: resamples of events.
    """
    names = list(counted)
    if draws < 1 or any(len(one.events) < 2 for rules in counted.values() for one in rules.values()):
        return {name: {} for name in names}, []
    found: dict[str, Any] = {name: {} for name in names}
    differences: list[dict[str, Any]] = []
    for protocol in protocols:
        mean_over = [label for label in supported if label in protocol.labels] or None
        drawn = {
            name: resample(rules[protocol.counting_hash].under(protocol), draws=draws, mean_over=mean_over)
            for name, rules in counted.items()
        }
        for name, one in drawn.items():
            bounds = one.intervals(level=LEVEL)
            found[name][protocol.name] = {key: [bound.low, bound.high] for key, bound in bounds.items()}
        for place, first in enumerate(names):
            for second in names[place + 1 :]:
                # The later row is usually the model and the earlier the baseline, so the later comes first.
                pairs = drawn[second].minus(drawn[first], level=LEVEL)
                differences += [
                    {"first": second, "second": first, "protocol": protocol.name, "key": key, **_fields(one)}
                    for key, one in pairs.items()
                    if key.endswith("/mean") or key in _COMPARED
                ]
    return found, differences


def _fields(one: Interval) -> dict[str, float]:
    return {"value": one.value, "low": one.low, "high": one.high, "above_zero": one.above_zero}


def as_csv(result: Mapping[str, Any]) -> str:
    """Return every score of a result as CSV: one row an entry, protocol and key, with its interval where it has one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["test_set", "dataset", "entry", "protocol", "hash", "key", "value", "low", "high"])
    for entry, by_protocol in result["scores"].items():
        for protocol, found in by_protocol.items():
            bounds = result["intervals"].get(entry, {}).get(protocol, {})
            digest = result["protocols"][protocol]["hash"]
            for key, value in found.items():
                low, high = bounds.get(key, ("", ""))
                row = [_cell(number) for number in (value, low, high)]
                writer.writerow([result["name"], result["dataset"], entry, protocol, digest, key, *row])
    return text.getvalue()


def without_nan(thing: Any) -> Any:
    """Return a copy in which NaN and infinity (the PSNR of a perfect forecast) are None, since JSON has neither."""
    if isinstance(thing, dict):
        return {key: without_nan(value) for key, value in thing.items()}
    if isinstance(thing, list):
        return [without_nan(value) for value in thing]
    return None if isinstance(thing, float) and not math.isfinite(thing) else thing


def _cell(value: Any) -> str:
    return "" if value is None or value == "" or (isinstance(value, float) and math.isnan(value)) else f"{value:.12g}"


def diagrams(statistics: Statistics, *, grid: tuple[int, int], spacing_km: float) -> dict[str, Any]:
    """Return the diagrams of one entry.

    Args:
        statistics: its counts.
        grid: height and width of the windows in pixels.
        spacing_km: spacing of their pixels.

    Returns:
        ``spectra`` where the protocol sums them: ``wavelength_km`` ``[R]`` and, each ``[leads][R]``, mean power of the
        [0, 1] field of ``observed``, ``forecast`` and, of an ensemble, ``members``; ``frames`` ``[leads]``, those
        without a missing pixel. Of an ensemble also ``members``, how many; ``ranks`` ``[leads][M + 1]``; and
        ``reliability`` by threshold label, each with ``probability``, ``observed_frequency`` and ``forecasts``
        ``[M + 1]``. What is undefined is NaN.
    """
    found: dict[str, Any] = {}
    if "spectrum/frames" in statistics.extra:
        found["spectra"] = {
            "wavelength_km": _numbers(wavelengths_km(grid, spacing_km)),
            "frames": statistics.extra["spectrum/frames"].sum(0).tolist(),
            **{name: _numbers(power[:, 1:]) for name, power in power_spectra(statistics).items()},
        }
    if statistics.members > 1:
        curves = reliability(statistics)
        found["members"] = statistics.members
        found["ranks"] = rank_histogram(statistics).tolist()
        found["reliability"] = {
            label: {
                "probability": _numbers(curves["probability"]),
                "observed_frequency": _numbers(curves["observed_frequency"][row]),
                "forecasts": curves["forecasts"][row].long().tolist(),
            }
            for row, label in enumerate(statistics.protocol.labels)
        }
    return found


def _numbers(values: Tensor) -> Any:
    """Return nested lists of numbers rounded to what a figure can show."""
    if values.dim() > 1:
        return [_numbers(row) for row in values]
    return [float(f"{value:.{_DIGITS}g}") for value in torch.as_tensor(values).tolist()]
