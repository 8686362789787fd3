"""What is compiled and where that is kept: versions, a compiler, the caches of operators and kernels, stale locks."""

import importlib.metadata
import os
import shutil
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from packaging.requirements import Requirement
from torch.utils.cpp_extension import get_default_build_root

from .disk_checks import NETWORK, check_space, file_system
from .finding import Finding

_PACKAGE = "simcast-hpc"
# A build that writes nothing for so long, and that no process of this machine works on, is none any more.
_STALE_MINUTES = 10.0


def check_builds(environ: Mapping[str, str]) -> list[Finding]:
    """Return what stands in the way of importing, compiling and keeping what is compiled."""
    found = [check_packages()]
    if torch.cuda.is_available():
        found.append(_check_compiler(environ))
    operators, kernels = extensions_folder(environ), kernels_folder(environ)
    found += check_locks(operators)
    for what, folder, name in (
        ("the cache of compiled operators", operators, "TORCH_EXTENSIONS_DIR"),
        ("Triton's cache", kernels, "TRITON_CACHE_DIR"),
    ):
        do = f"make room, or export {name} with a folder on a disk of this node"
        found.append(check_space(what, folder, want_gib=1.0, severity="warning", do=do))
        if (kind := file_system(folder)) in NETWORK:
            said = f"{what} {folder} is on {kind}, a network file system: ranks that compile wait for it"
            found.append(Finding("caches", "warning", said, do))
    return found


def extensions_folder(environ: Mapping[str, str]) -> Path:
    """Return where torch and DeepSpeed keep compiled operators."""
    return Path(environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())


def kernels_folder(environ: Mapping[str, str]) -> Path:
    """Return where Triton keeps compiled kernels."""
    return Path(environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")


def check_packages() -> Finding:
    """Return whether what this program requires is installed, in versions that it was tested with."""
    do = "install as README.md says: make install, or pip install -c constraints.txt -e ."
    try:
        lines = importlib.metadata.requires(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return Finding("packages", "warning", f"{_PACKAGE} itself is not installed, so versions are not checked", do)
    wanted = [one for one in map(Requirement, lines) if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong, here = [], {}
    for one in wanted:
        try:
            here[one.name] = importlib.metadata.version(one.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{one.name} is absent")
            continue
        if not one.specifier.contains(here[one.name], prereleases=True):
            wrong.append(f"{one.name} is {here[one.name]}, tested are {one.specifier}")
    if wrong:
        return Finding("packages", "error", "; ".join(wrong), do)
    told = ", ".join(f"{name} {here[name]}" for name in ("torch", "deepspeed", "triton", "h5py") if name in here)
    return Finding("packages", "ok", f"all {len(here)} that are required ({told})")


def check_locks(folder: Path) -> list[Finding]:
    """Return every lock of a build in the cache of operators: under way, left by one that was killed, or unclear.

    torch makes the empty file ``lock`` while it compiles an operator, and whoever finds it waits for ever.
    """
    locks = sorted([*folder.glob("*/lock"), *folder.glob("*/*/lock")])
    if not locks:
        return [Finding("build locks", "ok", f"none in {folder}")]
    return [_judge(lock) for lock in locks]


def _judge(lock: Path) -> Finding:
    builders = _working_in(lock.parent)
    if builders:
        who = ", ".join(map(str, builders))
        return Finding("build locks", "ok", f"{lock}: a build is under way (processes {who})")
    try:
        minutes = (time.time() - max(path.stat().st_mtime for path in lock.parent.iterdir())) / 60
    except (OSError, ValueError):
        return Finding("build locks", "ok", f"{lock} was removed while this looked at it")
    said = f"{lock}: no process of this machine builds there, and nothing changed for {minutes:.0f} minutes"
    if minutes < _STALE_MINUTES:
        do = f"if nothing is being built on another node either, remove it: rm {lock}; every run would wait for it"
        return Finding("build locks", "warning", said, do)
    return Finding("build locks", "error", f"{said}: every run that wants this operator waits for ever", f"rm {lock}")


def _working_in(folder: Path) -> list[int]:
    """Return the processes whose working directory is ``folder`` or below: ninja and its compilers stand in there."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            place = Path(os.readlink(entry / "cwd"))
        except OSError:  # it ended, or belongs to somebody else
            continue
        if place.is_relative_to(folder.resolve()):
            found.append(int(entry.name))
    return sorted(found)


def _check_compiler(environ: Mapping[str, str]) -> Finding:
    """Return whether Triton can compile the stub in C by which it starts each kernel."""
    compiler = environ.get("CC") or next(filter(shutil.which, ("gcc", "clang")), None)
    if compiler is None or shutil.which(compiler) is None:
        said = f"CC={compiler} is no program" if compiler else "there is neither gcc nor clang"
        return Finding("compiler", "error", f"{said}; Triton compiles a stub for each kernel", "install gcc, or set CC")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        do = "install Python's headers (Debian: python3-dev)"
        return Finding("compiler", "error", f"{header} is absent; Triton compiles a stub for each kernel", do)
    return Finding("compiler", "ok", f"{compiler}, with Python's headers")
