"""Tolerance of kernel tests: twice the rounding error of the reference, both compared with float64."""

import torch
from torch import Tensor

RMS_RATIO = {torch.float32: 1e-6, torch.bfloat16: 5e-3}


def assert_tensor_close(
    name: str,
    got: Tensor,
    *,
    reference: Tensor,
    exact: Tensor,
    truncates_bf16: bool = False,
    terms: Tensor | None = None,
) -> None:
    """Assert that ``got`` approximates ``exact`` as well as ``reference`` does, within a factor of two.

    The maximum error may be twice that of the reference, plus the rounding error of adding and subtracting 0.3 in the
    dtype of the result (results should be of order 1); the RMS error must be below 1e-6 (float32) or 5e-3 (bfloat16)
    times the RMS of the result.

    Args:
        name: name of the result, for the message.
        got: result of the kernel.
        reference: result of the reference implementation in the same dtype.
        exact: result of the reference implementation in float64.
        truncates_bf16: whether to add 2^-7 of each element, as Triton's interpreter truncates to bfloat16.
        terms: for elements that are sums, the sum of the magnitudes of their terms; 4 float32 eps of it are added, as
            in :func:`assert_sum_close`.
    """
    assert got.dtype == reference.dtype, f"{name}: dtype {got.dtype}, that of the reference is {reference.dtype}"
    assert got.shape == exact.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(exact.shape)}"
    assert exact.dtype == torch.float64, f"{name}: the exact result must be float64, not {exact.dtype}"
    assert torch.isfinite(got).all(), f"{name}: {int((~torch.isfinite(got)).sum())} elements are not finite"
    error = (got.double() - exact).abs()
    rounded = exact.to(got.dtype)
    floor = 2 * ((rounded + 0.3 - 0.3) - rounded).abs().max().item()
    bound = 2 * (reference.double() - exact).abs().max() + floor
    if truncates_bf16 and got.dtype == torch.bfloat16:
        bound = bound + 2**-7 * exact.abs()
    if terms is not None:
        bound = bound + 4 * torch.finfo(torch.float32).eps * terms
    excess = (error - bound).max().item()
    assert excess <= 0, f"{name}: error {error.max().item():.3g} exceeds its bound by {excess:.3g}"
    ratio = (error.square().mean().sqrt() / exact.square().mean().sqrt().clamp_min(1e-300)).item()
    assert ratio < RMS_RATIO[got.dtype], f"{name}: RMS error ratio {ratio:.3g}, bound {RMS_RATIO[got.dtype]:.3g}"


def assert_all_close(
    got: dict[str, Tensor],
    *,
    reference: dict[str, Tensor],
    exact: dict[str, Tensor],
    terms: dict[str, Tensor],
    truncates_bf16: bool,
) -> None:
    """Assert :func:`assert_tensor_close` of every result and gradient by name."""
    for name, value in got.items():
        assert_tensor_close(
            name,
            value,
            reference=reference[name],
            exact=exact[name],
            truncates_bf16=truncates_bf16,
            terms=terms.get(name),
        )


def assert_sum_close(name: str, got: Tensor, *, exact: Tensor, terms: Tensor) -> None:
    """Assert that a float32 sum is within 4 eps of the sum of its terms' magnitudes, ``terms``, of ``exact``."""
    assert got.dtype == torch.float32, f"{name}: dtype {got.dtype}, a sum must be float32"
    assert exact.dtype == torch.float64, f"{name}: the exact sum must be float64, not {exact.dtype}"
    error, bound = abs(got.double().item() - exact.item()), 4 * torch.finfo(torch.float32).eps * terms.item()
    assert error <= bound, f"{name}: {got.item():.9g} is {error:.3g} from {exact.item():.9g}, bound {bound:.3g}"
