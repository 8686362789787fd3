"""Stubs of ``srun`` and ``scontrol`` that record their calls, for tests of batch scripts without Slurm.

They show the job steps of a script, their order, and its reaction to their status; not what Slurm does.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "slurm" / "distill_sevir.sh"
TRAIN = REPOSITORY / "slurm" / "train.sh"

# The FAKE_* variables of the environment control the stub, which the script starts.
_SRUN = """#!{python}
import json, os, pathlib, signal, sys, time
received = []
if "FAKE_HANGS" in os.environ:
    signal.signal(signal.SIGUSR2, lambda *_: received.append("USR2"))
keep = ("MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "SRUN_CPUS_PER_TASK", "HDF5_USE_FILE_LOCKING",
        "TORCH_EXTENSIONS_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
with open(os.environ["FAKE_CALLS"], "a") as calls:
    call = {{"program": "srun", "arguments": sys.argv[1:], "environment": {{k: os.environ.get(k) for k in keep}}}}
    calls.write(json.dumps(call) + "\\n")
if "--parts" in sys.argv:
    time.sleep(float(os.environ.get("FAKE_PARTS_SECONDS", "0")))
    print(os.environ.get("FAKE_PARTS", "prepare\\nteacher\\nstudent\\nverify"))
    sys.exit(int(os.environ.get("FAKE_PARTS_STATE", "0")))
if "where" in sys.argv:
    os.execvp(sys.argv[sys.argv.index("-m") - 1], sys.argv[sys.argv.index("-m") - 1 :])
if "rm" in sys.argv:
    sys.exit()
state = int(os.environ.get("FAKE_STATE", "0"))
if "FAKE_HANGS" in os.environ:
    end = time.monotonic() + 60
    while not received and time.monotonic() < end:
        time.sleep(0.02)
    state = 85
part = sys.argv[sys.argv.index("--part") + 1] if "--part" in sys.argv else None
run_dirs = [a.removeprefix("run_dir=") for a in sys.argv if a.startswith("run_dir=")]
if "FAKE_PROGRESS" in os.environ and run_dirs:
    folder = pathlib.Path(run_dirs[0], "checkpoints", "step-00000010")
    folder.mkdir(parents=True, exist_ok=True)
    time.sleep(0.02)
    (folder / "manifest.json").write_text("{{}}")
if "FAKE_ERRORS" in os.environ:
    print(os.environ["FAKE_ERRORS"], file=sys.stderr)
if state == 0 and "FAKE_NO_MARKER" not in os.environ and run_dirs:
    (run_dir,) = run_dirs
    folder = pathlib.Path(run_dir, "" if part in (None, "verify") else part)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "DONE.json").write_text("{{}}")
sys.exit(state)
"""
# Runs the command after the options of srun as the only task of the step.
_SRUN_ONE_TASK = """#!{python}
import os, sys
command = sys.argv[1:]
while command[0].startswith("-"):
    del command[0]
place = {{"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_LOCALID": "0"}}
os.execvpe(command[0], command, os.environ | place)
"""
_SCONTROL = """#!{python}
import json, os, sys
with open(os.environ["FAKE_CALLS"], "a") as calls:
    calls.write(json.dumps({{"program": "scontrol", "arguments": sys.argv[1:]}}) + "\\n")
if sys.argv[1:3] == ["show", "hostnames"]:
    print("{host}\\nnode02" if "[" in sys.argv[3] else sys.argv[3].replace(",", "\\n"))
if sys.argv[1:3] == ["show", "job"]:
    print("JobId=20123 JobName=x ExcNodeList=" + os.environ.get("FAKE_EXCLUDED", "(null)") + " NodeList=n")
"""
_SINFO = """#!/bin/sh
printf '%s\\n' node01 node02 node03
"""


@dataclass
class FakeCluster:
    """Stubs in ``folder/bin``, the environment of a job, and the recorded calls.

    With ``run_tasks`` the stub of ``srun`` runs its command as one task.
    """

    folder: Path
    host: str = "node01"
    run_tasks: bool = False
    environment: dict[str, str] = field(init=False)

    def __post_init__(self):
        programs, archive = self.folder / "bin", self.folder / "sevir"
        programs.mkdir()
        temporary = self.folder / "tmp"
        temporary.mkdir()
        archive.mkdir(exist_ok=True)
        (archive / "CATALOG.csv").touch()
        srun = _SRUN_ONE_TASK if self.run_tasks else _SRUN
        for name, text in {"srun": srun, "scontrol": _SCONTROL, "sinfo": _SINFO}.items():
            path = programs / name
            path.write_text(text.format(python=sys.executable, host=self.host))
            path.chmod(0o755)
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "FAKE_", "SRUN_"))}
        for name in (
            "RUN_DIR",
            "CONFIG",
            "LOCAL_DATA",
            "SEVIR_ROOT",
            "CONTAINER",
            "MAX_RESTARTS",
            "MASTER_ADDR",
            "MASTER_PORT",
            "TORCH_EXTENSIONS_DIR",
            "TRITON_CACHE_DIR",
            "TORCHINDUCTOR_CACHE_DIR",
            "CPU_BIND",
        ):
            clean.pop(name, None)
        self.environment = clean | {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "FAKE_CALLS": str(self.folder / "calls"),
            "SLURM_JOB_ID": "20123",
            "SLURM_JOB_NODELIST": "node[01-02]",
            "SLURM_JOB_PARTITION": "gpu",
            "SLURM_SUBMIT_DIR": str(REPOSITORY),
            "SLURM_CPUS_PER_TASK": "8",
            "TMPDIR": str(temporary),
            "DATA_ROOT": str(archive),
            "RUN_DIR": str(self.run_dir),
            "PYTHON": sys.executable,
            "CHECK_NODES": "0",
        }

    @property
    def run_dir(self) -> Path:
        """The run directory of the script."""
        return self.folder / "run"

    def start(
        self, *arguments: str, changes: Mapping[str, str | None] | None = None, script: Path = SCRIPT
    ) -> subprocess.Popen[str]:
        """Start a script like a batch shell of Slurm; a variable changed to None is unset."""
        merged = self.environment | dict(changes or {})
        environment = {name: value for name, value in merged.items() if value is not None}
        return subprocess.Popen(
            ["bash", str(script), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(
        self,
        *arguments: str,
        changes: Mapping[str, str | None] | None = None,
        seconds: float = 60,
        script: Path = SCRIPT,
    ) -> tuple[int, str]:
        """Run a script to its end and return its exit status and output."""
        job = self.start(*arguments, changes=changes, script=script)
        output, _ = job.communicate(timeout=seconds)
        return job.returncode, output

    def calls(self, name: str) -> list[dict]:
        """Return the calls of ``srun`` or ``scontrol`` so far."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call for call in map(json.loads, lines) if call["program"] == name]

    def wait_for(self, happened: Callable[[], bool], *, seconds: float = 20.0) -> None:
        """Wait until ``happened()``.

        Raises:
            TimeoutError: after ``seconds``.
        """
        end = time.monotonic() + seconds
        while not happened():
            if time.monotonic() > end:
                raise TimeoutError(f"waited {seconds:.0f} s; calls so far: {self.calls('srun')}")
            time.sleep(0.02)
