"""TCP ports of the rendezvous.

The operating system takes the ports of outgoing connections from its ephemeral range, so a port in it may be in use at
any time. Between the choice of any port and its use another process may take it. So :func:`listen_outside_ephemeral`
listens on the port that it chooses, and :func:`candidate_ports` are tried in order by all ranks of a job.
"""

import errno
import os
import random
import socket
from collections.abc import Mapping
from pathlib import Path

LISTENER_FD = "SIMCAST_LISTENER_FD"
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LINUX_DEFAULT = (32768, 60999)
_LOWEST, _HIGHEST = 10000, 65535
_TRIES = 64
_CANDIDATES = 8


def ephemeral_range() -> tuple[int, int]:
    """Return the first and the last port that the operating system uses for outgoing connections."""
    try:
        low, high = (int(word) for word in _EPHEMERAL.read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return _LINUX_DEFAULT
    return low, high


def listen_outside_ephemeral(address: str) -> socket.socket:
    """Return a socket that listens on a random port outside the ephemeral range, at an IPv4 address of this node.

    If that range leaves none of 10000 to 65535, or all tried ports are in use, the operating system chooses the port.
    """
    low, high = ephemeral_range()
    outside = [*range(_LOWEST, min(low, _HIGHEST + 1)), *range(max(high + 1, _LOWEST), _HIGHEST + 1)]
    for port in random.sample(outside, min(_TRIES, len(outside))):
        try:
            return socket.create_server((address, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    return socket.create_server((address, 0))


def inherited_listener(environ: Mapping[str, str], port: int) -> socket.socket | None:
    """Return the socket that the parent process already listens on for this rank, or None.

    None also if the descriptor of the variable is not a socket that listens at ``port``: a child process inherits the
    variable, but not the descriptor.
    """
    text = environ.get(LISTENER_FD, "")
    if not (text.isascii() and text.isdigit()):
        return None
    try:
        inherited = socket.socket(fileno=os.dup(int(text)))
    except OSError:
        return None
    try:
        listens = inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if listens and inherited.getsockname()[1] == port:
            os.close(int(text))
            return inherited
    except OSError:
        pass
    inherited.close()
    return None


def candidate_ports(first: int) -> list[int]:
    """Return the ports that the ranks of a job try, the same on all ranks: ``first`` and the seven after it."""
    return list(range(first, min(first + _CANDIDATES, _HIGHEST + 1)))
