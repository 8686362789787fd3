"""Forecasts are computed in IEEE fp32 whatever the caller's setting, which is restored; TF32 is emulated on the CPU."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

import simcast_hpc as sc
from simcast_hpc.config import SimVPConfig
from simcast_hpc.distill.cut_windows import to_frames
from simcast_hpc.export.torch_export import largest_difference
from simcast_hpc.inference.trained_ensemble import load_autoencoder, load_ensemble
from simcast_hpc.models.fp32_precision import fp32_precision
from simcast_hpc.models.layers import Fp32Conv2d, Fp32Linear
from simcast_hpc.models.simvp import SimVP
from simcast_hpc.train.stages.student_stage import extend
from tests.archives import tiny_config, write_trained

BACKENDS: Any = torch.backends
OPERATIONS = (
    BACKENDS.cudnn.conv,
    BACKENDS.cudnn.rnn,
    BACKENDS.cuda.matmul,
    BACKENDS.mkldnn.conv,
    BACKENDS.mkldnn.matmul,
)


def settings() -> list[str]:
    return [operation.fp32_precision for operation in OPERATIONS]


def round_to_tf32(x: Any) -> Any:
    """Return fp32 rounded to nearest even at 10 bits of mantissa, as the matrix units of a GPU read it."""
    if not isinstance(x, torch.Tensor) or x.dtype != torch.float32:
        return x
    bits = x.detach().contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


class EmulatedTF32(TorchFunctionMode):
    """Rounds the inputs of fp32 convolutions and linear layers while PyTorch's setting allows TF32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        convolution = func in (torch.conv2d, F.conv2d, torch.conv_transpose2d, F.conv_transpose2d, F.conv3d)
        matmul = func in (F.linear, torch._C._nn.linear, torch.matmul, torch.bmm)
        precision = BACKENDS.cudnn.conv if convolution else BACKENDS.cuda.matmul
        if (convolution or matmul) and precision.fp32_precision == "tf32":
            args = (*(round_to_tf32(one) for one in args[:2]), *args[2:])
        return func(*args, **(kwargs or {}))


@contextmanager
def recorded_settings() -> Iterator[list[list[str]]]:
    """Record the setting whenever a convolution or linear layer runs."""
    seen: list[list[str]] = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, _inputs: seen.append(settings()) if hasattr(module, "weight") else None
    )
    try:
        yield seen
    finally:
        hook.remove()


@pytest.fixture(autouse=True)
def caller_in_tf32() -> Iterator[list[str]]:
    """The caller uses TF32, and bf16 for matmuls of the CPU."""
    torch.set_float32_matmul_precision("medium")
    try:
        yield settings()
    finally:
        torch.set_float32_matmul_precision("highest")


def test_convolutions_are_tf32_by_default_and_not_in_a_block(caller_in_tf32):
    assert caller_in_tf32 == ["tf32", "tf32", "tf32", "none", "bf16"], "otherwise these tests show nothing"
    with fp32_precision():
        assert settings() == ["ieee"] * 5
        assert torch.backends.cudnn.allow_tf32 is False, "torch raises an error if both interfaces disagree"
        assert torch.get_float32_matmul_precision() == "highest"
    assert settings() == caller_in_tf32
    assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (True, "medium")


def test_setting_of_a_caller_who_uses_the_interface_by_operation_is_restored():
    BACKENDS.cudnn.conv.fp32_precision = "ieee"  # torch.backends.cudnn.allow_tf32 raises an error from now on
    before = settings()
    try:
        with fp32_precision():
            assert torch.backends.cudnn.allow_tf32 is False
        assert settings() == before
    finally:
        BACKENDS.cudnn.conv.fp32_precision = "tf32"


