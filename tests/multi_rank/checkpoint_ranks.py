"""Save and restore checkpoints of a small module on forked ranks, with and without failures of one rank.

The module has parameters of odd sizes: fewer elements than ranks, and none at all. DeepSpeed broadcasts no scalars. A
job is a number of ranks and a list of actions; each rank writes what an action returned, or its error, to
``result-RANKS-RANK.json``.
"""

import json
import multiprocessing
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from simcast_hpc.config import EMAConfig, SimcastError
from simcast_hpc.distributed.engine import build_engine, set_learning_rate
from simcast_hpc.distributed.partitions import write_fragments
from simcast_hpc.distributed.process_group import TorchRanks, import_deepspeed, join_process_group
from simcast_hpc.train import checkpoint as checkpoints
from simcast_hpc.train import checkpoint_files
from simcast_hpc.train.checkpoint import CheckpointWriter, newest_intact
from simcast_hpc.train.checkpoint_files import Checkpoint
from simcast_hpc.train.ema import EMA
from tests.archives import tiny_config
from tests.multi_rank.runs import free_port

_TIMEOUT_SECONDS = 300
_IDENTITY = {"seed": 1}


class Module(torch.nn.Module):
    """Parameters of odd shapes, all of which a loss depends on."""

    def __init__(self, *, empty: bool):
        super().__init__()
        torch.manual_seed(0)
        shapes = {"weight": (7, 11), "bias": (3,), "one": (1,), "large": (5, 3, 9)}
        if empty:
            shapes["empty"] = (0, 4)
        for name, shape in shapes.items():
            self.register_parameter(name, torch.nn.Parameter(torch.randn(shape)))

    def forward(self, factor: torch.Tensor) -> torch.Tensor:
        """Return a scalar loss."""
        return sum(((one.float() * factor.float()).sin().sum() for one in self.parameters()), torch.zeros(()))


def _engine(ranks: TorchRanks, stage: int, *, empty: bool = False, hpz: int = 1) -> tuple[Any, EMA]:
    options = {"zero_stage": stage, "precision": "bf16" if stage else "fp32", "zero_hpz_partition_size": hpz}
    config = tiny_config(
        Path("unused"), engine=options, batch={"global_size": ranks.size, "micro_size": 1}, ema={"decay": 0.9}
    )
    engine = build_engine(Module(empty=empty), config, ranks)
    return engine, EMA(EMAConfig(decay=0.9), engine, ranks)


def _train(engine: Any, ema: EMA) -> None:
    set_learning_rate(engine, 1e-2)
    for step in (1, 2):
        engine.backward(engine(torch.tensor(0.5 + step)))
        engine.step()
        ema(step, None)


def _restore(found: Checkpoint, engine: Any, ema: EMA, ranks: TorchRanks) -> None:
    write_fragments(engine, found.read, ranks, step=found.step, warm_up=lambda: engine(torch.tensor(1.0)))
    with ranks.together(checkpoints.CheckpointError):
        ema.restore(lambda name, start, length: found.read("ema", name, start, length))


def _writer(folder: Path, ranks: TorchRanks) -> CheckpointWriter:
    return CheckpointWriter(folder, keep=9, ranks=ranks, timeout_minutes=4)


def save(ranks: TorchRanks, folder: str, *, stage: int, **options: Any) -> None:
    """Train two steps and save them; the moments and averages differ from zero."""
    engine, ema = _engine(ranks, stage, **options)
    _train(engine, ema)
    writer = _writer(Path(folder), ranks)
    writer.save(engine, step=2, samples_seen=2, identity=_IDENTITY, average=ema.tensors)
    writer.wait()


