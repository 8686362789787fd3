"""One rank of ``benchmarks.scaling``: trains a network step by step over links of several speeds and writes times.

Started by it inside a network namespace. Every rank slows its own link; all speeds take turns within one process, so
that whatever else the machine does falls on all of them.
"""

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.scaling_links import sent_bytes, shape
from simcast_hpc.config import SimVPConfig, TrainConfig, from_mapping
from simcast_hpc.distributed.engine import build_engine, set_learning_rate
from simcast_hpc.distributed.process_group import TorchRanks, join_process_group
from simcast_hpc.models import build_model

SIZE, FRAMES_IN, FRAMES_OUT = 24, 6, 6
THREADS = 1  # of each rank
NETWORK = SimVPConfig(hidden_spatial=16, hidden_temporal=160, temporal_blocks=4, groups=4)


class Module(torch.nn.Module):
    """The network and a squared error; frames in and out are one micro batch."""

    def __init__(self):
        super().__init__()
        self.model = build_model(NETWORK, frames_in=FRAMES_IN, frames_out=FRAMES_OUT)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Return the loss of frames ``[B, T + T', 1, H, W]``."""
        past, coming = frames[:, :FRAMES_IN], frames[:, FRAMES_IN:]
        made = self.model(past.to(next(self.model.parameters()).dtype))
        return (made.float() - coming).square().mean()


def parameters() -> int:
    """Return the network's parameters."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Module().parameters())


def config_of(engine: dict[str, Any], batch: dict[str, int]) -> TrainConfig:
    """Return a run's configuration with this engine and batch."""
    base = {"name": "scaling", "run_dir": "unset", "stage": "direct", "engine": engine, "batch": batch}
    return from_mapping(TrainConfig, base)


def main(task: dict[str, Any], out: Path) -> None:
    """Time every engine of the task at every speed, in turns, and let rank 0 write the rows."""
    torch.set_num_threads(THREADS)
    ranks = join_process_group(timeout_minutes=10)
    rows = []
    for held in task["engines"]:
        torch.manual_seed(0)
        engine = build_engine(Module(), config_of(held, task["batch"]), ranks)
        set_learning_rate(engine, 1e-3)
        shape(None)
        for _ in range(2):
            _step(engine, task["batch"]["micro_size"])
        for turn in range(task["turns"]):
            for megabits in task["megabits"]:
                rows.append(_timed(engine, ranks, task, held, megabits) | {"turn": turn})
        shape(None)
        ranks.barrier()
    if ranks.is_first:
        out.write_text(json.dumps(rows), encoding="utf-8")
    ranks.leave()


def _timed(engine: Any, ranks: TorchRanks, task: dict[str, Any], held: dict[str, Any], megabits: float | None) -> dict:
    shape(megabits)
    ranks.barrier()
    clocks, sent, worked = [], sent_bytes(), time.process_time()
    for _ in range(task["steps"]):
        began = time.perf_counter()
        _step(engine, task["batch"]["micro_size"])
        ranks.barrier()
        clocks.append(time.perf_counter() - began)
    worked = (time.process_time() - worked) / task["steps"]
    sent = (sent_bytes() - sent) / task["steps"]
    every = ranks.gather((median(clocks), worked, sent))
    seconds, processor, wire = (max(one) for one in zip(*every, strict=True))
    return {**held, "megabits": megabits, "seconds": seconds, "processor_seconds": processor, "sent_bytes": wire}


def _step(engine: Any, micro: int) -> None:
    for _ in range(engine.gradient_accumulation_steps()):
        loss = engine(torch.zeros(micro, FRAMES_IN + FRAMES_OUT, 1, SIZE, SIZE))
        engine.backward(loss)
        engine.step()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
