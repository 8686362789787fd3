"""Small training runs as jobs of a real Slurm: their configuration, submission and ranks."""

import sys
from pathlib import Path

import psutil

from tests.multi_rank.runs import losses
from tests.slurm.real_cluster import REPOSITORY, RealCluster

TINY = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--time=20")
SHARED = {
    "name": "tiny",
    "run_dir": "unset",
    "data": {"dataset": "synthetic", "window_stride": 4},
    "sequence": {"frames_in": 4, "frames_out": 4, "teacher_frames_out": 2},
    "model": {"hidden_spatial": 4, "hidden_temporal": 16, "temporal_blocks": 2, "groups": 2},
    "batch": {"global_size": 4, "micro_size": 2},
    "engine": {"precision": "fp32", "timeout_minutes": 3.0},
    "log": {"every_steps": 1},
}


class Job:
    """A submitted script, its run directory and its log."""

    def __init__(
        self,
        cluster: RealCluster,
        archive: Path,
        run_dir: Path,
        script: str,
        *arguments: str,
        options: tuple[str, ...] = (*TINY, "--gpus-per-node=1"),
        **variables,
    ):
        self.cluster, self.run_dir, self.log = cluster, run_dir, run_dir.with_name(f"{run_dir.name}.log")
        defaults = {
            "PYTHON": sys.executable,
            "DATA_ROOT": str(archive),
            "RUN_DIR": str(run_dir),
            "CHECK_NODES": "0",
            "MIN_FREE_GIB": "0.1",
        }
        script = str(REPOSITORY / "slurm" / script)
        self.number = cluster.submit(*options, f"--output={self.log}", script, *arguments, **(defaults | variables))

    def end(self, seconds: float = 300) -> tuple[str, int]:
        """Wait for the end and return state and status; print the end of the log."""
        ended = self.cluster.end(self.number, seconds=seconds)
        print(self.output()[-6000:])
        return ended

    def output(self) -> str:
        """Return the content of the log."""
        return self.log.read_text(encoding="utf-8") if self.log.is_file() else ""

    def wait_for_step(self, step: int, *, restarts: int = 0) -> None:
        """Wait until the run, in its n-th start, has logged a step."""

        def reached() -> bool:
            path = self.run_dir / "metrics.jsonl"
            fields = self.cluster.job(self.number)
            assert fields["JobState"] not in ("FAILED", "COMPLETED", "CANCELLED"), self.output()[-4000:]
            return int(fields["Restarts"]) == restarts and path.is_file() and len(losses(self.run_dir)) >= step

        self.cluster.wait(reached, what=f"step {step} after {restarts} restarts", seconds=240)


def ranks_of(job: Job) -> list[psutil.Process]:
    """Return the processes of the ranks of a job, the first rank first."""
    found = [
        one for one in psutil.process_iter(["cmdline", "environ"])
        if "simcast_hpc" in (one.info["cmdline"] or []) and f"run_dir={job.run_dir}" in one.info["cmdline"]
        and one.info["cmdline"][0] == sys.executable
    ]  # fmt: skip
    return sorted(found, key=lambda one: int(one.info["environ"]["SLURM_PROCID"]))
