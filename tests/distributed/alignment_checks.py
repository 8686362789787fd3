"""Engines of every kind of network with and without alignment: addresses of parameters, losses, and weights.

``python -m tests.distributed.alignment_checks FOLDER NETWORK:STAGE:PRECISION...`` runs :func:`compare` on the ranks of
a launcher; each rank writes ``RANK.json``. On one rank, ``test_parameter_alignment.py`` calls it directly.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from simcast_hpc.config import (
    AutoencoderConfig,
    CasFormerConfig,
    DiscriminatorConfig,
    EarthformerConfig,
    SimVPConfig,
    StackConvStem,
)
from simcast_hpc.distributed import engine as engine_module
from simcast_hpc.distributed.engine import build_engine, set_learning_rate
from simcast_hpc.distributed.named_tensors import read_state
from simcast_hpc.distributed.parameter_alignment import ALIGNMENT_BYTES
from simcast_hpc.distributed.process_group import TorchRanks, end_rank, join_process_group
from simcast_hpc.models import build_model
from simcast_hpc.models.autoencoder import Autoencoder
from simcast_hpc.models.casformer import CasFormer
from simcast_hpc.models.discriminator import Discriminator
from tests.archives import tiny_config

DECAY = {"weight_decay": 0.1, "no_decay": "norms_and_biases", "gradient_clip": 1.0}


class Layout(NamedTuple):
    """A network, its ZeRO stage and its precision."""

    network: str
    stage: int
    precision: str

    def __str__(self) -> str:
        return f"{self.network}:{self.stage}:{self.precision}"


def _earthformer(*, width: int, heads: int, widths: tuple[int, int]) -> nn.Module:
    stem = StackConvStem(widths=widths, scales=(2, 1), convolutions=(1, 1))
    return build_model(EarthformerConfig(grid=(8, 8), width=width, heads=heads, stem=stem), frames_in=3, frames_out=2)


def _autoencoder() -> Autoencoder:
    return Autoencoder(AutoencoderConfig(widths=(3, 9), blocks=1, latent_channels=3, groups=3))


_SIMVP = SimVPConfig(hidden_spatial=6, hidden_temporal=12, temporal_blocks=2, groups=3, base="extrapolation")
_CASFORMER = CasFormerConfig(frame_width=8, frame_depth=1, frame_heads=2, width=12, depth=1, heads=2)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "simvp": lambda: build_model(_SIMVP, frames_in=3, frames_out=2),
    "earthformer": lambda: _earthformer(width=8, heads=1, widths=(3, 8)),
    # 14 heads as in the configuration of 100 M parameters: all tables of position biases have odd multiples of 14
    "earthformer-100m": lambda: _earthformer(width=28, heads=14, widths=(5, 28)),
    "casformer": lambda: CasFormer(_CASFORMER, frames=3, channels=1),
    "autoencoder": _autoencoder,
    "discriminator": lambda: Discriminator(DiscriminatorConfig(layers=1, width=6, groups=3)),
}


class MeanSquare(nn.Module):
    """The mean square of a network's output for frames ``[1, 3, 1, 8, 8]``, a scalar fp32 loss."""

    def __init__(self, network: str) -> None:
        super().__init__()
        self.network, self.model = network, NETWORKS[network]()

    def forward(self, frames: Tensor) -> Tensor:
        """Return the loss."""
        if self.network == "simvp":
            return self.model(frames).float().square().mean()
        frames = frames.to(next(self.model.parameters()).dtype)
        if self.network == "casformer":
            return (self.model(frames, torch.tensor([3]), frames) - frames.float()).square().mean()
        if isinstance(self.model, Autoencoder):
            posterior = self.model.encode(frames.flatten(0, 1))
            decoded = self.model.decode(posterior.mean)
            return decoded.float().square().mean() + posterior.divergence().mean()
        if self.network == "discriminator":
            return self.model(frames.flatten(0, 1)).float().square().mean()
        return self.model(frames).float().square().mean()


def build(folder: Path, ranks: TorchRanks, layout: Layout) -> Any:
    """Return the engine of a network, the same weights for every call."""
    torch.manual_seed(0)
    section = {"zero_stage": layout.stage, "precision": layout.precision}
    config = tiny_config(folder, engine=section, optimizer=DECAY, batch={"global_size": ranks.size, "micro_size": 1})
    return build_engine(MeanSquare(layout.network), config, ranks)


