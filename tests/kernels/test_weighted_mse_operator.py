"""weighted_mse as a PyTorch operator: registration, compilation, memory accesses, sizes beyond 2^31."""

import pytest
import torch
from torch import Tensor

from benchmarks.cases.weighted_mse_cases import CASES
from simcast_kernels.weighted_mse import weighted_mse

STEP = {"thresholds": (219.0,), "weights": (1.0, 10.0)}
forward_op = torch.ops.simcast_kernels.weighted_mse.default
backward_op = torch.ops.simcast_kernels.weighted_mse_backward.default


def odd_case(device: str) -> tuple[Tensor, Tensor, Tensor | None]:
    return next(c for c in CASES if c.name == "odd").tensors(device, seed=1)


def check_operators(device: str) -> None:
    prediction, target, mask = odd_case(device)
    codes = (target * 255).to(torch.uint8)
    leaf = prediction.clone().requires_grad_()
    for y, m in ((target, mask), (codes, None)):
        torch.library.opcheck(forward_op, (leaf, y, m, [219.0], [1.0, 10.0], False, 255.0, True))
        torch.library.opcheck(forward_op, (prediction, y, m, [], [2.0], True, 255.0, False))
    factor = torch.tensor(0.7, device=device)
    torch.library.opcheck(backward_op, (prediction, factor))
    torch.library.opcheck(backward_op, (prediction.bfloat16().transpose(-1, -2), factor))


@pytest.mark.kernel
def test_opcheck(kernel_device):
    check_operators(kernel_device)


def test_opcheck_of_the_reference(reference_device):
    check_operators(reference_device)


def compiled_equals_eager(device: str, *, backend: str) -> None:
    prediction, target, mask = odd_case(device)

    def step(x):
        return 3 * weighted_mse(x * 2, target, mask=mask, **STEP)

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend=backend)):
        leaf = prediction.clone().requires_grad_()
        loss = function(leaf)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
        with torch.no_grad():
            assert torch.equal(function(leaf), loss)
    torch._dynamo.reset()
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.kernel
def test_compiles_as_one_graph(kernel_device):
    compiled_equals_eager(kernel_device, backend="aot_eager")


@pytest.mark.gpu
def test_compiles_as_one_graph_with_inductor(cuda):
    compiled_equals_eager(cuda, backend="inductor")


@pytest.mark.kernel
@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "constant"])
def test_no_gradient_is_written_if_not_needed(how, kernel_device, monkeypatch):
    from simcast_kernels.weighted_mse import kernel

    written, launch = [], kernel.loss_launch

    def spy(*args, **kwargs):
        written.append(kwargs["gradient"])
        return launch(*args, **kwargs)

    monkeypatch.setattr(kernel, "loss_launch", spy)
    prediction, target, mask = odd_case(kernel_device)
    want = weighted_mse(prediction.requires_grad_(how != "constant"), target, mask=mask, **STEP)
    if how == "no_grad":
        with torch.no_grad():
            assert torch.equal(weighted_mse(prediction, target, mask=mask, **STEP), want)
    if how == "inference_mode":
        with torch.inference_mode():
            assert torch.equal(weighted_mse(prediction, target, mask=mask, **STEP), want)
    assert written[-1] is None
    assert want.requires_grad == (how != "constant")


def test_rejects_backward_without_gradient(reference_device):
    prediction, target, _ = odd_case(reference_device)
    loss, _ = forward_op(prediction.requires_grad_(), target, None, [219.0], [1.0, 10.0], False, 255.0, False)
    with pytest.raises(RuntimeError, match="with_gradient=False"):
        loss.backward()


@pytest.mark.kernel
def test_backward_twice_is_equal_and_keeps_saved_tensors(kernel_device):
    prediction, target, mask = odd_case(kernel_device)
    loss = weighted_mse(prediction.requires_grad_(), target, mask=mask, **STEP)
    (first,) = torch.autograd.grad(loss, prediction, torch.tensor(5.0, device=kernel_device), retain_graph=True)
    kept = first.clone()
    (zero,) = torch.autograd.grad(loss, prediction, torch.tensor(0.0, device=kernel_device), retain_graph=True)
    (again,) = torch.autograd.grad(loss, prediction, torch.tensor(5.0, device=kernel_device))
    assert not zero.any()
    assert torch.equal(first, kept) and torch.equal(again, kept)


