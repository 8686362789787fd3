"""Many small training runs, each on ranks of its own, out of one process that has imported everything once.

``python -m tests.multi_rank.forked_ranks JOBS.json`` forks the ranks of one run after another, as torchrun would
start them: a process each, its rank in the environment. Importing torch and DeepSpeed takes seconds, such a run half
of one.

A job names its configuration, ``--set`` overrides, number of ranks, a checkpoint to begin from, and a folder for what
the ranks print and for ``windows-RANK.json``: the windows of a rank's micro-batches, in their order.
"""

import json
import multiprocessing
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from simcast_hpc.config import TrainConfig, read_config
from simcast_hpc.distributed.process_group import import_deepspeed
from simcast_hpc.train import trainer as training
from simcast_hpc.train.loop import DeviceBatch
from tests.multi_rank.runs import free_port

_TIMEOUT_SECONDS = 120


def _recorded(batches: Iterator[DeviceBatch], into: list[list[str]]) -> Iterator[DeviceBatch]:
    for prepared in batches:
        into.append(prepared.names())
        yield prepared


def _rank(job: dict[str, Any], rank: int, port: int) -> None:
    """Train as one rank; the exit status of the process is 0 on success."""
    ranks, folder = job["ranks"], Path(job["folder"])
    log = os.open(folder / f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    windows: list[list[str]] = []
    prepare = training._device_batches
    training._device_batches = lambda *args, **kwargs: _recorded(prepare(*args, **kwargs), windows)
    try:
        training.run(read_config(TrainConfig, Path(job["config"]), [*job["set"], f"run_dir={job['run_dir']}"]))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    (folder / f"windows-{rank}.json").write_text(json.dumps(windows), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # without the parent's exit handlers


def _train(job: dict[str, Any]) -> None:
    Path(job["folder"]).mkdir(parents=True)
    if job["resumes"] is not None:
        whole = Path(job["resumes"])
        shutil.copytree(whole, Path(job["run_dir"]) / "checkpoints" / whole.name)
    fork, port = multiprocessing.get_context("fork"), free_port()
    ranks = [fork.Process(target=_rank, args=(job, rank, port)) for rank in range(job["ranks"])]
    for rank in ranks:
        rank.start()
    try:
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while time.monotonic() < deadline and any(rank.exitcode is None for rank in ranks):
            if any(rank.exitcode for rank in ranks):
                break  # the others would wait for it forever
            wait([rank.sentinel for rank in ranks if rank.exitcode is None], timeout=1)
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
    if failed := [number for number, rank in enumerate(ranks) if rank.exitcode]:
        output = (Path(job["folder"]) / f"log-{failed[0]}.txt").read_text(encoding="utf-8")
        raise SystemExit(f"ranks {failed} of {job} failed; rank {failed[0]} printed:\n{output[-4000:]}")


def main(jobs: Path) -> None:
    """Run the training runs of a file."""
    import_deepspeed()
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  each engine would import it, and inductor with it

    for job in json.loads(jobs.read_text(encoding="utf-8")):
        _train(job)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
