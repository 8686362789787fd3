"""The rendezvous of the ranks: the key-value store of torch, which rank 0 serves, listening on one address only.

By default torch's store listens on every interface of the node. It has no authentication: whoever can connect can read
and write its keys.
"""

import errno
import ipaddress
import logging
import os
import socket
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
from torch.distributed.rendezvous import rendezvous

from .ranks import LauncherError, RankInfo

logger = logging.getLogger(__name__)
_distributed: Any = torch.distributed  # its stores are not among the names that it declares
LISTEN = "SIMCAST_LISTEN"
_LOOPBACK_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost")


def open_store(rank_info: RankInfo, *, timeout: timedelta, listener: socket.socket | None = None) -> Any:
    """Return the ``torch.distributed.Store`` of this rank.

    A single rank gets a store in memory. Under torchrun all ranks connect to the store of its agent. Otherwise rank 0
    listens at ``MASTER_ADDR`` and the others connect to it.

    Args:
        rank_info: this rank.
        timeout: of the connection, and of waiting for a key.
        listener: on rank 0 the socket that already listens, if there is one.

    Raises:
        LauncherError: ``MASTER_ADDR`` or ``MASTER_PORT`` is missing or invalid, or the port is in use.
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
        listener = listen(host, int(port), one_node=_is_one_node(rank_info, os.environ))
    return _distributed.TCPStore(
        host,
        int(port),
        rank_info.world_size,
        rank_info.rank == 0,
        timeout=timeout,
        master_listen_fd=None if listener is None else listener.detach(),  # the store closes it
    )


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
