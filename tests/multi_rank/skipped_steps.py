"""Run on two ranks: a step with a non-finite gradient under every ZeRO stage, and the state before and after it.

Rank 0 writes one JSON line per case to ``cases.jsonl`` in the folder; ``test_non_finite.py`` checks them. Not printed:
a launcher may mix the lines of two ranks.
"""

import json
import sys
from pathlib import Path

import torch

from simcast_hpc.distributed.engine import build_engine, set_learning_rate
from simcast_hpc.distributed.gradients import gradients_are_finite, skip_step
from simcast_hpc.distributed.named_tensors import read_state
from simcast_hpc.distributed.process_group import TorchRanks, end_rank, join_process_group
from tests.archives import tiny_config

PLAIN = [(0, "fp32"), (1, "fp32"), (1, "bf16"), (2, "fp32"), (2, "bf16"), (3, "fp32"), (3, "bf16")]
CASES = [
    *[{"zero_stage": stage, "precision": precision} for stage, precision in PLAIN],
    {"zero_stage": 1, "precision": "fp32", "offload": "optimizer"},
    {"zero_stage": 2, "precision": "bf16", "offload": "optimizer"},
    {"zero_stage": 3, "precision": "fp32", "offload": "parameters"},
    {"zero_stage": 3, "precision": "bf16", "offload": "optimizer", "zero_hpz_partition_size": 2},
]


class Line(torch.nn.Module):
    """A mean square; 7 and 3 features, so that the parameters are not divisible by the ranks."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(7, 3), torch.nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x.to(self.first.weight.dtype))
        return self.second(hidden).float().square().mean()


def _step(engine, ranks: TorchRanks, number: int, *, bad: bool) -> bool:
    """Take a step of two micro-batches, with a NaN gradient on rank 1 if ``bad``; return whether it was finite."""
    finite = True
    for micro in range(2):
        generator = torch.Generator().manual_seed(100 * number + 10 * micro + ranks.rank)
        loss = engine(torch.randn(4, 7, generator=generator))
        spoilt = bad and micro == 1 and ranks.rank == 1
        engine.backward(loss * float("nan") if spoilt else loss)
        if micro == 1:
            finite = not ranks.maximum((~gradients_are_finite(engine)).float().reshape(1))[0]
        if finite:
            engine.step()
        else:
            skip_step(engine)
    return finite


def _state(engine) -> dict[str, torch.Tensor]:
    return {f"{key}/{name}": tensor.clone() for name, tensors in read_state(engine) for key, tensor in tensors.items()}


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


def main(folder: Path) -> None:
    """Run all cases."""
    ranks = join_process_group(timeout_minutes=2)
    for options in CASES:
        config = tiny_config(folder, engine=options, batch={"global_size": 16, "micro_size": 4})
        states, seen, untouched = [], [], False
        for steps in ([False, False], [False, True, False]):
            torch.manual_seed(0)
            engine = build_engine(Line(), config, ranks)
            set_learning_rate(engine, 0.1)
            for place, bad in enumerate(steps):
                before = _state(engine) if bad else None
                seen.append(_step(engine, ranks, 0 if place == 0 else 9, bad=bad))
                if before is not None:
                    untouched = _equal(before, _state(engine))
            states.append(_state(engine))
        if ranks.is_first:
            case = {"engine": options, "finite": seen, "untouched": untouched}
            with (folder / "cases.jsonl").open("a") as file:
                file.write(json.dumps({**case, "same after": _equal(*states)}) + "\n")
    ranks.leave()
    end_rank(0)  # Gloo's threads can abort the shutdown of the interpreter


if __name__ == "__main__":
    main(Path(sys.argv[1]))
