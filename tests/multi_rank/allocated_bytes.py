"""Run on two ranks: measure the bytes of all live tensors of a rank in training, for each memory option.

Rank 0 appends one JSON line per case to ``bytes.jsonl``; ``test_allocated_bytes.py`` compares them. Device and host of
a rank are both the CPU's memory here, so their sum is measured.
"""

import gc
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from simcast_hpc.distributed.engine import build_engine, set_learning_rate
from simcast_hpc.distributed.process_group import TorchRanks, end_rank, join_process_group
from tests.archives import tiny_config

WIDTH, LAYERS = 512, 8
CASES = [
    {"zero_stage": 0, "precision": "fp32"},
    *[{"zero_stage": stage, "precision": precision} for precision in ("fp32", "bf16") for stage in (1, 2, 3)],
    {"zero_stage": 1, "precision": "fp32", "offload": "optimizer"},
    {"zero_stage": 2, "precision": "bf16", "offload": "optimizer"},
    {"zero_stage": 3, "precision": "bf16", "offload": "parameters"},
    {"zero_stage": 3, "precision": "bf16", "zero_hpz_partition_size": 2},
]


class Layers(torch.nn.Module):
    """Linear layers, whose weights are much larger than their activations."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.look = lambda: None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a loss; ``look`` is called late in the backward pass, when the gradients of the last layers exist."""
        x = x.to(self.layers[0].weight.dtype)
        for number, layer in enumerate(self.layers):
            x = torch.relu(layer(x))
            if number == 0:
                x.register_hook(lambda _: self.look())
        return x.float().square().mean()


def living() -> dict[int, int]:
    """Return the bytes of every tensor storage of this process, by its address."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some objects warn when they are inspected
        tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
        storages = [tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu"]
    return {storage._cdata: storage.nbytes() for storage in storages}


@contextmanager
def observed_reductions(look: Callable[[], None]) -> Iterator[None]:
    """Call ``look`` at each all-reduce of the block: DeepSpeed's copies for a reduction exist only there."""
    reduce = torch.distributed.all_reduce

    def observed(*arguments: Any, **options: Any) -> Any:
        look()
        return reduce(*arguments, **options)

    torch.distributed.all_reduce = observed
    try:
        yield
    finally:
        torch.distributed.all_reduce = reduce


def peak_bytes(options: dict[str, object], ranks: TorchRanks, folder: Path) -> int:
    """Return the peak bytes of a step of two micro-batches."""
    gc.collect()
    before = living()
    config = tiny_config(folder, engine=options, batch={"global_size": 16, "micro_size": 4})
    module = Layers()
    engine = build_engine(module, config, ranks)
    set_learning_rate(engine, 0.1)
    seen: list[int] = []

    def look() -> None:
        seen.append(sum(size for key, size in living().items() if key not in before))

    for step in range(2):
        module.look = look if step else lambda: None
        for _ in range(2):
            loss = engine(torch.randn(4, WIDTH))
            with observed_reductions(module.look):
                engine.backward(loss)
            module.look()
            engine.step()
    return max(seen)


def main(folder: Path) -> None:
    """Measure all cases."""
    ranks = join_process_group(timeout_minutes=2)
    torch.set_num_threads(1)
    for options in CASES:
        peak = peak_bytes(options, ranks, folder)
        if ranks.is_first:
            with (folder / "bytes.jsonl").open("a") as file:
                file.write(json.dumps({"engine": options, "bytes": peak}) + "\n")
    ranks.leave()
    end_rank(0)  # Gloo's threads can abort the shutdown of the interpreter


if __name__ == "__main__":
    main(Path(sys.argv[1]))
