"""Make a CPU build of PyTorch use the emulated CUDA device; :func:`start` must run before ``torch`` is imported.

The environment variable EMULATED_DEVICES is the number of devices of the machine, and CUDA_VISIBLE_DEVICES selects from
them as the CUDA driver does. :func:`show_devices` applies both again, in a forked process with another environment.
"""

import ctypes
import functools
import os
import time
import types
from pathlib import Path
from typing import Any

NAME = "Emulated GPU"
_GIB = 1 << 30
_library: Any = None


def visible_ids() -> list[int]:
    """Return the devices that CUDA_VISIBLE_DEVICES makes visible; the first invalid entry hides it and all after it."""
    count = int(os.environ.get("EMULATED_DEVICES", "1"))
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return list(range(count))
    ids: list[int] = []
    for entry in text.split(","):
        if not entry.strip().isdigit() or int(entry) >= count:
            break
        ids.append(int(entry))
    return ids


def show_devices() -> None:
    """Apply the environment variables."""
    _library.emulated_begin(len(visible_ids()))


def start(library: Path) -> None:
    """Load the device and replace the Python layer of ``torch.cuda``."""
    global _library
    _library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)  # before torch asks whether there is a device
    show_devices()
    import torch

    from . import emulated_nccl, recorded_graphs

    _install(torch)
    recorded_graphs.install(lambda on: _library.emulated_capture(int(on)))
    emulated_nccl.install(_library.emulated_current_device)


class _Stream:
    def __init__(self, device: Any = None, priority: int = 0, **_: Any):
        self.device = device
        self.cuda_stream = self.stream_id = id(self) & 0xFFFF

    def wait_stream(self, _other: Any) -> None: ...

    def wait_event(self, _event: Any) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self, event: Any = None) -> Any:
        return event or _Event()

    def query(self) -> bool:
        return True

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *_: Any) -> None: ...


class _Event:
    def __init__(self, enable_timing: bool = False, **_: Any):
        self.seconds = 0.0

    def record(self, stream: Any = None) -> None:
        self.seconds = time.perf_counter()

    def wait(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: "_Event") -> float:
        return (other.seconds - self.seconds) * 1e3


_default_stream = _Stream()
_streams = [_default_stream]


class _StreamContext:
    def __init__(self, stream: Any):
        self.stream = stream

    def __enter__(self) -> None:
        _streams.append(self.stream or _streams[-1])

    def __exit__(self, *_: Any) -> None:
        _streams.pop()


def _set_device(index: int) -> None:
    visible = _library.emulated_visible()
    if index >= visible:
        raise RuntimeError(f"CUDA error: invalid device ordinal ({index} of {visible})")
    _library.emulated_set_device(index)


class _DeviceContext:
    def __init__(self, device: Any):
        self.index = _index(device)

    def __enter__(self) -> None:
        self.previous = _library.emulated_current_device()
        _set_device(self.index)

    def __exit__(self, *_: Any) -> None:
        _set_device(self.previous)


def _index(device: Any = None) -> int:
    import torch

    index = device if isinstance(device, int) else None if device is None else torch.device(device).index
    return _library.emulated_current_device() if index is None or index < 0 else index


def _properties(device: Any = None) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        name=NAME, major=9, minor=0, total_memory=80 * _GIB, multi_processor_count=132, warp_size=32,
        uuid=f"GPU-{os.environ.get('SLURMD_NODENAME', '')}{visible_ids()[_index(device)]}",
        shared_memory_per_block_optin=232448,
        L2_cache_size=50 << 20, regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048, gcnArchName="", is_integrated=False,
    )  # fmt: skip


