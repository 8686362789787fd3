"""Run on one CPU rank: offloaded gradients arrive on the host late, as on a busy GPU, and one of them is not finite.

A copy with ``non_blocking=True`` is executed only when an event recorded after it is waited for. Writes one JSON line
per ZeRO stage to ``stages.jsonl`` in the folder, which ``test_offloaded_gradients.py`` checks.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator

from simcast_hpc.distributed.engine import build_engine, set_learning_rate
from simcast_hpc.distributed.named_tensors import read_parameters
from simcast_hpc.distributed.process_group import join_process_group
from simcast_hpc.train.loop import DeviceBatch, NonFiniteGuard, NonFiniteLossError, train
from simcast_hpc.train.stage_engine import StageEngine
from tests.archives import tiny_config

_pending: list[Any] = []


class _Event:
    def record(self, _stream: Any = None) -> None: ...

    def synchronize(self) -> None:
        while _pending:
            _pending.pop(0)()


class _Stream:
    def wait_event(self, _event: Any) -> None: ...

    def wait_stream(self, _stream: Any) -> None: ...


def _delay_copies() -> None:
    accelerator = type(get_accelerator())
    accelerator.resolves_data_dependency = lambda _self: False
    accelerator.Event = property(lambda _self: _Event)
    accelerator.current_stream = lambda _self, *_: _Stream()
    torch.Tensor.record_stream = lambda _self, _stream: None
    copy = torch.Tensor.copy_

    def copy_later(self: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if not non_blocking:
            return copy(self, source)
        value = source.detach().clone()
        _pending.append(lambda: copy(self, value))
        return self

    torch.Tensor.copy_ = copy_later


class _Square(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, bad: bool) -> torch.Tensor:
        _Event().synchronize()  # the device executes copies and kernels in order; only the host may be early
        loss = self.model(x.to(self.model.weight.dtype)).float().square().mean()
        # The derivative of sqrt at 0 is infinite and is multiplied by 0; the loss is finite.
        return loss + torch.sqrt(self.model.weight.float().sum() * 0.0) if bad else loss


def _batches(steps: list[bool]) -> Iterator[DeviceBatch]:
    for bad in steps:
        yield DeviceBatch((torch.ones(2, 4), bad), names=lambda: ["window"])


def main(folder: Path) -> None:
    """Train two finite steps and one with a non-finite gradient: stop, then skip it and take one more."""
    ranks = join_process_group(timeout_minutes=1)
    _delay_copies()
    for stage in (1, 2):
        options = {"zero_stage": stage, "precision": "bf16", "offload": "optimizer"}
        config = tiny_config(folder, engine=options, batch={"global_size": 2, "micro_size": 2})
        case: dict[str, Any] = {"stage": stage}
        for name, guard, steps in (
            ("stop", NonFiniteGuard(), [False, False, True]),
            ("skip", NonFiniteGuard(max_skipped=1), [False, False, True, False]),
            ("never", NonFiniteGuard(), [False, False, False]),
        ):
            torch.manual_seed(0)
            engine = build_engine(_Square(), config, ranks)
            set_rate = lambda _step, engine=engine: set_learning_rate(engine, 0.1)  # noqa: E731
            loop = {"first_step": 0, "max_steps": len(steps), "before_step": set_rate, "guard": guard}
            try:
                train(StageEngine(engine), _batches(steps), **loop)
                case[name] = ""
            except NonFiniteLossError as error:
                case[name] = str(error)
            case[f"weights after {name}"] = {key: value.tolist() for key, value in read_parameters(engine)}
        with (folder / "stages.jsonl").open("a") as file:
            file.write(json.dumps(case) + "\n")
    ranks.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
