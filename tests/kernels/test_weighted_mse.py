"""weighted_mse: reference and kernel equal the definition in float64, forward and backward, including edge cases."""

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from benchmarks.cases.weighted_mse_cases import CASES, WeightedMseCase
from simcast_kernels.dispatch import interpreter_is_on
from simcast_kernels.weighted_mse import weighted_mse
from simcast_kernels.weighted_mse.reference import weighted_mse_reference
from tests.tolerance import assert_sum_close, assert_tensor_close

SMALL = [pytest.param(c, id=c.name) for c in CASES if c.numel <= 120_000]
LARGE = [pytest.param(c, id=c.name) for c in CASES if c.numel > 120_000]
STEP = {"thresholds": (219.0,), "weights": (1.0, 10.0)}
PLAIN = {"thresholds": (), "weights": (1.0,)}


def loss_and_grad(function, prediction: Tensor, target: Tensor, *, grad_output: float = 1.0, **table):
    leaf = prediction.detach().requires_grad_()
    loss = function(leaf, target, **table)
    factor = torch.tensor(grad_output, dtype=loss.dtype, device=loss.device)
    kept = factor.clone()
    (gradient,) = torch.autograd.grad(loss, leaf, factor)
    assert torch.equal(factor, kept), "the backward must not write into grad_output"
    return loss.detach(), gradient


def assert_matches_definition(case: WeightedMseCase, device: str) -> None:
    prediction, target, mask = case.tensors(device, seed=1)
    # The unscaled gradient is of order 1 / numel: this factor makes it of order 1. A power of two for bfloat16, since
    # the interpreter truncates at each store, and a second truncation would add its own error.
    factor = -(2.0 ** case.numel.bit_length()) if case.dtype == torch.bfloat16 else -0.37 * case.numel
    inputs = {"mask": mask, "grad_output": factor, **case.table}
    loss, gradient = loss_and_grad(weighted_mse, prediction, target, **inputs)
    _, reference_gradient = loss_and_grad(weighted_mse_reference, prediction, target, **inputs)
    exact, exact_gradient = loss_and_grad(weighted_mse_reference, prediction.double(), target, **inputs)
    assert exact > 0
    assert_sum_close("loss", loss, exact=exact, terms=exact)
    assert_tensor_close(
        "gradient", gradient, reference=reference_gradient, exact=exact_gradient, truncates_bf16=interpreter_is_on()
    )


@pytest.mark.kernel
@pytest.mark.parametrize("case", SMALL)
def test_kernel_matches_definition(case, kernel_device):
    assert_matches_definition(case, kernel_device)


@pytest.mark.parametrize("case", SMALL)
def test_reference_matches_definition(case, reference_device):
    assert_matches_definition(case, reference_device)


@pytest.mark.gpu
@pytest.mark.parametrize("case", LARGE)
def test_kernel_matches_definition_at_real_shapes(case, cuda):
    assert_matches_definition(case, cuda)


def test_definition_is_the_papers_formula():
    prediction = torch.tensor([0.5, 0.5, 0.5, 0.5], dtype=torch.float64)
    target = torch.tensor([0, 219, 220, 255], dtype=torch.uint8)
    mask = torch.tensor([True, True, True, False])
    levels = [float(torch.tensor(code / 255, dtype=torch.float32)) for code in (0, 219, 220)]
    terms = [w * (0.5 - y) ** 2 for w, y in zip((1, 1, 10), levels, strict=True)]
    got = weighted_mse_reference(prediction, target, mask=mask, **STEP)
    assert got.item() == pytest.approx(sum(terms) / 4, rel=1e-15)


@pytest.mark.kernel
@pytest.mark.parametrize("scale", [255.0, 254.0, 70.0])
def test_encoded_values_are_divided_with_correct_rounding(scale, kernel_device):
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8).to(kernel_device)
    _, gradient = loss_and_grad(weighted_mse, torch.zeros(256, device=kernel_device), codes, code_scale=scale, **PLAIN)
    exact = (torch.arange(256, dtype=torch.float64) / scale).to(torch.float32)
    assert torch.equal(gradient.cpu(), exact * (-2 / 256)), "every factor but the code's level is a power of two"


