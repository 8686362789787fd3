"""Radially averaged power spectra, which show how much small-scale variance a forecast retains."""

from functools import cache

import torch
from torch import Tensor


def radial_power(field: Tensor) -> Tensor:
    """Return the power by integer wavenumber, float64 ``[..., (max(H, W) + 1) // 2]`` for ``[..., H, W]``.

    |FFT|^2 / (H W), averaged over the ring of frequencies whose radius, in cycles per longer side of the domain, rounds
    to the wavenumber (Ruzanski and Chandrasekar 2011; equal to ``rapsd`` of pysteps on square fields). Wavenumber 0 is
    included.
    """
    height, width = field.shape[-2:]
    power = torch.fft.fft2(field.double()).abs().square() / (height * width)
    indices, counts = _rings(height, width, field.device)
    # A gather and a sum have the same order on every device; index_add_ has no fixed order on a GPU.
    return torch.nn.functional.pad(power.flatten(-2), (0, 1))[..., indices].sum(-1) / counts


@cache
def _rings(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the flat indices of the frequencies of each ring, int64 ``[R, max]`` padded by H W, and counts ``[R]``."""
    longest = max(height, width)
    rows, columns = (torch.fft.fftfreq(side, d=1.0 / longest) for side in (height, width))
    ring = torch.hypot(rows[:, None].double(), columns[None].double()).round().long().flatten()
    counts = torch.bincount(ring)[: (longest + 1) // 2]
    order, slots = ring.argsort(stable=True), torch.arange(int(counts.max()))
    indices = (counts.cumsum(0) - counts)[:, None] + slots
    indices = order[indices.clamp(max=len(order) - 1)].masked_fill(slots >= counts[:, None], height * width)
    return indices.to(device), counts.to(device)


def wavelengths_km(grid: tuple[int, int], spacing_km: float) -> Tensor:
    """Return the wavelength in km of each wavenumber of :func:`radial_power` from 1, float64, descending.

    Args:
        grid: height and width in pixels.
        spacing_km: grid spacing.
    """
    longest = max(grid)
    return longest * spacing_km / torch.arange(1, (longest + 1) // 2, dtype=torch.float64)


def spectrum_sums(
    observed: Tensor, predicted: Tensor, hidden: Tensor | None, *, members: Tensor | None = None
) -> dict[str, Tensor]:
    """Return sums of power ``spectrum/observed`` and ``spectrum/forecast``, and the number of frames.

    Frames with a missing pixel have no spectrum and are excluded.

    Args:
        observed: [0, 1] floats ``[T, H, W]``.
        predicted: the forecast, of the same shape.
        hidden: True where either is missing; None if no pixel is.
        members: ``[M, T, H, W]``, of which ``predicted`` is the mean.

    Returns:
        ``spectrum/observed`` and ``spectrum/forecast``, float64 ``[T, R]``; ``spectrum/frames``, int64 ``[T]``; with
        members also ``spectrum/members``, the mean of the members' power, which is larger than the power of their mean.
    """
    complete = torch.ones(len(observed), dtype=torch.bool, device=observed.device)
    if hidden is not None:
        complete = ~hidden.flatten(1).any(1)
    sums = {
        f"spectrum/{name}": radial_power(torch.nan_to_num(field)) * complete[:, None]
        for name, field in (("observed", observed), ("forecast", predicted))
    }
    if members is not None:
        power = torch.stack([radial_power(torch.nan_to_num(member)) for member in members])
        sums["spectrum/members"] = power.mean(0) * complete[:, None]
    return sums | {"spectrum/frames": complete.long()}
