"""Checks of optimizer steps of Earthformer on row shards, from its initialization, against one rank in float64."""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from simcast_hpc.config import EarthformerConfig
from simcast_hpc.distributed.row_shards import RowShards
from simcast_hpc.models import Earthformer
from simcast_hpc.models.row_sharding import shard_rows
from simcast_hpc.train.stages.forecast_stage import ForecastModule
from tests.multi_rank.row_shard_checks import random

_STEPS, _CLIP = 5, 1e-3
_ROWS, _COLUMNS, _FRAMES_IN, _FRAMES_OUT = 8, 14, 4, 2  # pixels of a rank and of a frame
_FIELDS: dict[str, Any] = {
    "width": 8, "heads": 2, "encoder_depth": (1,), "decoder_depth": (1,), "global_vectors": {"count": 2},
    "stem": {"widths": (4, 8), "scales": (1, 2), "convolutions": (1, 1)},
    "attention_dropout": 0.2, "projection_dropout": 0.2, "feed_forward_dropout": 0.2,
}  # fmt: skip
_PATTERNS: dict[str, dict[str, Any]] = {
    "axial": {},
    "shifted": {
        "encoder_pattern": "video_swin_2x2", "decoder_pattern": "video_swin_2x2", "cross_pattern": "cross_2x2",
    },
}  # fmt: skip


class _SquaredError(nn.Module):
    """A weighted squared error in float64, with the interface of ``ForecastLoss``."""

    needs_whole_frames = False

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor | None, *, share: float = 1.0) -> Tensor:
        """Return the loss."""
        return share * ((1 + 5 * target) * (prediction - target) ** 2).mean()


def check_steps(shards: RowShards, *, pattern: str) -> None:
    """Compare losses, gradients, their norm before clipping, and weights of each step with those of one rank."""
    grid = (_ROWS * shards.size, _COLUMNS)
    config = EarthformerConfig.model_validate({**_FIELDS, **_PATTERNS[pattern], "grid": grid})
    torch.manual_seed(1)
    network = Earthformer(config, frames_in=_FRAMES_IN, frames_out=_FRAMES_OUT).double()
    before = copy.deepcopy(list(network.parameters()))
    expected, actual = _steps(network, RowShards(), grid), _steps(network, shards, grid)
    for step, (reference, own) in enumerate(zip(expected, actual, strict=True)):
        for name in reference:
            torch.testing.assert_close(
                own[name], reference[name], rtol=1e-9, atol=1e-11, msg=lambda text, n=name, s=step: f"{s} {n}: {text}"
            )
        assert float(reference["norm"]) > 2 * _CLIP, "clipping is not active"
    last = [expected[-1][f"weight {name}"] for name, _ in network.named_parameters()]
    moved = max(float((new - old).abs().max()) for new, old in zip(last, before, strict=True))
    assert moved > 1e-3, "the optimizer hardly moved the weights"


def _steps(network: nn.Module, shards: RowShards, grid: tuple[int, int]) -> list[dict[str, Tensor]]:
    """Return loss, norm, gradients and weights after each step; DeepSpeed averages gradients over the ranks, too."""
    module = ForecastModule(copy.deepcopy(network), _SquaredError())  # pyright: ignore[reportArgumentType]
    module.shards = shards
    shard_rows(module.model, shards)
    optimizer = torch.optim.AdamW(module.model.parameters(), lr=1e-3)
    results: list[dict[str, Tensor]] = []
    for step in range(_STEPS):
        frames = shards.take(_storm(step, grid)).contiguous()
        torch.manual_seed(100 + step)
        inputs, target = frames[:, :_FRAMES_IN], frames[:, _FRAMES_IN:]
        loss = module(inputs, target, torch.ones_like(target, dtype=torch.bool))
        optimizer.zero_grad()
        loss.backward()
        results.append({"loss": shards.sum(loss.detach()) / shards.size})
        gradients = {name: p.grad for name, p in module.model.named_parameters() if p.grad is not None}
        for gradient in gradients.values():
            gradient.copy_(shards.sum(gradient) / shards.size)
        norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
        results[-1]["norm"] = norm
        results[-1] |= {f"gradient {name}": gradient / norm for name, gradient in gradients.items()}
        for gradient in gradients.values():
            gradient.mul_(min(1.0, _CLIP / float(norm)))
        optimizer.step()
        results[-1] |= {f"weight {name}": p.detach().clone() for name, p in module.model.named_parameters()}
    return results


def _storm(seed: int, grid: tuple[int, int]) -> Tensor:
    """Return two sequences of a moving cell in dry surroundings, float64 ``[2, T + T', 1, H, W]``."""
    y, x = (torch.arange(size, dtype=torch.float64) for size in grid)
    center = random(2, 2, seed=seed).sigmoid() * torch.tensor(grid)
    time = torch.arange(_FRAMES_IN + _FRAMES_OUT, dtype=torch.float64)
    above = (y[None, None, :, None] - center[:, 0].view(2, 1, 1, 1)) ** 2
    aside = (x[None, None, None] - center[:, 1].view(2, 1, 1, 1) - time.view(1, -1, 1, 1)) ** 2
    return ((0.8 * torch.exp(-(above + aside) / 6) * 255).round() / 255)[:, :, None]


CHECKS = {f"steps-{name}": partial(check_steps, pattern=name) for name in _PATTERNS}
