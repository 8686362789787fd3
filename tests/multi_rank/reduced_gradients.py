"""Run on two ranks: reduced gradients under every ZeRO stage and data type of the reduction, and its collectives.

Rank 0 appends one JSON line per case to ``gradients.jsonl``; ``test_gradient_reduction.py`` checks them.
"""

import copy
import json
import sys
from pathlib import Path

import torch

from benchmarks.collective_counts import CollectiveCounter
from simcast_hpc.distributed.engine import build_engine
from simcast_hpc.distributed.process_group import TorchRanks, end_rank, join_process_group
from tests.archives import tiny_config

CASES = [
    {"zero_stage": stage, "precision": "bf16", "gradient_reduction": reduction}
    for stage in (1, 2, 3)
    for reduction in ("fp32", "bf16")
]
_MICRO_BATCHES = 2


class _Line(torch.nn.Module):
    """A mean square; 7 and 3 features, so that the parameters are not divisible by the ranks."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(7, 3), torch.nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x.to(self.first.weight.dtype))
        return self.second(hidden).float().square().mean()


def _batch(rank: int, micro: int) -> torch.Tensor:
    return torch.randn(4, 7, generator=torch.Generator().manual_seed(10 * rank + micro))


def _exact(module: torch.nn.Module, ranks: int) -> dict[str, torch.Tensor]:
    """Return the mean over ranks and micro-batches of the bf16 gradients, in float64."""
    module = copy.deepcopy(module).bfloat16()
    total: dict[str, torch.Tensor] = {}
    for rank in range(ranks):
        for micro in range(_MICRO_BATCHES):
            module.zero_grad()
            (module(_batch(rank, micro)) / _MICRO_BATCHES).backward()
            for name, parameter in module.named_parameters():
                assert parameter.grad is not None
                total[name] = total.get(name, 0.0) + parameter.grad.double() / ranks
    return total


def _measure(options: dict[str, object], ranks: TorchRanks, folder: Path) -> dict[str, object]:
    from deepspeed.utils import safe_get_full_grad

    torch.manual_seed(0)
    module = _Line()
    exact = _exact(module, ranks.size)
    batch = {"global_size": 4 * _MICRO_BATCHES * ranks.size, "micro_size": 4}
    engine = build_engine(module, tiny_config(folder, engine=options, batch=batch), ranks)
    with CollectiveCounter() as counter:
        for micro in range(_MICRO_BATCHES):
            engine.backward(engine(_batch(ranks.rank, micro)))
            if micro + 1 < _MICRO_BATCHES:
                engine.step()
    errors = []
    for name, parameter in engine.module.named_parameters():
        gradient = safe_get_full_grad(parameter)
        assert gradient is not None
        errors.append(float((gradient.double() - exact[name]).norm() / exact[name].norm()))
    sums = sorted({row["dtype"] for row in counter.rows if row["operation"] in ("all-reduce", "reduce-scatter")})
    return {"engine": options, "error": max(errors), "dtypes": sums}


def main(folder: Path) -> None:
    """Run all cases."""
    ranks = join_process_group(timeout_minutes=2)
    for options in CASES:
        measured = _measure(options, ranks, folder)
        if ranks.is_first:
            with (folder / "gradients.jsonl").open("a") as file:
                file.write(json.dumps(measured) + "\n")
    ranks.leave()
    end_rank(0)  # Gloo's threads can abort the shutdown of the interpreter


if __name__ == "__main__":
    main(Path(sys.argv[1]))
