"""Start training runs as processes by every launcher, and read their outputs."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

BIN = Path(sys.executable).parent
_TIMEOUT_SECONDS = 240


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command(launcher: str, ranks: int) -> list[str]:
    """Return the start of the command line of ``python -m simcast_hpc`` under a launcher."""
    if launcher == "python":
        return [sys.executable, "-m", "simcast_hpc"]
    if launcher == "torchrun":
        return [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", str(ranks), "-m", "simcast_hpc"]
    if launcher == "deepspeed":
        place = ["--num_accelerators", str(ranks), "--master_port", str(free_port())]
        return [sys.executable, str(BIN / "deepspeed"), *place, "--module", "simcast_hpc"]
    if launcher == "mpiexec":
        return [str(BIN / "mpiexec"), "-n", str(ranks), sys.executable, "-m", "simcast_hpc"]
    raise ValueError(f"no launcher {launcher!r}")


def environment() -> dict[str, str]:
    """Return the environment without variables of launchers and of the kernel tests."""
    ours = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TRITON_INTERPRET")
    kept = {key: value for key, value in os.environ.items() if key not in ours}
    return kept | {"OMP_NUM_THREADS": "1", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def simcast(
    launcher: str, ranks: int, arguments: Sequence[str], *, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run ``simcast`` with a launcher to its end; a failure shows what it printed."""
    done = subprocess.run(
        [*command(launcher, ranks), *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )
    assert not check or done.returncode == 0, f"{done.args}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done


def two_ranks(module: str, *arguments: str) -> None:
    """Run a module of tests on two ranks of ``mpiexec`` to its end; a failure shows what it printed."""
    result = subprocess.run(
        [str(BIN / "mpiexec"), "-n", "2", sys.executable, "-m", module, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]


def overrides(**values: object) -> list[str]:
    """Return ``--set`` options; a double underscore stands for the dot."""
    return [word for key, value in values.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]


def losses(run_dir: Path) -> list[float]:
    """Return the loss of every optimizer step that a run logged."""
    return [line["loss"] for line in metrics(run_dir) if "loss" in line]


def metrics(run_dir: Path) -> list[dict[str, float]]:
    """Return the logged metrics of a run, one mapping per line."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(run_dir: Path) -> dict[str, Tensor]:
    """Return the exported weights of a run."""
    return load_file(run_dir / "weights" / "model.safetensors")
