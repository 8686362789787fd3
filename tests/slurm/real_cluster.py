"""A private, real Slurm on this machine: one controller and three nodes, without systemd, with all files in one folder.

Needs root and Debian's slurm-wlm, slurm-client and munge. The nodes share the name and address of this host and
differ in ``SLURMD_NODENAME``. GPUs are device files without hardware. The tests cover submission, placement of ranks,
signals, requeueing and the loss of a node, not NCCL, network fabrics, accounting or the preemption rules of a site.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
NODES = ("n1", "n2", "n3")  # the third one is in the partition `wide` only
_PORT = 27817
_MARK = "# simcast test cluster"

_CONF = """\
ClusterName=simcast
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={root}/run/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_min_interval=100000,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
JobRequeue=1
KillWait=20
SlurmctldTimeout=10
SlurmdTimeout=15
MessageTimeout=10
MinJobAge=3600
NodeName=DEFAULT CPUs=24 Boards=1 SocketsPerBoard=1 CoresPerSocket=24 ThreadsPerCore=1 RealMemory=4000 Gres=gpu:4
PartitionName=DEFAULT Nodes=n1,n2 State=UP OverSubscribe=NO
PartitionName=normal Default=YES MaxTime=48:00:00 DefaultTime=00:30:00 PriorityTier=1 GraceTime=40
PartitionName=wide Nodes=n1,n2,n3 MaxTime=01:00:00 PriorityTier=1
PartitionName=urgent MaxTime=01:00:00 PriorityTier=9 PreemptMode=OFF
"""


class RealCluster:
    """Daemons that were started here and nothing else; leaving the ``with`` block stops them."""

    def __init__(self, root: Path):
        self.root, self._daemons = root, []
        self.environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "SRUN"))
        } | {"SLURM_CONF": str(root / "etc" / "slurm.conf")}

    def __enter__(self) -> "RealCluster":
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop()

    def _start(self) -> None:
        for name in ("etc", "run", "log", "state", "spool", "dev", *(f"spool/{node}" for node in NODES)):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        for folder in (self.root, *self.root.parents):
            if folder.stat().st_uid == 0 and folder != Path("/tmp"):
                folder.chmod(folder.stat().st_mode | 0o755)  # munged rejects a path that others cannot walk
        self._munge()
        for number in range(4):
            device = self.root / "dev" / f"nvidia{number}"
            if not device.exists():
                os.mknod(device, 0o666 | 0o020000, os.makedev(1, 3))  # /dev/null by another name
        etc, host = self.root / "etc", socket.gethostname().split(".")[0]
        (etc / "gres.conf").write_text(f"Name=gpu File={self.root}/dev/nvidia[0-3]\n")
        (etc / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # slurmd starts where no cgroup is mounted
        nodes = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={_PORT + 10 + place}\n"
            for place, node in enumerate(NODES)
        ]
        (etc / "slurm.conf").write_text(_CONF.format(host=host, port=_PORT, root=self.root) + "".join(nodes))
        with Path("/etc/hosts").open("a") as hosts:  # the ranks meet at the first node's name
            hosts.writelines(f"127.0.0.1 {node} {_MARK}\n" for node in NODES)
        self._daemon("slurmctld", "-D")
        for node in NODES:
            self._daemon("slurmd", "-D", "-N", node)
        self.wait(lambda: set(self.states().values()) == {"idle"}, what="the nodes come up", seconds=30)

    def _munge(self) -> None:
        key = self.root / "etc" / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        run = self.root / "run"
        self._daemon(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={run}/munge.socket",
            f"--pid-file={run}/munged.pid", f"--seed-file={run}/munged.seed", f"--log-file={self.root}/log/munged.log",
        )  # fmt: skip
        self.wait(lambda: (run / "munge.socket").exists(), what="munged answers", seconds=10)

    def _daemon(self, *command: str) -> None:
        log = (self.root / "log" / f"{command[0]}-{len(self._daemons)}.out").open("ab")
        self._daemons.append(
            subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                             start_new_session=True)
        )  # fmt: skip

    def _stop(self) -> None:
        if (self.root / "etc" / "slurm.conf").exists():
            self.run("scancel", "--user=root", check=False)
            end = time.monotonic() + 30
            while self.run("squeue", "--noheader", check=False) and time.monotonic() < end:
                time.sleep(0.2)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        kept = [line for line in Path("/etc/hosts").read_text().splitlines(True) if not line.rstrip().endswith(_MARK)]
        Path("/etc/hosts").write_text("".join(kept))

    def run(self, *command: str, check: bool = True, **variables: str) -> str:
        """Run a command of Slurm in the repository and return its output."""
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return (done.stdout + done.stderr).strip() if check else done.stdout.strip()

    def states(self) -> dict[str, str]:
        """Return the state of each node."""
        lines = self.run("sinfo", "--noheader", "--Node", "--format=%N %T", check=False).splitlines()
        return dict(line.split() for line in lines)

    def submit(self, *arguments: str, **variables: str) -> str:
        """Submit a job and return its number; ``variables`` are in its environment."""
        return self.run("sbatch", "--parsable", *arguments, **variables).splitlines()[-1]

    def job(self, number: str) -> dict[str, str]:
        """Return the fields of a job by name, as scontrol prints them."""
        output = self.run("scontrol", "show", "job", "--oneliner", number)
        return dict(word.split("=", 1) for word in output.split() if "=" in word)

    def state(self, number: str) -> str:
        """Return a job's state."""
        return self.job(number)["JobState"]

    def end(self, number: str, *, seconds: float = 180) -> tuple[str, int]:
        """Wait until a job is over and return its state and its exit status."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        self.wait(lambda: self.state(number) in over, what=f"job {number} ends", seconds=seconds)
        fields = self.job(number)
        return fields["JobState"], int(fields["ExitCode"].split(":")[0])

    def wait(self, happened: Callable[[], bool], *, what: str, seconds: float) -> None:
        """Wait until ``happened`` returns true.

        Raises:
            TimeoutError: it did not in time; the message ends with the logs.
        """
        deadline = time.monotonic() + seconds
        while not happened():
            if time.monotonic() > deadline:
                logs = "".join(path.read_text()[-1500:] for path in sorted((self.root / "log").glob("*")))
                raise TimeoutError(f"{what}: not within {seconds:.0f} s\n{logs}")
            time.sleep(0.2)


def missing() -> str | None:
    """Return why no cluster can be started on this machine; None if one can."""
    if os.geteuid() != 0:
        return "starting a Slurm cluster requires root"
    absent = [name for name in ("slurmctld", "slurmd", "munged", "sbatch", "srun") if shutil.which(name) is None]
    return f"{', '.join(absent)} not installed; `make system-packages` installs them" if absent else None


if __name__ == "__main__":
    with RealCluster(Path(sys.argv[1])) as started:
        print(started.states(), started.run("srun", "-N2", "printenv", "SLURMD_NODENAME"))
