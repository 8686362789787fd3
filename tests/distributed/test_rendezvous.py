"""The store of the rendezvous: on which addresses rank 0 listens, and errors of address and port."""

import os
import socket
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from simcast_hpc.distributed import ports, rendezvous
from simcast_hpc.distributed.ranks import LauncherError, RankInfo
from simcast_hpc.distributed.rendezvous import listen, open_store

_distributed: Any = torch.distributed  # its stores are not among the names that it declares
_SECONDS = timedelta(seconds=20)


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE", "LOCAL_WORLD_SIZE", "SIMCAST_LISTEN",
                 "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_HET_SIZE"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)


def listening(port: int) -> list[str]:
    """Return the hexadecimal addresses on which this machine listens at a port, from the kernel's tables."""
    tables = [Path("/proc/net", name).read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table]
    return [row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def rank(number: int, *, ranks: int = 2) -> RankInfo:
    return RankInfo(number, ranks, number, "srun")


def test_rank_0_listens_at_the_master_address_only(monkeypatch):
    port = free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    stores = {}
    client = threading.Thread(target=lambda: stores.update(client=open_store(rank(1), timeout=_SECONDS)))
    client.start()
    store = open_store(rank(0), timeout=_SECONDS)
    client.join()
    assert listening(port) == ["0100007F"]  # 127.0.0.1; torch's own socket would be at ::
    stores["client"].set("key", "value")
    assert store is not None and store.get("key") == b"value"


def test_a_single_rank_listens_nowhere():
    assert isinstance(open_store(rank(0, ranks=1), timeout=_SECONDS), _distributed.HashStore)


def test_the_store_of_torchrun_is_used(monkeypatch):
    agent = _distributed.TCPStore("127.0.0.1", 0, 1, True, timeout=_SECONDS)
    agent.set("key", "of the agent")
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": agent.port, "RANK": 0, "WORLD_SIZE": 1}
    for name, value in (variables | {"TORCHELASTIC_USE_AGENT_STORE": True}).items():
        monkeypatch.setenv(name, str(value))
    assert open_store(rank(0), timeout=_SECONDS).get("key") == b"of the agent"


@pytest.mark.parametrize("missing", ["MASTER_ADDR", "MASTER_PORT"])
def test_rejects_missing_variables(monkeypatch, missing):
    for name in {"MASTER_ADDR", "MASTER_PORT"} - {missing}:
        monkeypatch.setenv(name, "1")
    with pytest.raises(LauncherError, match=rf"srun started 2 ranks but {missing} is not set; export it"):
        open_store(rank(1), timeout=_SECONDS)


@pytest.mark.parametrize("port", ["", "0", "65536", "-1", "29500 ", "²"])
def test_rejects_invalid_ports(monkeypatch, port):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(LauncherError, match=r"MASTER_PORT='.*' is invalid; set it to a free port"):
        open_store(rank(0), timeout=_SECONDS)


def test_rejects_a_port_in_use():
    message = r"cannot listen at 127\.0\.0\.1, port \d+: Address already in use"
    with listen("127.0.0.1", 0, one_node=True) as taken, pytest.raises(LauncherError, match=message):
        listen("localhost", taken.getsockname()[1], one_node=True)


def test_an_unknown_host_is_an_error(monkeypatch):
    def unknown(*_arguments, **_options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(LauncherError, match=r"MASTER_ADDR='nowhere' is not a known host: Name or service not known"):
        listen("nowhere", 0, one_node=False)


@pytest.mark.parametrize(
    ("host", "resolved", "one_node", "expected"),
    [
        ("node1", "127.0.0.2", True, "127.0.0.2"),
        ("node1", "127.0.1.1", False, "all"),  # Debian's /etc/hosts: other nodes could not connect to it
        ("localhost", "127.0.0.1", False, "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1", False, "127.0.0.1"),
        ("node1", "192.0.2.7", False, "all"),  # no address of this node: behind a port mapping
    ],
)
def test_address_of_the_socket(monkeypatch, caplog, host, resolved, one_node, expected):
    monkeypatch.setattr(rendezvous, "_address", lambda name: {host: resolved}[name])
    with caplog.at_level("WARNING", logger="simcast_hpc"), listen(host, 0, one_node=one_node) as server:
        address = server.getsockname()[0]
    if expected == "all":
        assert address in ("::", "0.0.0.0") and f"MASTER_ADDR={host} is {resolved} on this node" in caplog.text
    else:
        assert address == expected and caplog.text == ""


def test_the_address_can_be_chosen(monkeypatch, caplog):
    monkeypatch.setenv("SIMCAST_LISTEN", "127.0.0.3")
    with listen("node1", 0, one_node=False) as server:
        assert server.getsockname()[0] == "127.0.0.3"
    monkeypatch.setenv("SIMCAST_LISTEN", "192.0.2.7")
    with pytest.raises(LauncherError, match=r"cannot listen at 192\.0\.2\.7"):
        listen("node1", 0, one_node=False)


def test_prefers_ipv4(monkeypatch):
    found = [(socket.AF_INET6, 1, 6, "", ("::1", 0, 0, 0)), (socket.AF_INET, 1, 6, "", ("127.0.0.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_arguments, **_options: list(found))
    assert rendezvous._address("localhost") == "127.0.0.1"


STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}


def first_port() -> int:
    """Return a port outside the ephemeral range that is free, like the seven after it."""
    with ports.listen_outside_ephemeral("127.0.0.1") as probe:
        return min(probe.getsockname()[1], 65528)


@pytest.mark.parametrize("occupied_by", ["silent program", "store of another job"])
def test_ranks_of_a_job_step_agree_on_a_free_port(monkeypatch, caplog, occupied_by):
    """MASTER_PORT and the next port are taken: rank 0 listens on the third, and rank 1, which begins earlier, finds it.

    The others may not be stores, or stores of other jobs.
    """
    port = first_port()
    monkeypatch.setattr(rendezvous, "_ANSWER_SECONDS", 0.5)
    for name, value in (STEP | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}).items():
        monkeypatch.setenv(name, value)
    taken = [listen("127.0.0.1", port + offset, one_node=True) for offset in range(2)]
    foreign = []
    if occupied_by == "store of another job":
        foreign = [
            _distributed.TCPStore(
                "127.0.0.1", port + offset, None, True, wait_for_workers=False, master_listen_fd=one.detach()
            )
            for offset, one in enumerate(taken)
        ]
        foreign[0].set(rendezvous._JOB_KEY, "job 6")
    stores = {}
    client = threading.Thread(target=lambda: stores.update(client=open_store(rank(1), timeout=_SECONDS)))
    client.start()
    with caplog.at_level("WARNING", logger="simcast_hpc"):
        server = open_store(rank(0), timeout=_SECONDS)
    client.join()
    server.set("key", "value")
    assert stores["client"].get("key") == b"value" and os.environ["MASTER_PORT"] == str(port + 2)
    assert f"port {port + 1} of this node is in use: trying MASTER_PORT={port + 2}" in caplog.text
    assert not any(one.check(["key"]) for one in foreign)
    for one in taken:
        one.close()


@pytest.mark.parametrize("number", [0, 1])
def test_a_job_step_without_a_free_port_is_an_error(monkeypatch, number):
    port = first_port()
    monkeypatch.setattr(rendezvous, "_ANSWER_SECONDS", 0.2)
    for name, value in (STEP | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rendezvous, "candidate_ports", lambda first: [first, first + 1])
    with listen("127.0.0.1", port, one_node=True), listen("127.0.0.1", port + 1, one_node=True):
        message = [
            "Address already in use.*; set MASTER_PORT",
            rf"no store of job step ' srun 7 0' .*, ports {port} to",
        ]
        with pytest.raises(LauncherError, match=message[number]):
            open_store(rank(number), timeout=timedelta(seconds=0.1))


def test_ports_are_outside_the_ephemeral_range(tmp_path, monkeypatch):
    file = tmp_path / "ip_local_port_range"
    file.write_text("10000\t65533\n")
    monkeypatch.setattr(ports, "_EPHEMERAL", file)
    with ports.listen_outside_ephemeral("127.0.0.1") as one:
        assert one.getsockname()[1] in (65534, 65535)
    monkeypatch.setattr(ports, "_HIGHEST", 65533)
    with ports.listen_outside_ephemeral("127.0.0.1") as other:  # none is left: any port
        assert other.getsockname()[1] > 0
    file.unlink()
    assert ports.ephemeral_range() == (32768, 60999)


def test_only_a_socket_that_listens_at_the_port_is_inherited():
    with listen("127.0.0.1", 0, one_node=True) as own, Path(__file__).open() as file:
        port = own.getsockname()[1]
        others = (None, "", "x", "99999", str(file.fileno()))
        for text in others:
            assert ports.inherited_listener({} if text is None else {ports.LISTENER_FD: text}, port) is None
        variables = {ports.LISTENER_FD: str(own.fileno())}
        assert ports.inherited_listener(variables, port + 1) is None
        inherited = ports.inherited_listener(variables, port)
        own.detach()  # its descriptor was closed
        assert inherited is not None and listening(port) == ["0100007F"]
        assert ports.inherited_listener(variables, port) is None
        inherited.close()