def weights_of(target: Tensor, **table) -> list[float]:
    """Return the weight of each pixel of ``target`` (none is 0), derived from the gradient at prediction 0."""
    _, gradient = loss_and_grad(weighted_mse, torch.zeros(target.shape, device=target.device), target, **table)
    level = target if target.is_floating_point() else target / 255
    return (gradient * target.numel() / (-2 * level)).tolist()


def assert_tie_is_literal(dtype: torch.dtype, device: str) -> None:
    codes = torch.tensor([218, 219, 220], dtype=torch.uint8, device=device)
    target = codes if dtype == torch.uint8 else codes / torch.full((), 255.0, device=device)
    assert weights_of(target, **STEP) == pytest.approx([1, 1, 10], rel=1e-6)
    assert weights_of(target, inclusive=True, **STEP) == pytest.approx([1, 10, 10], rel=1e-6)


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_tie_at_the_threshold(dtype, kernel_device):
    assert_tie_is_literal(dtype, kernel_device)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_tie_at_the_threshold_in_the_reference(dtype, reference_device):
    assert_tie_is_literal(dtype, reference_device)


@pytest.mark.kernel
def test_float_targets_next_to_the_threshold(kernel_device):
    tie = torch.tensor(219 / 255, dtype=torch.float32)
    one = torch.tensor(1.0)
    target = torch.stack([torch.nextafter(tie, -one), tie, torch.nextafter(tie, one)]).to(kernel_device)
    assert weights_of(target, **STEP) == pytest.approx([1, 1, 10], rel=1e-6)


@pytest.mark.kernel
@pytest.mark.parametrize("inclusive", [False, True])
def test_threshold_between_two_codes(inclusive, kernel_device):
    target = torch.tensor([73, 74], dtype=torch.uint8, device=kernel_device)
    # In float32 this threshold rounds to 74, so that code 74 would not exceed it.
    table = {"thresholds": (74 - 1e-9,), "weights": (1.0, 10.0)}
    assert weights_of(target, inclusive=inclusive, **table) == pytest.approx([1, 10], rel=1e-6)


@pytest.mark.kernel
@pytest.mark.parametrize("inclusive", [False, True])
def test_encoded_and_float_targets_agree(inclusive, kernel_device):
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8).repeat(20).to(kernel_device)
    floats = codes / torch.full((), 255.0, device=kernel_device)
    prediction = torch.rand(codes.shape, generator=torch.Generator().manual_seed(2)).to(kernel_device)
    table = {"thresholds": (16.0, 74.0, 133.0, 219.0), "weights": (0.0, 1.0, 2.0, 5.0, 30.0), "inclusive": inclusive}
    loss, gradient = loss_and_grad(weighted_mse, prediction, codes, **table)
    float_loss, float_gradient = loss_and_grad(weighted_mse, prediction, floats, **table)
    assert torch.equal(gradient, float_gradient)
    # On a GPU the layouts of the two targets, and so the summation orders, differ.
    assert_sum_close("loss", loss, exact=float_loss.double(), terms=float_loss.double())


def assert_masked_pixels_do_nothing(device: str, target_dtype: torch.dtype) -> None:
    case = WeightedMseCase(name="masked", shape=(2, 3, 1, 31, 33), target=target_dtype, masked=True)
    prediction, target, mask = case.tensors(device, seed=3)
    assert mask is not None
    loss, gradient = loss_and_grad(weighted_mse, prediction, target, mask=mask, **STEP)
    poison = 255 if target_dtype == torch.uint8 else float("nan")
    poisoned = prediction.masked_fill(~mask, float("nan")), target.masked_fill(~mask, poison)
    again, gradient_again = loss_and_grad(weighted_mse, *poisoned, mask=mask, **STEP)
    assert torch.equal(loss, again)
    assert torch.equal(gradient, gradient_again)
    assert not gradient[~mask].any()
    infinite = prediction.masked_fill(~mask, float("inf"))
    assert torch.equal(loss, weighted_mse(infinite, target, mask=mask, **STEP))
    nothing, no_gradient = loss_and_grad(weighted_mse, *poisoned, mask=torch.zeros_like(mask), **STEP)
    assert nothing == 0 and not no_gradient.any()


