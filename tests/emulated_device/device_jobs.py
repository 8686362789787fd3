"""Run commands of ``simcast`` on the emulated device, one after another, in processes forked from one.

``python -m tests.emulated_device.device_jobs JOBS.json`` imports PyTorch, DeepSpeed and the project once. A job has a
name, the arguments of ``simcast``, and one mapping of environment variables per rank. The status of its ranks and what
they print is written to ``NAME.json`` in the folder of the file. With DEVICE_LIBRARY empty the jobs run on the CPU.
"""

import json
import multiprocessing
import os
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

_TIMEOUT_SECONDS = 120


def _rank(job: dict[str, Any], rank: int, folder: Path) -> None:
    log = os.open(folder / f"{job['name']}-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ.update(job["ranks"][rank])
    if os.environ["DEVICE_LIBRARY"]:
        from tests.emulated_device.emulated_cuda import list_synchronizations, show_devices

        show_devices()
        if os.environ.get("LIST_SYNCHRONIZATIONS"):
            list_synchronizations(folder / f"{job['name']}-{rank}.synchronizations")
    sys.argv = ["simcast", *job["arguments"]]
    from simcast_hpc import cli

    status: Any = 0
    try:
        cli.main()
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)  # without the parent's exit handlers


def _run(job: dict[str, Any], folder: Path) -> None:
    if "copy" in job:  # a checkpoint, from which the run resumes
        shutil.copytree(*job["copy"])
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=_rank, args=(job, rank, folder)) for rank in range(len(job["ranks"]))]
    begin = time.monotonic()
    for rank in ranks:
        rank.start()
    while time.monotonic() - begin < _TIMEOUT_SECONDS and any(rank.exitcode is None for rank in ranks):
        wait([rank.sentinel for rank in ranks if rank.exitcode is None], timeout=1)
    for rank in ranks:
        if rank.exitcode is None:
            rank.kill()
        rank.join()
    output = [(folder / f"{job['name']}-{rank}.txt").read_text(encoding="utf-8") for rank in range(len(ranks))]
    result = {
        "status": [rank.exitcode for rank in ranks], "output": output, "seconds": round(time.monotonic() - begin, 1),
    }  # fmt: skip
    (folder / f"{job['name']}.json").write_text(json.dumps(result), encoding="utf-8")


def main(arguments: Sequence[str]) -> None:
    """Run the jobs of a file."""
    if library := os.environ["DEVICE_LIBRARY"]:
        from tests.emulated_device.emulated_cuda import start

        start(Path(library))
    from simcast_hpc import cli  # noqa: F401  imported before the forks
    from simcast_hpc.distributed.process_group import import_deepspeed
    from simcast_hpc.train import trainer  # noqa: F401

    import_deepspeed()
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  each engine would import it, and inductor with it

    path = Path(arguments[0])
    for job in json.loads(path.read_text(encoding="utf-8")):
        _run(job, path.parent)


if __name__ == "__main__":
    main(sys.argv[1:])
