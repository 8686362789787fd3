"""GPUs as the driver and as torch see them, and what slows their clocks."""

import shutil
import subprocess
from collections.abc import Mapping

import torch

from .finding import Finding

_FACTS = ("index", "name", "driver_version", "memory.total", "memory.used", "ecc.errors.uncorrected.volatile.total")
# Bits of NVML's reasons why a clock is below its maximum (nvml.h, nvmlClocksEventReason*), and what to do.
_COOL = "look at fans, inlet temperature and `nvidia-smi -q -d PERFORMANCE`; leave this node out until then"
_POWER = "look at the power supply and `nvidia-smi -q -d POWER`; leave this node out until then"
_REASONS = {
    0x08: ("slowed by hardware", _COOL),
    0x20: ("slowed by software because it is hot", _COOL),
    0x40: ("slowed by hardware because it is hot", _COOL),
    0x80: ("slowed by the power brake", _POWER),
}
# Drivers before and after 535 name the same number differently.
_ACTIVE = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
_OLDEST_CAPABILITY = (8, 0)
_BUSY_FRACTION = 0.1


def check_devices(environ: Mapping[str, str]) -> list[Finding]:
    """Return whether torch sees the GPUs that the driver sees, whether they are free, and their memory's errors."""
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    rows = _ask(_FACTS)
    if rows is None:
        return [_without_driver(seen)]
    if seen == 0:
        return [_unseen(environ, len(rows))]
    found = [
        Finding(
            "GPU", "ok", f"{seen} seen by torch {torch.__version__} (CUDA {torch.version.cuda}), driver {rows[0][2]}"
        )
    ]
    for index in range(seen):
        if (capability := torch.cuda.get_device_capability(index)) < _OLDEST_CAPABILITY:
            said = f"device {index} has compute capability {capability[0]}.{capability[1]}; kernels are made for 8.0 on"
            found.append(Finding("GPU", "warning", said, "use an A100 or later, or SIMCAST_KERNELS=reference"))
    for index, _name, _driver, total, used, errors in rows:
        if _number(used) > _BUSY_FRACTION * _number(total) > 0:
            said = f"GPU {index}: {used} of {total} MiB are taken by other programs"
            found.append(Finding("GPU", "warning", said, "look who they are (nvidia-smi), or take another GPU"))
        if _number(errors) > 0:
            said = f"GPU {index}: {errors} uncorrected errors of memory since the driver was loaded"
            found.append(Finding("GPU", "error", said, "leave this node out and have the GPU reset or replaced"))
    return found


def check_clock(device: torch.device) -> list[Finding]:
    """Return what slows the clock of ``device`` while it multiplies; an idle one says nothing of it."""
    if device.type != "cuda":
        return []
    which = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    block = torch.randn(4096, 4096, device=device, dtype=torch.bfloat16)
    for _ in range(2000):  # about a second on an A100, and nvidia-smi answers meanwhile
        torch.mm(block, block)
    clocks = _ask(("clocks.sm", "clocks.max.sm"), which)
    reasons = next((found for name in _ACTIVE if (found := _ask((name,), which))), None)
    torch.cuda.synchronize(device)
    if not clocks or not reasons:
        return [Finding("GPU clock", "warning", f"nvidia-smi does not tell the clock of {which}", "look at it by hand")]
    now, most = clocks[0]
    return judge_clock(str(device), now, most, int(reasons[0][0], 16))


def judge_clock(device: str, now: str, most: str, active: int) -> list[Finding]:
    """Return the findings of clocks (MHz) and NVML's bits of active reasons."""
    slowed = [
        Finding("GPU clock", "warning", f"{device} at {now} of {most} MHz: {said}", do)
        for bit, (said, do) in _REASONS.items()
        if active & bit
    ]
    return slowed or [Finding("GPU clock", "ok", f"{device} at {now} of {most} MHz under load")]


def _without_driver(seen: int) -> Finding:
    if seen:
        said = f"torch sees {seen} devices, but nvidia-smi does not answer: driver and clocks are not looked at"
        return Finding("GPU", "warning", said, "put nvidia-smi on PATH")
    if torch.version.cuda:
        said = f"torch {torch.__version__} is a CUDA build, and there is no driver here: everything runs on the CPU"
        return Finding("GPU", "warning", said, "start on a node with GPUs; on a CPU machine: make install DEVICE=cpu")
    return Finding("GPU", "ok", "none; everything runs on the CPU")


def _unseen(environ: Mapping[str, str], driver_sees: int) -> Finding:
    said = f"the driver sees {driver_sees} GPUs, torch {torch.__version__} none"
    if not torch.version.cuda:
        return Finding("GPU", "error", f"{said}: it is a CPU build", "make clean, then make install DEVICE=cuda")
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        do = "unset it, or ask Slurm for GPUs without --gpu-bind=none"
        return Finding("GPU", "error", f"{said}: CUDA_VISIBLE_DEVICES={visible!r}", do)
    return Finding("GPU", "error", said, "the driver is older than this CUDA build wants: update it, or take another")


def _ask(fields: tuple[str, ...], which: str | None = None) -> list[list[str]] | None:
    """Return nvidia-smi's answer, a row a GPU; None where it is absent or does not know a field."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    words = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run([*words, *(["-i", which] if which else [])], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    rows = [[part.strip() for part in line.split(",")] for line in told.stdout.splitlines() if line.strip()]
    return rows if told.returncode == 0 and rows and all(len(row) == len(fields) for row in rows) else None


def _number(text: str) -> float:
    """Return a number of nvidia-smi's, 0 for its ``[N/A]``."""
    try:
        return float(text)
    except ValueError:
        return 0.0
