"""What figures are drawn from and no table holds: power spectra, reliability, ranks; as plain numbers for JSON."""

from typing import Any

import torch
from torch import Tensor

from simcast_hpc.verification.diagram_statistics import power_spectra, rank_histogram, reliability
from simcast_hpc.verification.spectrum import wavelengths_km
from simcast_hpc.verification.sufficient_statistics import Statistics

_DIGITS = 6


def drawn_from(statistics: Statistics, *, grid: tuple[int, int], spacing_km: float) -> dict[str, Any]:
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
