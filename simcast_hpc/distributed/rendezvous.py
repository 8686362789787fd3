"""The rendezvous of the ranks: the key-value store of torch, which rank 0 serves, listening on one address only.

By default torch's store listens on every interface of the node. It has no authentication: whoever can connect can read
and write its keys.
"""

import errno
import ipaddress
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch.distributed.rendezvous import rendezvous

from .ports import candidate_ports, inherited_listener
from .ranks import LauncherError, RankInfo

logger = logging.getLogger(__name__)
_distributed: Any = torch.distributed  # its stores are not among the names that it declares
LISTEN = "SIMCAST_LISTEN"
_JOB_KEY = "job step"
_CONNECT_SECONDS, _ANSWER_SECONDS, _PAUSE_SECONDS = 5.0, 10.0, 0.5
_LOOPBACK_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost")


def open_store(rank_info: RankInfo, *, timeout: timedelta, listener: socket.socket | None = None) -> Any:
    """Return the ``torch.distributed.Store`` of this rank.

    A single rank gets a store in memory. Under torchrun all ranks connect to the store of its agent. Otherwise rank 0
    listens at ``MASTER_ADDR`` and the others connect to it. Under ``srun`` and ``flux run``, whose job steps have a
    name in their variables, rank 0 listens on the first free port of ``MASTER_PORT`` and the seven ports after it, and
    the others connect to the one whose store has the name of their step; ``MASTER_PORT`` is set to it.

    Args:
        rank_info: this rank.
        timeout: of the connection, and of waiting for a key.
        listener: on rank 0 the socket that already listens, if there is one.

    Raises:
        LauncherError: ``MASTER_ADDR`` or ``MASTER_PORT`` is missing or invalid, the port is in use, or no store of this
            job step answers.
    """
    if rank_info.world_size == 1:
        return _distributed.HashStore()
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise LauncherError(
                f"{rank_info.launcher} started {rank_info.world_size} ranks but {name} is not set; export it"
            )
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store, *_ = next(iter(rendezvous("env://", timeout=timeout)))
        return store
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise LauncherError(f"MASTER_PORT={port!r} is invalid; set it to a free port, 1024 to 65535")
    if rank_info.rank == 0 and listener is None:
        listener = inherited_listener(os.environ, int(port))
    if listener is None and (job := _job_step(rank_info, os.environ)) is not None:
        return _open_first_free(rank_info, host, candidate_ports(int(port)), job=job, timeout=timeout)
    if rank_info.rank == 0 and listener is None:
        listener = listen(host, int(port), one_node=_is_one_node(rank_info, os.environ))
    return _distributed.TCPStore(
        host,
        int(port),
        rank_info.world_size,
        rank_info.rank == 0,
        timeout=timeout,
        master_listen_fd=None if listener is None else listener.detach(),  # the store closes it
    )


def _job_step(rank_info: RankInfo, environ: Mapping[str, str]) -> str | None:
    """Return a name of the job step, the same on all its ranks and on no others, or None if there is none.

    The components of a heterogeneous job have different job ids.
    """
    names = {"srun": ("SLURM_JOB_ID", "SLURM_STEP_ID"), "flux run": ("FLUX_JOB_ID",)}.get(rank_info.launcher, ())
    if not names or "SLURM_HET_SIZE" in environ or not all(name in environ for name in names):
        return None
    return " ".join([environ.get("SLURM_CLUSTER_NAME", ""), rank_info.launcher, *(environ[name] for name in names)])


