"""Whether the nodes of a job are fit for it: looked at before hours are spent, with the bad node named."""

import os
import shutil
import socket
import time
from pathlib import Path
from typing import NamedTuple

import torch

from simcast_hpc.config import SimcastError

from .world import World, join

_SIZE = 512
_GIB = 2**30


class NodeError(SimcastError, RuntimeError):
    """A node of this job is not fit for it; the message names it."""


class Fitness(NamedTuple):
    """What a rank found on its node: what is wrong, and what it measured."""

    node: str
    problems: list[str]
    device: str
    matmul_seconds: float
    free_gib: float


def check_ranks(run_dir: Path, *, min_free_gib: float, timeout_minutes: float = 5.0) -> list[Fitness]:
    """Check devices, arithmetic, free space and an all-reduce on every rank that the launcher started.

    Args:
        run_dir: where the run will write; the file system below it must have room.
        min_free_gib: how much of it.
        timeout_minutes: for the ranks to meet.

    Returns:
        What each rank found, in rank order, on every rank.

    Raises:
        NodeError: on every rank, naming each node and what is wrong there.
    """
    world = join(timeout_minutes=timeout_minutes)
    try:
        found = world.gather(_look(world, run_dir, min_free_gib))
        bad = [f"{one.node}: {problem}" for one in found for problem in one.problems]
        ranks = world.place.world_size
        total = world.mean(torch.tensor(float(world.place.rank), device=world.device)).item() * ranks
        if round(total) != ranks * (ranks - 1) // 2:
            bad.append(f"an all-reduce of the {ranks} ranks gave {total}, not {ranks * (ranks - 1) // 2}")
        if bad:
            raise NodeError("; ".join(sorted(set(bad))))
        return found
    finally:
        world.leave()


def _look(world: World, run_dir: Path, min_free_gib: float) -> Fitness:
    node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    problems: list[str] = []
    seconds, free = float("nan"), float("nan")
    try:
        seconds = _matmul(world.device)
    except (RuntimeError, ArithmeticError) as error:
        problems.append(f"rank {world.place.rank}: {error}")
    try:
        free = shutil.disk_usage(_standing(run_dir)).free / _GIB
        if free < min_free_gib:
            problems.append(f"{run_dir} has {free:.1f} GiB free, {min_free_gib:g} are asked for")
        _write(run_dir, world.place.rank)
    except OSError as error:
        problems.append(f"{run_dir} cannot be written: {error}")
    name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu"
    return Fitness(node, problems, name, seconds, free)


def _matmul(device: torch.device) -> float:
    """Multiply whole numbers, whose product is exact in any order, and return the seconds of one multiplication.

    Raises:
        ArithmeticError: the device computes wrongly.
    """
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randint(-8, 9, (_SIZE, _SIZE), generator=generator) for _ in range(2))
    on_device = left.float().to(device), right.float().to(device)
    got = on_device[0] @ on_device[1]
    if not torch.equal(got.cpu().long(), left @ right):
        raise ArithmeticError(f"{device} multiplies matrices wrongly")
    since = time.perf_counter()
    (on_device[0] @ on_device[1]).sum().item()
    return time.perf_counter() - since


def _standing(path: Path) -> Path:
    return path if path.exists() else _standing(path.absolute().parent)


def _write(folder: Path, rank: int) -> None:
    probe = folder / f".probe-{rank}"
    folder.mkdir(parents=True, exist_ok=True)
    probe.write_bytes(b"x" * 4096)
    probe.unlink()