def _install(torch: Any) -> None:
    cuda = torch.cuda
    state = torch.zeros(16, dtype=torch.uint8)  # the generator of the device is that of the CPU
    replacements: dict[str, Any] = {
        # 1. Devices
        "is_available": lambda: _library.emulated_visible() > 0, "device_count": lambda: _library.emulated_visible(),
        "current_device": lambda: _library.emulated_current_device(),
        "set_device": lambda device: _set_device(_index(device)), "device": _DeviceContext,
        "is_initialized": lambda: True, "init": lambda: None, "_lazy_init": lambda: None,
        "_lazy_call": lambda *_, **__: None, "_is_in_bad_fork": lambda: False,
        "get_device_properties": _properties, "get_device_name": lambda _=None: NAME,
        "get_device_capability": lambda _=None: (9, 0), "is_bf16_supported": lambda *_, **__: True,
        "current_blas_handle": lambda: 0, "ipc_collect": lambda: None,
        # 2. Streams and events
        "Stream": _Stream, "Event": _Event, "stream": _StreamContext, "StreamContext": _StreamContext,
        "current_stream": lambda _=None: _streams[-1], "default_stream": lambda _=None: _default_stream,
        "set_stream": lambda _: None, "synchronize": lambda _=None: None,
        # 3. Memory
        "empty_cache": lambda: None, "memory_allocated": lambda _=None: _GIB,
        "max_memory_allocated": lambda _=None: _GIB,
        "memory_reserved": lambda _=None: _GIB, "max_memory_reserved": lambda _=None: _GIB,
        "reset_peak_memory_stats": lambda _=None: None, "memory_stats": lambda _=None: {},
        "mem_get_info": lambda _=None: (79 * _GIB, 80 * _GIB),
        # 4. Random numbers
        "manual_seed": lambda _: None, "manual_seed_all": lambda _: None, "seed_all": lambda: None,
        "initial_seed": lambda: 0, "get_rng_state": lambda _="cuda": state, "set_rng_state": lambda *_: None,
        "get_rng_state_all": lambda: [state],
    }  # fmt: skip
    for name, value in replacements.items():
        setattr(cuda, name, value)
    for name in ("get_rng_state", "set_rng_state", "manual_seed", "manual_seed_all"):
        setattr(cuda.random, name, replacements[name])
    cuda.memory.reset_peak_memory_stats = replacements["reset_peak_memory_stats"]
    cuda.default_generators = [torch.default_generator] * 64
    cuda.nvtx.range_push = cuda.nvtx.range_pop = cuda.nvtx.mark = lambda *_: 0
    cuda.nccl.version = lambda: (2, 29, 7)
    torch._C._cuda_getCurrentRawStream = lambda _: 0
    torch.version.cuda = "13.0"
    torch.Tensor.record_stream = lambda _self, _stream: None
    torch.Tensor.pin_memory = _pin_memory
    torch.empty = _with_pinned_memory(torch.empty)


_callbacks: list[Any] = []
_pinned: list[Any] = []  # tensors, kept, so that no other tensor gets the memory


def _pin_memory(tensor: Any, device: Any = None) -> Any:
    own = tensor.untyped_storage().data_ptr()
    if any(one.untyped_storage().data_ptr() == own for one in _pinned):
        return tensor  # as PyTorch does
    return _pin(tensor.clone())


def _pin(tensor: Any) -> Any:
    _pinned.append(tensor)
    _library.emulated_pin(ctypes.c_void_p(tensor.untyped_storage().data_ptr()))
    return tensor


def _with_pinned_memory(empty: Any) -> Any:
    from torch.utils import _device

    _device._device_constructors()  # caches the function itself, which ``with torch.device(...)`` looks for

    @functools.wraps(empty)
    def wrapper(*sizes: Any, pin_memory: bool = False, **options: Any) -> Any:
        tensor = empty(*sizes, **options)
        return _pin(tensor) if pin_memory else tensor

    return wrapper


def list_synchronizations(path: Path) -> None:
    """Append a line to ``path`` for each operation of a training step that makes the host wait for the device.

    A line is its kind, a tab, and the innermost line of code in the project or in DeepSpeed: ``folder/file.py:line``.
    Hooks after a step, the start and the end of a run, and the emulated NCCL are not listed.
    """
    import traceback

    log = path.open("a", encoding="utf-8", buffering=1)
    packages = ("/simcast_hpc/", "/simcast_kernels/", "/deepspeed/")

    def is_in_step(frames: list[Any]) -> bool:
        if any(frame.filename.endswith("emulated_nccl.py") for frame in frames):
            return False
        if not any(frame.filename.endswith("train/trainer.py") for frame in frames):
            return True  # a thread of autograd
        return any(f.filename.endswith("train/loop.py") and f.name in ("_forward_backward", "step") for f in frames)

    @ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int64)
    def note(kind: bytes, _bytes: int) -> None:
        stack = list(traceback.extract_stack())
        if kind.endswith(b"in the background") or not is_in_step(stack):
            return
        place = "autograd"
        for frame in stack:
            for package in packages:
                if package in frame.filename:
                    place = f"{package.strip('/')}/{frame.filename.rpartition(package)[2]}:{frame.lineno}"
        log.write(f"{kind.decode()}\t{place}\n")

    _callbacks.append(note)  # ctypes does not keep it
    _library.emulated_on_synchronization(note)
