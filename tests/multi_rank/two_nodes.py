"""Two nodes on one machine: network namespaces with a cable between them, a host name each, and one shared disk.

Needs root and iproute2. A node has its own addresses, interfaces, ``/etc/hosts`` and ``/run``; processes and files are
the machine's. Everything carries a name of this process and is gone when the block ends.
"""

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.multi_rank.runs import environment

NODES = ("node1", "node2")
_ADDRESSES = ("10.77.0.1", "10.77.0.2")
_SSH_PORT = 2222  # nobody else listens in these namespaces
_START_SECONDS = 20


class TwoNodes:
    """Two namespaces; ``folder`` contains their configuration files."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._names = tuple(f"simcast-{os.getpid()}-{node}" for node in NODES)
        self._servers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "TwoNodes":
        hosts = [f"{address} {node}\n" for address, node in zip(_ADDRESSES, NODES, strict=True)]
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(hosts))
        self.hostfile.write_text("".join(f"{node} slots=1\n" for node in NODES))
        cables = [f"sc{os.getpid()}v{end}" for end in range(2)]
        try:
            for name in self._names:
                _ip("netns", "add", name)
            _ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
            for name, cable, address in zip(self._names, cables, _ADDRESSES, strict=True):
                _ip("link", "set", cable, "netns", name)
                _ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
                _ip("-n", name, "link", "set", cable, "up")
                _ip("-n", name, "link", "set", "lo", "up")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        for server in self._servers:
            server.terminate()
            server.wait()
        self._remove()

    def _remove(self) -> None:
        for name in self._names:  # a namespace takes its end of the cable along
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    @property
    def hostfile(self) -> Path:
        """The nodes as DeepSpeed reads them, one slot each."""
        return self.folder / "hostfile"

    def on(self, node: int, command: Sequence[str]) -> list[str]:
        """Return the command line that runs ``command`` on a node."""
        set_up = (
            f"hostname {NODES[node]}; mount --bind {shlex.quote(str(self.folder / 'hosts'))} /etc/hosts; "
            'mount -t tmpfs tmpfs /run; mkdir /run/sshd; exec "$@"'
        )
        return ["ip", "netns", "exec", self._names[node], "unshare", "--uts", "sh", "-ec", set_up, "sh", *command]

    def serve_ssh(self) -> dict[str, str]:
        """Start an ssh server on each node; return the environment in which ``ssh NODE`` reaches it by key."""
        server = _ssh_server()
        for key in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / key], check=True)
        authorized = self.folder / "authorized_keys"
        authorized.write_text((self.folder / "user.pub").read_text())
        authorized.chmod(0o600)
        (self.folder / "sshd_config").write_text(
            f"Port {_SSH_PORT}\nHostKey {self.folder}/host\nAuthorizedKeysFile {authorized}\nPidFile none\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        )
        (self.folder / "ssh_config").write_text(
            f"Host {' '.join(NODES)}\n  Port {_SSH_PORT}\n  IdentityFile {self.folder}/user\n  IdentitiesOnly yes\n"
            "  BatchMode yes\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
        )
        programs = self.folder / "bin"
        programs.mkdir()
        client = programs / "ssh"  # replaces the Host entries that a user has in ~/.ssh/config
        client.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {self.folder}/ssh_config "$@"\n')
        client.chmod(0o755)
        reaching = environment()
        reaching["PATH"] = f"{programs}{os.pathsep}{reaching['PATH']}"
        for node in range(2):
            log = (self.folder / f"sshd-{node}.log").open("wb")
            command = self.on(node, [server, "-D", "-e", "-f", str(self.folder / "sshd_config")])
            self._servers.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        for node in NODES:
            self._wait_for(["ssh", node, "true"], reaching)
        return reaching

    def _wait_for(self, command: list[str], variables: dict[str, str]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while (
            done := subprocess.run(self.on(0, command), env=variables, capture_output=True, text=True, check=False)
        ).returncode:
            logs = "".join(path.read_text() for path in sorted(self.folder.glob("sshd-*.log")))
            assert time.monotonic() < deadline, f"{command}: {done.stderr}\n{logs}"
            time.sleep(0.1)


def missing() -> str | None:
    """Return why nodes cannot be created here; None if they can."""
    return None if os.geteuid() == 0 else "network namespaces need root"


def _ssh_server() -> str:
    """Return the server's path, an absolute path, or skip the calling test."""
    path = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None:
        # Not among the packages of `make system-packages`: installed, it would let others into this machine.
        pytest.skip("there is no sshd here; Debian's package openssh-server holds it")
    return path


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