def _open_first_free(rank_info: RankInfo, host: str, ports: Sequence[int], *, job: str, timeout: timedelta) -> Any:
    """Return the store at the first port on which rank 0 can listen."""
    if rank_info.rank == 0:
        port, listener = _listen_on_first_free(host, ports, one_node=_is_one_node(rank_info, os.environ))
        store = _distributed.TCPStore(
            host, port, None, True, timeout=timeout, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        store.set(_JOB_KEY, job)
    else:
        port, store = _find_store(host, ports, job=job, timeout=timeout)
    os.environ["MASTER_PORT"] = str(port)
    return store


def _listen_on_first_free(host: str, ports: Sequence[int], *, one_node: bool) -> tuple[int, socket.socket]:
    for port in ports:
        try:
            return port, listen(host, port, one_node=one_node)
        except LauncherError as error:
            if getattr(error.__cause__, "errno", None) != errno.EADDRINUSE or port == ports[-1]:
                raise
            logger.warning("port %d of this node is in use: trying MASTER_PORT=%d", port, port + 1)
    raise AssertionError("there is at least one port")


def _find_store(host: str, ports: Sequence[int], *, job: str, timeout: timedelta) -> tuple[int, Any]:
    """Connect to the port whose store names this job step; a port may belong to another program, and rank 0 be late."""
    deadline = time.monotonic() + timeout.total_seconds()
    attempts: dict[int, _Attempt] = {}
    while True:
        for port in ports:
            if port in attempts and attempts[port].is_alive():
                continue  # a program that accepts connections and does not answer
            attempts[port] = attempt = _Attempt(host, port, job)
            if _accepts(host, port):
                attempt.start()
                attempt.join(_ANSWER_SECONDS)
            if attempt.store is not None:
                attempt.store.set_timeout(timeout)
                return port, attempt.store
        if time.monotonic() > deadline:
            raise LauncherError(
                f"no store of job step {job!r} answers at MASTER_ADDR={host}, ports {ports[0]} to {ports[-1]}, within "
                f"{timeout.total_seconds():.0f} s; check the output of rank 0, and firewalls between the nodes"
            )
        time.sleep(_PAUSE_SECONDS)


def _accepts(host: str, port: int) -> bool:
    """Return whether a program listens; torch would log each rejected connection and retry it."""
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


class _Attempt(threading.Thread):
    """Connects to a store; in a thread, because torch waits without a limit for a peer that is no store to answer."""

    def __init__(self, host: str, port: int, job: str):
        super().__init__(name="rendezvous", daemon=True)
        self._host, self._port, self._job = host, port, job
        self.store: Any = None

    def run(self) -> None:
        """Set ``store`` if it names this job step."""
        answer = timedelta(seconds=_ANSWER_SECONDS)
        try:
            store = _distributed.TCPStore(self._host, self._port, None, False, timeout=answer, wait_for_workers=False)
            if store.get(_JOB_KEY).decode(errors="replace") == self._job:
                self.store = store
        except RuntimeError as error:  # torch's DistError: no store, or one without this key
            logger.debug("port %d of %s: %s", self._port, self._host, error)


def listen(host: str, port: int, *, one_node: bool) -> socket.socket:
    """Return a socket that listens on the address of ``host`` only; ``port`` 0 chooses a free port.

    It listens on all interfaces, with a warning, if the address of ``host`` belongs to no interface of this node (a
    port mapping), or if this node maps its own name to a loopback address, at which other nodes cannot reach it.
    ``SIMCAST_LISTEN`` overrides the address.

    Raises:
        LauncherError: the name is unknown, or the port is in use.
    """
    address = os.environ.get(LISTEN) or _address(host)
    try:
        if LISTEN not in os.environ and not one_node and _is_unreachable(host, address):
            raise OSError(errno.EADDRNOTAVAIL, "a loopback address")
        return _bind(address, port)
    except OSError as error:
        if LISTEN not in os.environ and error.errno == errno.EADDRNOTAVAIL:
            logger.warning(
                "MASTER_ADDR=%s is %s on this node, which other nodes cannot reach: the rendezvous listens on all "
                "interfaces; set %s to an address of this node", host, address, LISTEN,
            )  # fmt: skip
            try:
                return _bind("::" if socket.has_dualstack_ipv6() else "0.0.0.0", port)
            except OSError as second:
                error = second
        raise LauncherError(
            f"the rendezvous cannot listen at {address}, port {port}: {error.strerror or error}; set MASTER_PORT to a "
            f"free port, or {LISTEN} to an address of this node"
        ) from error


def _bind(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family, backlog=2048, dualstack_ipv6=address == "::")


def _address(host: str) -> str:
    """Return the IPv4 address of a name, or its IPv6 address if it has no other."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise LauncherError(f"MASTER_ADDR={host!r} is not a known host: {error.strerror or error}") from error
    found.sort(key=lambda one: one[0] != socket.AF_INET)
    return str(found[0][4][0])


def _is_unreachable(host: str, address: str) -> bool:
    """Return whether a name of this node is mapped to its loopback address, as Debian does in ``/etc/hosts``."""
    named = host.rstrip(".").lower() in _LOOPBACK_NAMES or host == address
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback and not named


def _is_one_node(rank_info: RankInfo, environ: Mapping[str, str]) -> bool:
    """Return whether the launcher says that all ranks are on this node."""
    nodes = {"srun": "SLURM_STEP_NUM_NODES", "flux run": "FLUX_JOB_NNODES"}.get(rank_info.launcher, "")
    return environ.get("LOCAL_WORLD_SIZE") == str(rank_info.world_size) or environ.get(nodes) == "1"
