"""GPUs as seen by the driver and by torch, and what throttles their clocks."""

import shutil
import subprocess
from collections.abc import Mapping

import torch

from .finding import Finding

_FIELDS = ("index", "name", "driver_version", "memory.total", "memory.used", "ecc.errors.uncorrected.volatile.total")
# Bits of NVML's clock event reasons (nvml.h, nvmlClocksEventReason*), and what to do.
_COOLING = "check fans, inlet temperature and `nvidia-smi -q -d PERFORMANCE`; exclude this node until then"
_POWER = "check the power supply and `nvidia-smi -q -d POWER`; exclude this node until then"
_REASONS = {
    0x08: ("hardware slowdown", _COOLING),
    0x20: ("software thermal slowdown", _COOLING),
    0x40: ("hardware thermal slowdown", _COOLING),
    0x80: ("power brake", _POWER),
}
# The field has another name since driver 535.
_ACTIVE = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
_MIN_CAPABILITY = (8, 0)
_BUSY_FRACTION = 0.1


def check_devices(environ: Mapping[str, str]) -> list[Finding]:
    """Check whether torch sees the GPUs of the driver, whether they are free, and their memory errors."""
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    rows = _query(_FIELDS)
    if rows is None:
        return [_without_driver(visible)]
    if visible == 0:
        return [_invisible(environ, len(rows))]
    summary = f"torch {torch.__version__} (CUDA {torch.version.cuda}) sees {visible}, driver {rows[0][2]}"
    findings = [Finding("GPU", "ok", summary)]
    for index in range(visible):
        if (capability := torch.cuda.get_device_capability(index)) < _MIN_CAPABILITY:
            message = f"device {index} has compute capability {capability[0]}.{capability[1]}; kernels require 8.0"
            findings.append(Finding("GPU", "warning", message, "use an A100 or later, or SIMCAST_KERNELS=reference"))
    for index, _name, _driver, total, used, errors in rows:
        if _number(used) > _BUSY_FRACTION * _number(total) > 0:
            message = f"GPU {index}: other programs use {used} of {total} MiB"
            findings.append(Finding("GPU", "warning", message, "find them with nvidia-smi, or use another GPU"))
        if _number(errors) > 0:
            message = f"GPU {index}: {errors} uncorrected memory errors since the driver was loaded"
            findings.append(Finding("GPU", "error", message, "exclude this node; have the GPU reset or replaced"))
    return findings


def check_clock(device: torch.device) -> list[Finding]:
    """Check what throttles the clock of ``device`` during matmuls; the clock of an idle GPU is not meaningful."""
    if device.type != "cuda":
        return []
    gpu = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    block = torch.randn(4096, 4096, device=device, dtype=torch.bfloat16)
    for _ in range(2000):  # about a second on an A100; nvidia-smi runs meanwhile
        torch.mm(block, block)
    clocks = _query(("clocks.sm", "clocks.max.sm"), gpu)
    reasons = next((rows for name in _ACTIVE if (rows := _query((name,), gpu))), None)
    torch.cuda.synchronize(device)
    if not clocks or not reasons:
        return [Finding("GPU clock", "warning", f"nvidia-smi does not report the clock of {gpu}", "check it manually")]
    current, maximum = clocks[0]
    return judge_clock(str(device), current, maximum, int(reasons[0][0], 16))


def judge_clock(device: str, current: str, maximum: str, active: int) -> list[Finding]:
    """Return the findings of clocks in MHz and of NVML's bits of active reasons."""
    throttled = [
        Finding("GPU clock", "warning", f"{device} at {current} of {maximum} MHz: {reason}", remedy)
        for bit, (reason, remedy) in _REASONS.items()
        if active & bit
    ]
    return throttled or [Finding("GPU clock", "ok", f"{device} at {current} of {maximum} MHz under load")]


def _without_driver(visible: int) -> Finding:
    if visible:
        message = f"torch sees {visible} devices, but nvidia-smi does not answer: driver and clocks are not checked"
        return Finding("GPU", "warning", message, "add nvidia-smi to PATH")
    if torch.version.cuda:
        message = f"torch {torch.__version__} is a CUDA build without a driver: everything runs on the CPU"
        return Finding("GPU", "warning", message, "use a node with GPUs; on a CPU machine: make install DEVICE=cpu")
    return Finding("GPU", "ok", "none; everything runs on the CPU")


def _invisible(environ: Mapping[str, str], driver_count: int) -> Finding:
    message = f"the driver sees {driver_count} GPUs, torch {torch.__version__} none"
    if not torch.version.cuda:
        return Finding("GPU", "error", f"{message}: it is a CPU build", "make clean, then make install DEVICE=cuda")
    devices = environ.get("CUDA_VISIBLE_DEVICES")
    if devices is not None:
        remedy = "unset it, or request GPUs from Slurm without --gpu-bind=none"
        return Finding("GPU", "error", f"{message}: CUDA_VISIBLE_DEVICES={devices!r}", remedy)
    return Finding(
        "GPU", "error", message, "the driver is too old for this CUDA build: update it, or use another build"
    )


def _query(fields: tuple[str, ...], gpu: str | None = None) -> list[list[str]] | None:
    """Return the output of nvidia-smi, one row per GPU; None if it is missing or does not support a field."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [
        program,
        f"--query-gpu={','.join(fields)}",
        "--format=csv,noheader,nounits",
        *(["-i", gpu] if gpu else []),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    return rows if done.returncode == 0 and rows and all(len(row) == len(fields) for row in rows) else None


def _number(text: str) -> float:
    """Return a number printed by nvidia-smi, 0 for ``[N/A]``."""
    try:
        return float(text)
    except ValueError:
        return 0.0
