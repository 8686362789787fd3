"""Compile the emulated device against the installed PyTorch, once: about ten seconds of one core.

The library is stored in the virtual environment, ``.venv/emulated_device``, under a hash of its source, of the compiler
and of PyTorch's version, so that it is compiled again only when one of them changes.
"""

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("emulated_cuda.cpp")
FLAGS = ("-O0", "-w", "-std=c++20", "-fPIC", "-shared", "-D_GLIBCXX_USE_CXX11_ABI=1")
_TIMEOUT_SECONDS = 600


def build(compiler: str) -> Path:
    """Return the path of the compiled library; ``compiler`` is the path of g++.

    Raises:
        RuntimeError: the compiler failed; the message contains its output.
    """
    version = importlib.metadata.version("torch")
    machine = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256("\0".join([SOURCE.read_text(), machine, version, *FLAGS]).encode()).hexdigest()[:16]
    folder = Path(sys.prefix) / "emulated_device"
    folder.mkdir(exist_ok=True)
    library = folder / f"emulated_cuda-{key}.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test processes compile it once
        if library.exists():
            return library
        specification = importlib.util.find_spec("torch")
        assert specification is not None and specification.submodule_search_locations
        torch = Path(specification.submodule_search_locations[0]).resolve()
        partial = library.with_suffix(f".{os.getpid()}.partial")
        command = [
            compiler, *FLAGS, "-isystem", f"{torch}/include", "-isystem", f"{torch}/include/torch/csrc/api/include",
            str(SOURCE), "-o", str(partial), f"-L{torch}/lib", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch}/lib",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{compiler} failed on {SOURCE}:\n{done.stderr[-3000:]}")
        for old in folder.glob("emulated_cuda-*"):
            if old != partial:
                old.unlink()
        partial.rename(library)
    return library
