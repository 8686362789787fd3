"""Radially averaged power spectra: does a forecast keep the variance of small scales, or has it blurred them away?"""

from functools import cache

import torch
from torch import Tensor


def radial_power(field: Tensor) -> Tensor:
    """Return the power by whole wavenumber, float64 ``[..., (max(H, W) + 1) // 2]`` for ``[..., H, W]``.

    |FFT|^2 / (H W), averaged over the ring of frequencies whose radius, in cycles per domain of the longer side,
    rounds to the wavenumber (Ruzanski and Chandrasekar 2011; on square fields pysteps ``rapsd``). The mean stays in.
    """
    height, width = field.shape[-2:]
    power = torch.fft.fft2(field.double()).abs().square() / (height * width)
    places, counts = _rings(height, width, field.device)
    # One gather and one sum, in one order on every device: adding into rings by index is in no order on a GPU.
    return torch.nn.functional.pad(power.flatten(-2), (0, 1))[..., places].sum(-1) / counts


@cache
def _rings(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the flat places of each ring's frequencies, int64 ``[R, most]``, padded by H W, and how many, ``[R]``."""
    longest = max(height, width)
    rows, columns = (torch.fft.fftfreq(side, d=1.0 / longest) for side in (height, width))
    ring = torch.hypot(rows[:, None].double(), columns[None].double()).round().long().flatten()
    counts = torch.bincount(ring)[: (longest + 1) // 2]
    order, slots = ring.argsort(stable=True), torch.arange(int(counts.max()))
    places = (counts.cumsum(0) - counts)[:, None] + slots
    places = order[places.clamp(max=len(order) - 1)].masked_fill(slots >= counts[:, None], height * width)
    return places.to(device), counts.to(device)


def wavelengths_km(grid: tuple[int, int], spacing_km: float) -> Tensor:
    """Return the wavelength in km of each wavenumber of :func:`radial_power` but the mean's, float64, falling.

    Args:
        grid: height and width in pixels.
        spacing_km: spacing of the pixels.
    """
    longest = max(grid)
    return longest * spacing_km / torch.arange(1, (longest + 1) // 2, dtype=torch.float64)


def spectrum_sums(
    observed: Tensor, predicted: Tensor, hidden: Tensor | None, *, members: Tensor | None = None
) -> dict[str, Tensor]:
    """Return ``spectrum/observed`` and ``spectrum/forecast``, float64 ``[T, R]``, over ``spectrum/frames``, int64.

    With members also ``spectrum/members``, the mean of the members' power: the power of a single member, which their
    average has lost. Frames with a missing pixel have no spectrum and are left out.

    Args:
        observed: [0, 1] floats ``[T, H, W]``.
        predicted: the forecast.
        hidden: True where either is missing; None where neither is.
        members: ``[M, T, H, W]``, of which ``predicted`` is the mean.
    """
    whole = torch.ones(len(observed), dtype=torch.bool, device=observed.device)
    if hidden is not None:
        whole = ~hidden.flatten(1).any(1)
    sums = {
        f"spectrum/{name}": radial_power(torch.nan_to_num(field)) * whole[:, None]
        for name, field in (("observed", observed), ("forecast", predicted))
    }
    if members is not None:
        power = torch.stack([radial_power(torch.nan_to_num(member)) for member in members])
        sums["spectrum/members"] = power.mean(0) * whole[:, None]
    return sums | {"spectrum/frames": whole.long()}