def test_nested_blocks_and_threads_use_tf32_only_if_all_allow_it(caller_in_tf32):
    with fp32_precision(tf32=True):
        assert settings() == ["tf32", "tf32", "tf32", "ieee", "ieee"]
        with fp32_precision(), fp32_precision(tf32=True):
            assert settings() == ["ieee"] * 5
        assert settings()[0] == "tf32"
    entered, leave = threading.Event(), threading.Event()

    def forecast() -> None:
        with fp32_precision():
            entered.set()
            leave.wait(10)

    other = threading.Thread(target=forecast)
    other.start()
    entered.wait(10)
    with pytest.raises(RuntimeError, match="as in a failed forecast"), fp32_precision():
        leave.set()
        other.join()
        assert settings() == ["ieee"] * 5, "the other thread left first"
        raise RuntimeError("as in a failed forecast")
    assert settings() == caller_in_tf32


def test_every_forecast_is_computed_in_ieee_fp32(runs, tmp_path, caller_in_tf32):
    codes = torch.randint(0, 255, (1, 3, 16, 16), dtype=torch.uint8)
    teacher = tiny_config(tmp_path / "teacher", stage="teacher")
    student = tiny_config(tmp_path / "run", stage="student", student={"teacher": str(write_trained(teacher))})
    ensemble, autoencoder = load_ensemble(runs / "diffusion"), load_autoencoder(runs / "autoencoder")
    rolled_out = sc.load(tmp_path / "teacher", device="cpu").model
    frames = torch.rand(1, 4, 16, 16)
    entries = {
        "student": lambda: sc.load(runs / "student", device="cpu").forecast(codes),
        "ensemble": lambda: sc.load(runs / "diffusion", device="cpu").forecast(codes),
        "members": lambda: ensemble.members(codes, [0]),
        "latents": lambda: autoencoder.moments(frames),
        "decoder": lambda: autoencoder.decode(torch.zeros(1, 4, 2, 8, 8)),
        "rollout": lambda: extend(rolled_out, to_frames(codes), student),
        "check of an export": lambda: largest_difference(rolled_out.network, rolled_out.network, [frames[:, :3, None]]),
    }
    for name, entry in entries.items():
        with recorded_settings() as seen:
            entry()
        assert seen and all(one == ["ieee"] * 5 for one in seen), name
        assert settings() == caller_in_tf32, name


def test_a_forecast_is_not_rounded_but_a_network_called_by_the_caller_is(runs):
    codes = torch.randint(0, 255, (1, 3, 16, 16), dtype=torch.uint8)
    model = sc.load(runs / "student", device="cpu").model
    exact = model.forecast(codes, frames_out=4)
    with EmulatedTF32():
        assert torch.equal(model.forecast(codes, frames_out=4), exact)
        rounded = model.network(to_frames(codes).values[:, :, None])
    assert not torch.equal(rounded[:, :, 0].clamp(0, 1), exact), "otherwise the emulation shows nothing"


@pytest.mark.parametrize(
    ("layer", "x"), [(Fp32Conv2d(4, 1, 3), torch.rand(1, 4, 8, 8)), (Fp32Linear(4, 1), torch.rand(5, 4))]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_layers_are_exact_in_a_run_that_trains_in_tf32(layer, x, dtype):
    layer = layer.to(dtype)
    with fp32_precision():
        exact = layer(x)
    with EmulatedTF32(), fp32_precision(tf32=True):
        assert torch.equal(layer(x), exact)
        assert settings()[0] == "tf32"


def test_tf32_changes_the_body_of_a_network_by_more_than_the_rounding_of_fp32():
    """The size of the error that this module prevents; 0.1 encoded values are 4e-4."""
    torch.manual_seed(0)
    network = SimVP(SimVPConfig(hidden_spatial=16, hidden_temporal=32, temporal_blocks=2), frames_in=3, frames_out=2)
    x = torch.rand(1, 3, 1, 32, 32)
    with torch.no_grad(), fp32_precision():
        exact = network(x)
    with torch.no_grad(), EmulatedTF32(), fp32_precision(tf32=True):
        rounded = network(x)
    difference = ((rounded - exact).abs().max() / (exact.max() - exact.min())).item()
    assert 1e-5 < difference < 1e-1
