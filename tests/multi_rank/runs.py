"""Start training runs as processes by every launcher, and read their outputs."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from simcast_hpc.config import TrainConfig, read_config
from simcast_hpc.train import trainer
from tests.generative_runs import OneRank

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


def validated(run_dir: Path, score: str) -> dict[int, float]:
    """Return a validation score of a run by optimizer step."""
    key = f"validation/{score}"
    return {int(line["step"]): line[key] for line in metrics(run_dir) if key in line}


def best_scores(run_dir: Path) -> tuple[float, float]:
    """Return the best validation score of a finished run, as its ranks logged it and as one rank computes it.

    The rank computes it from the exported weights, in this process on one thread.
    """
    selection = json.loads((run_dir / "DONE.json").read_text(encoding="utf-8"))["validation"]
    config = read_config(TrainConfig, run_dir / "config.yaml")
    engine = config.engine.model_copy(update={"zero_hpz_partition_size": 1})
    validation = trainer.plan(config.model_copy(update={"engine": engine})).validation
    assert validation is not None and selection["exported_step"] == selection["best_step"]
    ranks: Any = OneRank()
    validation.prepare(ranks)
    scores = validation.scores(weights(run_dir), ranks)
    assert validated(run_dir, selection["score"])[selection["best_step"]] == selection["best_value"]
    return selection["best_value"], scores[selection["score"]]


def weights(run_dir: Path) -> dict[str, Tensor]:
    """Return the exported weights of a run."""
    return load_file(run_dir / "weights" / "model.safetensors")
