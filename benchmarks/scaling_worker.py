"""One rank of ``benchmarks.scaling``, started in a network namespace: trains over links of several rates, writes times.

Every rank limits the rate of its own link; all rates alternate within one process, so that other load affects all.
"""

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.measurements import time_call
from benchmarks.scaling_links import sent_bytes, shape
from simcast_hpc.config import SimVPConfig, TrainConfig, from_mapping
from simcast_hpc.distributed.engine import build_engine, set_learning_rate
from simcast_hpc.distributed.process_group import TorchRanks, join_process_group
from simcast_hpc.models import build_model

SIZE, FRAMES_IN, FRAMES_OUT = 24, 6, 6
THREADS = 1  # per rank
NETWORK = SimVPConfig(hidden_spatial=16, hidden_temporal=160, temporal_blocks=4, groups=4)


class Module(torch.nn.Module):
    """The network and the MSE of its forecast."""

    def __init__(self):
        super().__init__()
        self.model = build_model(NETWORK, frames_in=FRAMES_IN, frames_out=FRAMES_OUT)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Return the loss of frames ``[B, T + T', 1, H, W]``."""
        inputs, target = frames[:, :FRAMES_IN], frames[:, FRAMES_IN:]
        forecast = self.model(inputs.to(next(self.model.parameters()).dtype))
        return (forecast.float() - target).square().mean()


def parameters() -> int:
    """Return the number of parameters of the network."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Module().parameters())


def config_of(engine: dict[str, Any], batch: dict[str, int], *, spatial: int = 1) -> TrainConfig:
    """Return the configuration of a run with this engine and batch, and ``spatial`` ranks per sample."""
    base = {"name": "scaling", "run_dir": "unset", "stage": "direct", "engine": engine, "batch": batch}
    return from_mapping(TrainConfig, base | {"parallel": {"spatial": spatial}})


def main(task: dict[str, Any], out: Path) -> None:
    """Time every engine of the task at every rate in alternation; rank 0 writes the rows."""
    torch.set_num_threads(THREADS)
    ranks = join_process_group(timeout_minutes=10)
    rows = []
    for options in task["engines"]:
        torch.manual_seed(0)
        engine = build_engine(Module(), config_of(options, task["batch"]), ranks)
        set_learning_rate(engine, 1e-3)
        shape(None)
        for _ in range(2):
            _step(engine, task["batch"]["micro_size"])
        for turn in range(task["turns"]):
            for megabits in task["megabits"]:
                rows.append(_time(engine, ranks, task, options, megabits) | {"turn": turn})
        shape(None)
        ranks.barrier()
    if ranks.is_first:
        out.write_text(json.dumps(rows), encoding="utf-8")
    ranks.leave()


def _time(
    engine: Any, ranks: TorchRanks, task: dict[str, Any], options: dict[str, Any], megabits: float | None
) -> dict:
    shape(megabits)
    ranks.barrier()

    def step() -> None:
        _step(engine, task["batch"]["micro_size"])
        ranks.barrier()

    sent = sent_bytes()
    times = [time_call(step) for _ in range(task["steps"])]
    sent = (sent_bytes() - sent) / task["steps"]
    means = median(time.wall for time in times), sum(time.cpu for time in times) / task["steps"], sent
    seconds, cpu, sent = (max(values) for values in zip(*ranks.gather(means), strict=True))
    return {**options, "megabits": megabits, "seconds": seconds, "processor_seconds": cpu, "sent_bytes": sent}


def _step(engine: Any, micro: int) -> None:
    for _ in range(engine.gradient_accumulation_steps()):
        loss = engine(torch.zeros(micro, FRAMES_IN + FRAMES_OUT, 1, SIZE, SIZE))
        engine.backward(loss)
        engine.step()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