@pytest.mark.kernel
@pytest.mark.parametrize("target_dtype", [torch.uint8, torch.float32], ids=str)
def test_masked_pixels_have_no_effect(target_dtype, kernel_device):
    assert_masked_pixels_do_nothing(kernel_device, target_dtype)


@pytest.mark.parametrize("target_dtype", [torch.uint8, torch.float32], ids=str)
def test_masked_pixels_have_no_effect_in_the_reference(target_dtype, reference_device):
    assert_masked_pixels_do_nothing(reference_device, target_dtype)


@pytest.mark.kernel
def test_nan_in_a_valid_pixel_propagates(kernel_device):
    prediction = torch.zeros(5, device=kernel_device)
    prediction[3] = float("nan")
    loss = weighted_mse(prediction, torch.zeros(5, dtype=torch.uint8, device=kernel_device), **STEP)
    assert torch.isnan(loss)


@pytest.mark.kernel
def test_is_bitwise_reproducible(kernel_device):
    case = next(c for c in CASES if c.name == "quickstart")
    prediction, target, mask = case.tensors(kernel_device, seed=4)
    runs = [loss_and_grad(weighted_mse, prediction, target, mask=mask, grad_output=0.3, **STEP) for _ in range(3)]
    for loss, gradient in runs[1:]:
        assert torch.equal(loss, runs[0][0])
        assert torch.equal(gradient, runs[0][1])


@pytest.mark.kernel
def test_inputs_need_not_be_contiguous(kernel_device):
    prediction, target, mask = WeightedMseCase(name="n", shape=(3, 8, 2, 14, 18), masked=True).tensors(
        kernel_device, seed=5
    )
    assert mask is not None
    views = prediction[:, ::2].transpose(-1, -2), target[:, 1::2].transpose(-1, -2), mask[:, :1, :, :1].mT
    views = views[0], views[1], views[2].expand(views[0].shape)
    copies = [view.contiguous() for view in views]
    assert not any(view.is_contiguous() for view in views)
    loss, gradient = loss_and_grad(weighted_mse, views[0], views[1], mask=views[2], grad_output=2.5, **STEP)
    want, want_gradient = loss_and_grad(weighted_mse, copies[0], copies[1], mask=copies[2], grad_output=2.5, **STEP)
    assert torch.equal(loss, want)
    assert torch.equal(gradient, want_gradient)


@pytest.mark.kernel
def test_gradient_reaches_a_view_and_accumulates(kernel_device):
    frames = torch.rand(2, 6, 5, device=kernel_device, requires_grad=True)
    target = torch.full((2, 3, 5), 230, dtype=torch.uint8, device=kernel_device)
    for _ in range(2):
        (0.5 * weighted_mse(frames[:, 3:], target, **STEP)).backward()
    assert frames.grad is not None
    _, want = loss_and_grad(weighted_mse_reference, frames[:, 3:], target, **STEP)
    assert not frames.grad[:, :3].any()
    torch.testing.assert_close(frames.grad[:, 3:], want, rtol=1e-6, atol=0)


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_does_not_affect_the_op(dtype, kernel_device):
    prediction, target, _ = WeightedMseCase(name="a", shape=(2, 70), dtype=dtype, target=torch.float32).tensors(
        kernel_device, seed=6
    )
    want, want_gradient = loss_and_grad(weighted_mse, prediction, target, **STEP)
    with torch.autocast(kernel_device, torch.bfloat16):
        loss, gradient = loss_and_grad(weighted_mse, prediction, target, **STEP)
    assert loss.dtype == torch.float32 and gradient.dtype == dtype
    assert torch.equal(loss, want) and torch.equal(gradient, want_gradient)


