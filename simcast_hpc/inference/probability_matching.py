"""Probability matching: give each forecast frame the distribution of pixel values of the last observed frame.

The pixel with the k-th largest forecast gets the k-th largest value of the last input frame (Ebert 2001;
``nonparam_match_empirical_cdf`` of pysteps). Nothing is fitted, and nothing after the issue time is used.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from simcast_hpc.distill.cut_windows import to_frames


@dataclass(frozen=True)
class ProbabilityMatching:
    """Probability matching with the last input frame.

    Attributes:
        no_echo: forecasts below this value in [0, 1] are no echo and become 0, see :func:`.no_echo_limit`. Where fewer
            pixels of the forecast than of the last frame have echo, the lowest values of the last frame are not used.
    """

    no_echo: float
    name = "probability-matching"
    note = "probability matching with the last input frame"
    reference = "last input frame"

    def check_leads(self, leads: int) -> None:
        """Accept any number of lead times."""

    def apply(self, forecast: Tensor, frames: Tensor) -> Tensor:
        """Match a forecast, or each member of an ensemble.

        Pixels that are missing in the last input frame keep their forecast and are in neither distribution.

        Args:
            forecast: float ``[B, T', H, W]`` or ``[B, M, T', H, W]`` in [0, 1].
            frames: input frames ``[B, T, H, W]``, uint8 encoded values (255 missing) or floats in [0, 1] (NaN missing).

        Returns:
            float32 of the shape of ``forecast``, in [0, 1].
        """
        last, valid = (part.flatten(1) for part in to_frames(frames[:, -1:].to(forecast.device)))
        matched = torch.empty_like(forecast, dtype=torch.float32)
        for sample, (reference, known) in enumerate(zip(last, valid, strict=True)):
            if not known.any():
                matched[sample] = forecast[sample]
                continue
            ranked = reference[known].sort().values
            fields = matched[sample].flatten(0, -3)  # a view [frames of all members, H, W]
            for field, values in zip(fields, forecast[sample].flatten(0, -3), strict=True):
                field.copy_(self._match(values.float().flatten(), ranked, known).view_as(field))
        return matched

    def _match(self, values: Tensor, ranked: Tensor, known: Tensor) -> Tensor:
        """Return values ``[H W]`` that have the sorted values ``ranked`` where ``known``."""
        own = values[known]
        result = torch.empty_like(own).scatter_(0, own.argsort(stable=True), ranked)
        return values.masked_scatter(known, torch.where(own < self.no_echo, 0.0, result))