def unalign(patch: pytest.MonkeyPatch) -> None:
    """Build the layout of earlier versions."""
    patch.setattr(engine_module, "zero_alignment", lambda _: {})
    patch.setattr(engine_module, "needs_padding", lambda *_, **__: False)


def forward(engine: Any, *, rank: int = 0) -> Tensor:
    """Return the loss of the frames of a rank."""
    frames = torch.linspace(0, 1, 3 * 64).roll(7 * rank).reshape(1, 3, 1, 8, 8)
    return engine(frames)


def train(engine: Any, *, rank: int = 0, steps: int = 2) -> list[float]:
    """Train, and return the rank's losses before each step."""
    losses = []
    torch.manual_seed(1 + rank)  # of dropout
    for _ in range(steps):
        set_learning_rate(engine, 1e-3)
        loss = forward(engine, rank=rank)
        losses.append(loss.item())
        engine.backward(loss)
        engine.step()
    return losses


class _Reads(TorchFunctionMode):
    """Note the address modulo 16 bytes of every parameter that an operation reads.

    Earthformer passes the weights of a norm and of several layers to one operation: no hook of these layers sees it.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.names = {id(parameter): name for name, parameter in module.named_parameters()}
        self.found: dict[str, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if id(leaf) in self.names and leaf.numel() and func is not Tensor.numel:
                self.found.setdefault(self.names[id(leaf)], leaf.data_ptr() % ALIGNMENT_BYTES)
        return func(*args, **(kwargs or {}))


def addresses(engine: Any) -> dict[str, int]:
    """Return the address modulo 16 bytes of each parameter that a forward pass reads, and under ZeRO 0 to 2 of all."""
    with _Reads(engine.module) as reads:
        loss = forward(engine)
    engine.backward(loss)
    engine.step()
    in_place = {
        name: parameter.data_ptr() % ALIGNMENT_BYTES
        for name, parameter in engine.module.named_parameters()
        if not hasattr(parameter, "ds_id")
    }
    return {**reads.found, **in_place}


def compare(layout: Layout, ranks: TorchRanks, folder: Path) -> dict[str, Any]:
    """Train a network with and without alignment.

    Returns:
        For both, ``aligned`` and ``unaligned``: the losses, the names of all parameters with a known address and of the
        misaligned ones; and ``difference``, the maximum difference of weights and moments after the steps, relative
        to the maximum of their tensor.
    """
    result: dict[str, Any] = {"layout": layout}
    states = []
    for kind in ("aligned", "unaligned"):
        with pytest.MonkeyPatch.context() as patch:
            if kind == "unaligned":
                unalign(patch)
            engine = build(folder, ranks, layout)
        losses = train(engine, rank=ranks.rank)
        states.append({f"{key}/{name}": x.clone() for name, state in read_state(engine) for key, x in state.items()})
        found = addresses(engine)
        misaligned = [name for name, offset in found.items() if offset]
        result[kind] = {"losses": losses, "names": sorted(found), "misaligned": misaligned}
    result["difference"] = max(
        float((states[1][key] - one).abs().max() / one.abs().max().clamp(min=1e-30)) for key, one in states[0].items()
    )
    return result


def assert_equal(found: dict[str, Any]) -> None:
    """Assert of a result of :func:`compare` that all parameters are aligned, and losses and state do not change.

    Most losses and states are bitwise identical. Adam's loop over a flat buffer treats the last few elements apart from
    its vectors, so an element that another offset moves there may differ by its last bit.
    """
    aligned, unaligned = found["aligned"], found["unaligned"]
    assert aligned["names"] and not aligned["misaligned"], found["layout"]
    assert unaligned["losses"] == pytest.approx(aligned["losses"], rel=1e-6), found["layout"]
    assert found["difference"] < 1e-6, found["layout"]


def main(folder: Path, cases: list[str]) -> None:
    """Compare the cases on the ranks of a launcher."""
    ranks = join_process_group(timeout_minutes=2)
    found = []
    for case in cases:
        network, stage, precision = case.split(":")
        found.append(compare(Layout(network, int(stage), precision), ranks, folder))
    (folder / f"{ranks.rank}.json").write_text(json.dumps(found), encoding="utf-8")
    ranks.leave()
    end_rank(0)  # Gloo's threads can abort the shutdown of the interpreter


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
