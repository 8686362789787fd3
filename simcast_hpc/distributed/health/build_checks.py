"""Installed versions, the compiler, caches of operators and kernels, and stale build locks."""

import importlib.metadata
import os
import shutil
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from packaging.requirements import Requirement

from simcast_hpc.storage.compile_caches import SHARED, extensions_folder, kernels_folder
from simcast_hpc.storage.private_folders import UntrustedFolderError, check_private
from simcast_hpc.version import __version__, commit

from .disk_checks import NETWORK, check_space, file_system
from .finding import Finding

_PACKAGE, _KERNELS = "simcast-hpc", "simcast-kernels"
# A build that has no process on this machine and wrote nothing for this long was killed.
_STALE_MINUTES = 10.0


def check_builds(environ: Mapping[str, str]) -> list[Finding]:
    """Check installed packages, the compiler, and the caches of compiled code."""
    findings = [check_versions(), check_packages()]
    if torch.cuda.is_available():
        findings.append(_check_compiler(environ))
    operators, kernels = extensions_folder(environ), kernels_folder(environ)
    findings += check_locks(operators)
    for name, folder, variable in (
        ("cache of compiled operators", operators, "TORCH_EXTENSIONS_DIR"),
        ("Triton cache", kernels, "TRITON_CACHE_DIR"),
    ):
        remedy = f"free space, or export {variable} with a folder on a local disk of this node"
        findings.append(check_space(name, folder, want_gib=1.0, severity="warning", remedy=remedy))
        findings += _check_owner(name, folder, variable, environ)
        if (kind := file_system(folder)) in NETWORK:
            message = f"{name} {folder} is on the network file system {kind}, which slows down compilation"
            findings.append(Finding("caches", "warning", message, remedy))
    return findings


def _check_owner(name: str, folder: Path, variable: str, environ: Mapping[str, str]) -> list[Finding]:
    """Check that no other user can write to a cache, from which code is loaded."""
    try:
        if os.path.lexists(folder) and environ.get(SHARED) != "1":
            check_private(folder)
    except UntrustedFolderError as error:
        remedy = f"export {variable} with a folder of your own; {SHARED}=1 permits a cache that a trusted group writes"
        return [Finding("caches", "error", f"{name}: {error}", remedy)]
    return []


def check_versions() -> Finding:
    """Check the versions of simcast-hpc and of simcast-kernels, which share the package ``simcast_kernels``.

    simcast-hpc contains the package, so that only one of the distributions is needed. With both, the one that was
    installed last provides it.
    """
    own = f"{_PACKAGE} {__version__} (commit {commit()})"
    kernels = _installed_version(_KERNELS)
    if kernels is None:
        return Finding("versions", "ok", f"{own} with its own kernels")
    both = f"{own} and {_KERNELS} {kernels} are both installed"
    if kernels != __version__:
        remedy = f"pip uninstall {_KERNELS}, then reinstall {_PACKAGE}, which contains the kernels"
        return Finding("versions", "error", f"{both} with different versions", remedy)
    remedy = f"pip uninstall {_KERNELS}, then reinstall {_PACKAGE}: an update of one would overwrite the kernels"
    return Finding("versions", "warning", both, remedy)


def _installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_packages() -> Finding:
    """Check whether all required packages are installed in a tested version."""
    remedy = "install as in README.md: make install, or pip install -c constraints.txt -e ."
    try:
        lines = importlib.metadata.requires(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return Finding("packages", "warning", f"{_PACKAGE} is not installed, versions are not checked", remedy)
    required = [one for one in map(Requirement, lines) if one.marker is None or one.marker.evaluate({"extra": ""})]
    problems, installed = [], {}
    for one in required:
        version = _installed_version(one.name)
        if version is None:
            problems.append(f"{one.name} is not installed")
            continue
        installed[one.name] = version
        if not one.specifier.contains(version, prereleases=True):
            problems.append(f"{one.name} is {version}, tested are {one.specifier}")
    if problems:
        return Finding("packages", "error", "; ".join(problems), remedy)
    names = [f"{name} {installed[name]}" for name in ("torch", "deepspeed", "triton", "h5py") if name in installed]
    return Finding("packages", "ok", f"all {len(installed)} required packages ({', '.join(names)})")


def check_locks(folder: Path) -> list[Finding]:
    """Check every build lock in the cache of operators: of a running build, stale, or unclear.

    torch creates the empty file ``lock`` while it compiles an operator, and another process waits for its removal
    without a timeout.
    """
    locks = sorted([*folder.glob("*/lock"), *folder.glob("*/*/lock")])
    if not locks:
        return [Finding("build locks", "ok", f"none in {folder}")]
    return [_check_lock(lock) for lock in locks]


def _check_lock(lock: Path) -> Finding:
    builders = _processes_in(lock.parent)
    if builders:
        return Finding("build locks", "ok", f"{lock}: processes {', '.join(map(str, builders))} are building")
    try:
        minutes = (time.time() - max(path.stat().st_mtime for path in lock.parent.iterdir())) / 60
    except (OSError, ValueError):
        return Finding("build locks", "ok", f"{lock} was removed during the check")
    message = f"{lock}: no process on this machine builds there, last change {minutes:.0f} minutes ago"
    if minutes < _STALE_MINUTES:
        remedy = f"if no other node builds there, remove it: rm {lock}; every run would wait for it"
        return Finding("build locks", "warning", message, remedy)
    return Finding("build locks", "error", f"{message}: every run that needs this operator would hang", f"rm {lock}")


def _processes_in(folder: Path) -> list[int]:
    """Return the processes whose working directory is ``folder`` or below, such as ninja and its compilers."""
    processes = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            directory = Path(os.readlink(entry / "cwd"))
        except OSError:  # the process has ended, or belongs to another user
            continue
        if directory.is_relative_to(folder.resolve()):
            processes.append(int(entry.name))
    return sorted(processes)


def _check_compiler(environ: Mapping[str, str]) -> Finding:
    """Check whether Triton can compile the C stub that launches each kernel."""
    compiler = environ.get("CC") or next(filter(shutil.which, ("gcc", "clang")), None)
    if compiler is None or shutil.which(compiler) is None:
        cause = f"CC={compiler} is not a program" if compiler else "neither gcc nor clang is installed"
        message = f"{cause}; Triton compiles a C stub for each kernel"
        return Finding("compiler", "error", message, "install gcc, or set CC")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        remedy = "install Python's headers (Debian: python3-dev)"
        return Finding(
            "compiler", "error", f"{header} does not exist; Triton compiles a C stub for each kernel", remedy
        )
    return Finding("compiler", "ok", f"{compiler}, with Python's headers")
