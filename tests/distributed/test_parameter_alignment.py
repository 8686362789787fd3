"""All parameters that kernels read start at multiples of 16 bytes, under every ZeRO stage and precision."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from simcast_hpc.config import EarthformerConfig, StackConvStem
from simcast_hpc.distributed import engine as engine_module
from simcast_hpc.distributed.engine import build_engine, set_learning_rate
from simcast_hpc.distributed.named_tensors import parameter_names, read_state
from simcast_hpc.distributed.parameter_alignment import ALIGNMENT_BYTES
from simcast_hpc.distributed.partitions import write_fragments
from simcast_hpc.distributed.process_group import TorchRanks, join_process_group
from simcast_hpc.models import build_model
from tests.archives import tiny_config

LAYOUTS = [(0, "fp32"), (1, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]
DECAY = {"weight_decay": 0.1, "no_decay": "norms_and_biases", "gradient_clip": 1.0}


@pytest.fixture(scope="module")
def ranks() -> Iterator[TorchRanks]:
    joined = join_process_group(timeout_minutes=1.0)
    yield joined
    joined.leave()


class SumOfForecast(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        stem = StackConvStem(widths=(3, 8), scales=(2, 1), convolutions=(1, 1))
        config = EarthformerConfig(grid=(8, 8), width=8, heads=1, stem=stem)
        self.model = build_model(config, frames_in=3, frames_out=2)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.model(frames).float().square().mean()


def build(tmp_path, ranks: TorchRanks, stage: int, precision: str) -> Any:
    torch.manual_seed(0)
    section = {"zero_stage": stage, "precision": precision}
    config = tiny_config(tmp_path, engine=section, optimizer=DECAY, batch={"global_size": 1, "micro_size": 1})
    return build_engine(SumOfForecast(), config, ranks)


def unalign(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build the layout of earlier versions."""
    monkeypatch.setattr(engine_module, "zero_alignment", lambda _: {})
    monkeypatch.setattr(engine_module, "needs_padding", lambda *_, **__: False)


def forward(engine: Any) -> torch.Tensor:
    frames = torch.linspace(0, 1, 3 * 64).reshape(1, 3, 1, 8, 8)
    return engine(frames.to(next(engine.module.parameters()).dtype))


def train(engine: Any, *, steps: int = 2) -> list[float]:
    losses = []
    torch.manual_seed(1)  # of dropout
    for _ in range(steps):
        set_learning_rate(engine, 1e-3)
        loss = forward(engine)
        losses.append(loss.item())
        engine.backward(loss)
        engine.step()
    return losses


def addresses(engine: Any) -> dict[str, int]:
    """Return the address of each parameter modulo 16 bytes where a forward pass reads it."""
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    found: dict[str, int] = {}

    def note(owner: torch.nn.Module, *_) -> None:
        for parameter in owner.parameters(recurse=False):
            assert parameter.data_ptr(), f"{names[id(parameter)]} is not gathered"
            found.setdefault(names[id(parameter)], parameter.data_ptr() % ALIGNMENT_BYTES)

    hooks = [owner.register_forward_pre_hook(note) for owner in engine.module.modules()]
    engine.backward(forward(engine))
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(("stage", "precision"), LAYOUTS)
def test_parameters_are_aligned_and_losses_unchanged(tmp_path, ranks, monkeypatch, stage, precision):
    """Without alignment, the same network has misaligned parameters in flat buffers, and bitwise the same losses."""
    engine = build(tmp_path, ranks, stage, precision)
    names = [name for name, _ in SumOfForecast().named_parameters()]
    assert parameter_names(engine) == names, "the padding is no parameter of the network"
    losses = train(engine)
    assert not {name: offset for name, offset in addresses(engine).items() if offset}
    unalign(monkeypatch)
    engine = build(tmp_path, ranks, stage, precision)
    assert train(engine) == losses
    assert any(addresses(engine).values()) == (stage > 0)


@pytest.mark.parametrize(("stage", "precision"), [(1, "bf16"), (2, "fp32"), (3, "fp32")])
def test_state_of_the_unaligned_layout_is_read_by_name(tmp_path, ranks, monkeypatch, stage, precision):
    with monkeypatch.context() as patched:
        unalign(patched)
        old = build(tmp_path, ranks, stage, precision)
    train(old)
    state = {name: {key: value.clone() for key, value in one.items()} for name, one in read_state(old)}
    new = build(tmp_path, ranks, stage, precision)

    def lookup(kind: str, name: str, start: int, length: int) -> torch.Tensor:
        return state[name][kind].flatten()[start : start + length]

    write_fragments(new, lookup, ranks, step=2, warm_up=lambda: forward(new))
    assert train(new) == train(old)
