"""``simcast doctor`` on two ranks per launcher, out of one process that has imported everything once.

``python -m tests.distributed.doctor_ranks JOBS.json FOLDER``: a job is a name and the variables of each rank. A rank
writes ``NAME-RANK.json``: its exit status and the JSON that the command prints, null on ranks that print none.
"""

import contextlib
import io
import json
import multiprocessing
import os
import sys
from pathlib import Path

import typer

from simcast_hpc.commands.doctor import doctor
from simcast_hpc.distributed.process_group import import_deepspeed


def _rank(name: str, rank: int, variables: dict[str, str], folder: Path) -> None:
    os.environ.update(variables)
    status, output = 0, io.StringIO()
    with contextlib.redirect_stdout(output):
        try:
            doctor(run_dir=folder, min_free_gib=0.0, data=None, ranks=True, as_json=True, timeout_minutes=0.5)
        except typer.Exit as end:
            status = end.exit_code
    printed = json.loads(output.getvalue() or "null")
    (folder / f"{name}-{rank}.json").write_text(json.dumps([status, printed]), encoding="utf-8")
    sys.stderr.flush()
    os._exit(0)  # without the parent's exit handlers


def main(jobs: Path, folder: Path) -> None:
    """Run the jobs of a file, one after another."""
    import_deepspeed()
    fork = multiprocessing.get_context("fork")
    for name, variables in json.loads(jobs.read_text(encoding="utf-8")).items():
        ranks = [fork.Process(target=_rank, args=(name, rank, own, folder)) for rank, own in enumerate(variables)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(timeout=60)
            rank.kill()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