def copy(ranks: TorchRanks, folder: str, target: str, *, stage: int, **options: Any) -> dict[str, Any]:
    """Restore a checkpoint into an engine of this layout and save it again; return what this rank read.

    The weights of the forward pass are compared with the master weights through the loss of the engine.
    """
    engine, ema = _engine(ranks, stage, **options)
    found = newest_intact(Path(folder), ranks)
    assert found is not None
    _restore(found, engine, ema, ranks)
    read = {"opened": found.opened, "bytes": found.bytes_read}
    writer = _writer(Path(target), ranks)
    writer.save(engine, step=2, samples_seen=2, identity=_IDENTITY, average=ema.tensors)
    with torch.no_grad():
        loss = engine(torch.tensor(0.3)).item()
    writer.wait()
    reference = Module(empty=options.get("empty", False))
    dtype = torch.bfloat16 if stage else torch.float32
    with torch.no_grad():
        for name, one in reference.named_parameters():
            one.copy_(found.tensors(name)["param"].to(dtype))
        expected = reference(torch.tensor(0.3)).item()
    return {**read, "loss": loss, "expected": expected}


def fail_to_write(ranks: TorchRanks, folder: str, *, stage: int, rank: int) -> None:
    """Save while one rank can write neither its share nor the mark of its failure."""

    def full(path: Path, *_args: Any, **_named: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    write, touch = checkpoints.write_tensors, Path.touch
    if ranks.rank == rank:
        checkpoints.write_tensors = Path.touch = full  # pyright: ignore[reportAttributeAccessIssue]
    try:
        save(ranks, folder, stage=stage)
    finally:
        checkpoints.write_tensors, Path.touch = write, touch


def fail_to_read(ranks: TorchRanks, folder: str, *, stage: int, rank: int, kind: str) -> None:
    """Restore while one rank cannot read the elements of one kind."""
    engine, ema = _engine(ranks, stage)
    found = newest_intact(Path(folder), ranks)
    assert found is not None
    if ranks.rank == rank:
        path = found.path / found.manifest["files"][0]["file"]
        elements = found._elements

        def broken(name: str, key: str, *rest: Any) -> torch.Tensor:
            if key.startswith(f"{kind}/"):
                raise checkpoints.CheckpointError(f"{path}: {key} cannot be read: [Errno 5] Input/output error")
            return elements(name, key, *rest)

        found._elements = broken  # pyright: ignore[reportAttributeAccessIssue]
    _restore(found, engine, ema, ranks)


def fail_to_verify(ranks: TorchRanks, folder: str, *, rank: int, error: int) -> None:
    """Look for a checkpoint while one rank may not read the files of its share, or not the manifest of any."""

    def denied(path: Path, **_named: Any) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    file_hash, read = checkpoint_files.file_hash, checkpoint_files.read_json_file
    if ranks.rank == rank:
        checkpoint_files.file_hash = denied
        if error == 2:
            checkpoint_files.read_json_file = denied  # pyright: ignore[reportAttributeAccessIssue]
    try:
        newest_intact(Path(folder), ranks)
    finally:
        checkpoint_files.file_hash, checkpoint_files.read_json_file = file_hash, read


ACTIONS = {action.__name__: action for action in (save, copy, fail_to_write, fail_to_read, fail_to_verify)}


def _rank(size: int, folder: Path, actions: list[list[Any]], rank: int, port: int) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    results = []
    try:
        ranks = join_process_group(timeout_minutes=4)
        for name, arguments, options in actions:
            start = time.monotonic()
            try:
                result = {"returned": ACTIONS[name](ranks, *arguments, **options)}
            except SimcastError as error:
                result = {"error": f"{type(error).__name__}: {error}"}
            results.append({**result, "seconds": time.monotonic() - start})
            ranks.barrier()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    (folder / f"result-{size}-{rank}.json").write_text(json.dumps(results), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)


def main(path: Path) -> None:
    """Run the jobs of a JSON file, one after another."""
    torch.set_num_threads(1)
    import_deepspeed()
    for size, actions in json.loads(path.read_text(encoding="utf-8")):
        fork, port = multiprocessing.get_context("fork"), free_port()
        ranks = [fork.Process(target=_rank, args=(size, path.parent, actions, rank, port)) for rank in range(size)]
        for rank in ranks:
            rank.start()
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while any(one.exitcode is None for one in ranks) and not any(one.exitcode for one in ranks):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        for one in ranks:
            if one.exitcode is None:
                one.kill()
            one.join()
        if failed := [number for number, one in enumerate(ranks) if one.exitcode]:
            raise SystemExit(f"ranks {failed} of {size} failed or waited too long")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
