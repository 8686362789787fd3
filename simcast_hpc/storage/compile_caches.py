"""Caches of compiled operators and kernels: their folders, and a check that no other user can write to them.

torch, DeepSpeed and Triton load shared libraries from these folders without a check, so whoever can write to one runs
code as this user.
"""

from collections.abc import Mapping
from pathlib import Path

from .private_folders import UntrustedFolderError, claim_private

SHARED = "SIMCAST_SHARED_CACHES"
# Folders of other caches of compiled code, which exist only where a user sets them.
_FURTHER = ("TORCHINDUCTOR_CACHE_DIR", "PYTORCH_KERNEL_CACHE_PATH", "CUDA_CACHE_PATH")


def extensions_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder of compiled operators of torch and DeepSpeed."""
    if folder := environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(folder)
    from torch.utils.cpp_extension import get_default_build_root  # late: it takes most of a second

    return Path(get_default_build_root())


def kernels_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder of compiled Triton kernels."""
    home = Path(environ.get("TRITON_HOME") or Path.home())
    return Path(environ.get("TRITON_CACHE_DIR") or home / ".triton" / "cache")


def check_caches(environ: Mapping[str, str], *, kernels: bool) -> None:
    """Check that only this user can write to the caches of compiled code.

    Call it on every rank before anything is compiled. A missing folder is created with mode 0700 where others could
    create it. ``SIMCAST_SHARED_CACHES=1`` permits caches that a trusted group or an administrator writes.

    Args:
        environ: the environment variables of the process.
        kernels: whether Triton kernels may be compiled in this process.

    Raises:
        UntrustedFolderError: another user can write to a cache; names the variable, the folder and its owner or mode.
    """
    if environ.get(SHARED) == "1":
        return
    folders = {"TORCH_EXTENSIONS_DIR": extensions_folder(environ)}
    if kernels:
        folders["TRITON_CACHE_DIR"] = kernels_folder(environ)
    folders |= {name: Path(environ[name]) for name in _FURTHER if environ.get(name)}
    for name, folder in folders.items():
        try:
            claim_private(folder)
        except UntrustedFolderError as error:
            raise UntrustedFolderError(
                f"{name}, a cache of compiled code: {error} (or set {SHARED}=1 if you trust every user who can write "
                "there)"
            ) from error
        except OSError:  # it cannot be created, so nothing is loaded from it
            continue
