"""Preparation of shards in tests: in this process, or by ranks under ``mpiexec``."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.prepare import Recipe, open_raw, prepare
from simcast_hpc.distributed.ranks import SingleRank

_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "PMI_", "OMPI_", "SLURM_", "MASTER_")


def prepared(raw: Path, into: Path, *, dataset: str = "synthetic", **recipe) -> Path:
    """Prepare shards of three events in this process."""
    spec = read_spec(dataset)
    prepare(lambda: open_raw(spec, raw), into, Recipe(**({"events_per_shard": 3} | recipe)), SingleRank())
    return into


def command(raw: Path, into: Path, *more: str, ranks: int = 1, dataset: str = "sevir") -> list[str]:
    """Return the command line that prepares shards with ``ranks`` processes."""
    simcast = [sys.executable, "-m", "simcast_hpc", "data", "prepare", str(raw), str(into), "--dataset", dataset, *more]
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return simcast if ranks == 1 else [str(mpiexec), "-n", str(ranks), *simcast]


def environment() -> dict[str, str]:
    """Return the environment of this process without the variables of launchers."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHERS)}


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command and return its result."""
    return subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=300, check=False)


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a folder by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