def in_guards(values: Tensor, poison: float, *, offset: int) -> tuple[Tensor, Tensor]:
    """Return a copy of ``values`` inside a larger poisoned buffer, and that buffer."""
    buffer = torch.full((values.numel() + 2 * offset + 64,), poison, dtype=values.dtype, device=values.device)
    inner = buffer[offset : offset + values.numel()].view(values.shape)
    inner.copy_(values)
    return inner, buffer


@pytest.mark.kernel
@pytest.mark.parametrize("offset", [64, 65], ids=["aligned", "misaligned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1, 5, 1023, 4096, 4097, 8191])
def test_accesses_stay_within_the_tensors(size, dtype, offset, kernel_device):
    from simcast_kernels.weighted_mse import kernel

    nan = float("nan")
    generator = torch.Generator().manual_seed(size)
    codes = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator).to(kernel_device)
    values = torch.rand(size, generator=generator).to(kernel_device, dtype)
    prediction, _ = in_guards(values, nan, offset=offset)
    target, _ = in_guards(codes, 255, offset=offset)
    mask, _ = in_guards(torch.ones_like(codes, dtype=torch.bool), True, offset=offset)
    unwritten = torch.full_like(values, nan)
    gradient, gradient_buffer = in_guards(unwritten, nan, offset=offset)
    scaled, scaled_buffer = in_guards(unwritten, nan, offset=offset)
    programs = kernel.partial_count(size)
    partials, partials_buffer = in_guards(torch.full((programs,), nan, device=kernel_device), nan, offset=offset)
    kernel.loss_launch(
        prediction,
        target,
        mask,
        partials=partials,
        gradient=gradient,
        inclusive=False,
        code_scale=255.0,
        **STEP,
    ).run()
    kernel.scale_launch(gradient, torch.tensor(2.0, device=kernel_device), scaled=scaled).run()
    for buffer, count in ((gradient_buffer, size), (scaled_buffer, size), (partials_buffer, programs)):
        assert torch.isfinite(buffer[offset : offset + count]).all(), "every element must be written"
        assert torch.isnan(buffer[:offset]).all() and torch.isnan(buffer[offset + count :]).all()
    want = weighted_mse(values, codes, **STEP)
    torch.testing.assert_close(partials.sum(), want, rtol=1e-6, atol=0)


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements(cuda):
    numel = 2**31 + 3 * 4096 + 5
    free, _ = torch.cuda.mem_get_info()
    if free < 20 * 2**30:
        pytest.skip(f"needs 20 GiB of free GPU memory, there are {free / 2**30:.1f}")
    prediction = torch.zeros(numel, dtype=torch.bfloat16, device=cuda)
    target = torch.zeros(numel, dtype=torch.uint8, device=cuda)
    prediction[-1], target[-1] = 2.0, 255
    loss = weighted_mse(prediction.requires_grad_(), target, **STEP)
    (gradient,) = torch.autograd.grad(loss, prediction, torch.tensor(2.0**31, device=cuda))
    assert loss.item() == pytest.approx(10 / numel, rel=1e-6)
    assert gradient[-1].item() == pytest.approx(20 * 2**31 / numel, rel=2**-8)
    assert int(torch.count_nonzero(gradient)) == 1


@pytest.mark.gpu
def test_captured_in_a_cuda_graph(cuda):
    prediction, target, mask = next(c for c in CASES if c.name == "quickstart").tensors(cuda, seed=7)
    prediction.requires_grad_()

    def run():
        loss = weighted_mse(prediction, target, mask=mask, **STEP)
        return loss.detach(), torch.autograd.grad(loss, prediction)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    with torch.no_grad():
        prediction.mul_(0.5)
    graph.replay()
    want = run()
    assert torch.equal(captured[0], want[0]) and torch.equal(captured[1], want[1])


@pytest.mark.gpu
def test_runs_on_the_device_of_the_tensors(cuda):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    prediction, target, mask = odd_case("cuda:0")
    assert mask is not None
    want = weighted_mse(prediction, target, mask=mask, **STEP)
    there = weighted_mse(prediction.to("cuda:1"), target.to("cuda:1"), mask=mask.to("cuda:1"), **STEP)
    assert there.device.index == 1 and torch.equal(there.cpu(), want.cpu())