INVALID = {
    "float64 prediction": ({"prediction": torch.zeros(2, 3).double()}, TypeError, "prediction is torch.float64"),
    "bf16 target": ({"target": torch.zeros(2, 3).bfloat16()}, TypeError, "target is torch.bfloat16"),
    "byte mask": ({"mask": torch.ones(2, 3, dtype=torch.uint8)}, TypeError, "mask is torch.uint8; it must be bool"),
    "empty": ({"prediction": torch.zeros(0, 3)}, ValueError, r"shape \(0, 3\); it must have at least one"),
    "broadcast target": ({"target": torch.zeros(1, 3)}, ValueError, r"target has shape \(1, 3\).*\(2, 3\)"),
    "mask shape": ({"mask": torch.ones(3, dtype=torch.bool)}, ValueError, r"mask has shape \(3,\)"),
    "other device": ({"target": torch.zeros(2, 3, device="meta")}, ValueError, "target is on meta"),
    "target gradient": ({"target": torch.zeros(2, 3, requires_grad=True)}, ValueError, r"pass target.detach\(\)"),
    "weights count": ({"weights": (1.0,)}, ValueError, "1 weights for 1 thresholds; there must be 2"),
    "negative weight": ({"weights": (1.0, -2.0)}, ValueError, "weights contain -2.0"),
    "nan weight": ({"weights": (1.0, float("nan"))}, ValueError, "weights contain nan"),
    "above the scale": ({"thresholds": (300.0,)}, ValueError, r"thresholds contain 300.0; they must be encoded values"),
    "nan threshold": ({"thresholds": (float("nan"),)}, ValueError, "thresholds contain nan"),
    "descending": ({"thresholds": (74.0, 16.0), "weights": (1, 2, 3)}, ValueError, "74.0 before 16.0"),
    "wrong unit": ({"thresholds": (219 / 255,)}, ValueError, "multiply them by code_scale = 255"),
    "no scale": ({"code_scale": 0.0}, ValueError, "code_scale is 0.0"),
}


@pytest.mark.parametrize(("change", "error", "message"), INVALID.values(), ids=INVALID.keys())
def test_rejects_invalid_input(change, error, message, reference_device):
    inputs = {"prediction": torch.zeros(2, 3), "target": torch.zeros(2, 3), **STEP} | change
    with pytest.raises(error, match=message):
        weighted_mse(inputs.pop("prediction"), inputs.pop("target"), **inputs)


def float32_of(value: float) -> Fraction:
    return Fraction(torch.tensor(value, dtype=torch.float32).item())


@pytest.mark.parametrize("scale", [255.0, 254.0, 70.0, 1.0, 3.0, 0.1, 199.7])
def test_division_by_the_reciprocal_is_exact_for_every_code(scale):
    """The kernel's fused multiply-adds, in exact arithmetic, against division in float64, rounded once to float32."""
    from simcast_kernels.weighted_mse.kernel import divides_by_inverse, rounded

    assert divides_by_inverse(scale)
    divisor = float32_of(scale)
    inverse = rounded(1 / divisor)
    assert inverse == float32_of(1 / float(divisor))
    plain_is_wrong = 0
    for code in range(256):
        quotient = rounded(code * inverse)
        remainder = rounded(code - quotient * divisor)
        # 53 bits are more than twice 24 + 2, so that the second rounding of the quotient is harmless.
        want = float32_of(code / float(divisor))
        assert rounded(quotient + remainder * inverse) == want, code
        plain_is_wrong += quotient != want
    assert scale != 255.0 or plain_is_wrong == 126, "the correction is needed"


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_near_the_limits_of_the_exponent_is_divided(scale):
    from simcast_kernels.weighted_mse.kernel import divides_by_inverse

    assert not divides_by_inverse(scale), "the products could overflow or underflow"


@pytest.mark.parametrize("bits", [2**24 - 1, 2**24, 2**24 + 1, 2**24 + 2, 2**24 + 3, 2**25 + 2, 2**25 + 6])
def test_rounding_is_to_nearest_even(bits):
    from simcast_kernels.weighted_mse.kernel import rounded

    for value in (Fraction(bits), Fraction(-bits), Fraction(bits, 2**40)):
        assert rounded(value) == float32_of(float(value))
