"""Estimated GPU-hours and storage of a training run, from FLOPs and sizes; nothing is measured.

GPU-hours are FLOPs / (peak FLOP/s of a GPU x utilization). The FLOPs are those of matmuls and convolutions
(``flops.py``), so the utilization also accounts for element-wise operators, normalization, communication and data
loading.
"""

import re
from dataclasses import dataclass

from simcast_hpc.config import ConfigError

_FP32, _FP16 = 4, 2
_MOMENTS = 2
_LOG_BYTES_PER_RECORD = 500  # metrics.jsonl and TensorBoard events of the quickstart: 220 + 280 bytes
DEFAULT_UTILIZATION = 0.3
UTILIZATION_RANGE = (0.1, 0.4)
"""Range of utilizations for which costs are printed; convolutions and cuboid attention reach less than large GEMMs."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU by its data sheet.

    Attributes:
        title: name of the product.
        bf16_tflops: peak TFLOP/s of dense bf16 matmuls on the matrix units, without sparsity.
        fp32_tflops: peak TFLOP/s of fp32 outside the matrix units, that is without TF32.
        memory_gib: memory.
    """

    title: str
    bf16_tflops: float
    fp32_tflops: float
    memory_gib: int

    def peak_flops(self, precision: str) -> float:
        """Return the peak FLOP/s for ``bf16`` or ``fp32``."""
        return 1e12 * (self.bf16_tflops if precision == "bf16" else self.fp32_tflops)


GPUS = {
    "a100": Gpu(title="NVIDIA A100 SXM 80 GB", bf16_tflops=312.0, fp32_tflops=19.5, memory_gib=80),
    "h100": Gpu(title="NVIDIA H100 SXM 80 GB", bf16_tflops=989.0, fp32_tflops=67.0, memory_gib=80),
    "h200": Gpu(title="NVIDIA H200 SXM 141 GB", bf16_tflops=989.0, fp32_tflops=67.0, memory_gib=141),
    "mi250x": Gpu(
        title="AMD Instinct MI250X, one of two dies, 64 GB", bf16_tflops=191.5, fp32_tflops=23.9, memory_gib=64
    ),
    "mi300x": Gpu(title="AMD Instinct MI300X 192 GB", bf16_tflops=1307.0, fp32_tflops=163.4, memory_gib=192),
}
"""GPUs by the name of ``--gpu``.

Source: the vendors' data sheets (NVIDIA A100, H100 and H200 Tensor Core GPU, SXM form factor; AMD Instinct MI250X and
MI300X).
NVIDIA's H100 and H200 sheets list bf16 with sparsity, 1,979 TFLOP/s; dense is half of that. A device of an MI250X is
one of its two dies (GCD), with half of the data sheet's 383 and 47.9 TFLOP/s.
"""
# What torch calls the devices; the PCIe and NVL forms of H100 and H200 have other peaks.
_DEVICE_NAMES = {
    "a100": re.compile(r"A100-(SXM|PCI)", re.IGNORECASE),
    "h100": re.compile(r"^(?!.*(PCIe|NVL)).*\bG?H[12]00\b", re.IGNORECASE),
    "mi250x": re.compile(r"MI250X", re.IGNORECASE),
    "mi300x": re.compile(r"MI300X", re.IGNORECASE),
}


@dataclass(frozen=True, kw_only=True)
class DatasetSize:
    """Published size of a data set.

    Attributes:
        training_windows: training windows of the paper's configuration.
        test_windows: test windows of the same.
        events: events of all splits: storms, or days.
        frames_per_event: frames of an event.
        grid: height and width in pixels.
    """

    training_windows: int
    test_windows: int
    events: int
    frames_per_event: int
    grid: tuple[int, int]

    @property
    def frame_bytes(self) -> int:
        """Bytes of all frames as uint8, without compression."""
        return self.events * self.frames_per_event * self.grid[0] * self.grid[1]


DATASET_SIZES = {
    "sevir": DatasetSize(
        training_windows=35_718, test_windows=12_159, events=18_979, frames_per_event=49, grid=(384, 384)
    ),
    "hko7-cascast": DatasetSize(
        training_windows=8_772, test_windows=1_152, events=812 + 50 + 131, frames_per_event=240, grid=(480, 480)
    ),
    "meteonet": DatasetSize(
        training_windows=6_978, test_windows=994, events=6_978 + 2_234 + 994, frames_per_event=24, grid=(400, 400)
    ),
}
"""Sizes of the paper's data sets by ``data.dataset``.

Source: windows from SimCast's table of data sets (SEVIR 35,718 / 9,060 / 12,159, three windows per event; HKO-7
8,772 / 492 / 1,152; MeteoNet 6,978 / 2,234 / 994, one window per event); SEVIR's 18,979 events of 49 frames from its
catalog; HKO-7's 812 / 50 / 131 rainy days of 240 frames from its public lists of days. Days can have missing frames.
"""


@dataclass(frozen=True, kw_only=True)
class Work:
    """FLOPs of one part of a run.

    Attributes:
        part: name of the part.
        samples: number of samples, frames or windows that it processes.
        flops_per_sample: FLOPs of one of them.
        precision: ``bf16`` or ``fp32``, in which it is computed.
    """

    part: str
    samples: int
    flops_per_sample: float
    precision: str

    @property
    def flops(self) -> float:
        """FLOPs of all samples."""
        return self.samples * self.flops_per_sample

    def gpu_hours(self, gpu: Gpu, utilization: float) -> float:
        """Return the hours on one GPU at a share ``utilization`` of its peak; n GPUs need at least an n-th of them."""
        return self.flops / (gpu.peak_flops(self.precision) * utilization) / 3600


def find_gpu(name: str) -> Gpu:
    """Return a GPU by name.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in GPUS:
        raise ConfigError(f"--gpu {name} is unknown; choose from {', '.join(GPUS)}")
    return GPUS[name]


def device_peak_flops(device_name: str, precision: str) -> float | None:
    """Return the peak FLOP/s of a device by torch's name of it, for ``bf16`` or ``fp32``; None if it is unknown.

    The H200 and the GH200 have the arithmetic units of the H100 SXM.
    """
    found = (GPUS[key] for key, pattern in _DEVICE_NAMES.items() if pattern.search(device_name))
    gpu = next(found, None)
    return None if gpu is None else gpu.peak_flops(precision)


def checkpoint_bytes(parameters: int, *, average: bool, auxiliary: int = 0) -> int:
    """Return the bytes of one checkpoint: fp32 master weights and two Adam moments, moving average, other networks.

    Args:
        parameters: number of parameters of the trained network.
        average: whether a moving average of the weights is stored.
        auxiliary: parameters of a network outside the engine, stored with its moments.
    """
    states = 1 + _MOMENTS
    return _FP32 * (states * (parameters + auxiliary) + (parameters if average else 0))


def rollout_bytes(windows: int, *, frames_out: int, grid: tuple[int, int], pseudo_dtype: str) -> int:
    """Return the bytes of cached rollouts, ``[windows, T'l, H, W]`` in ``pseudo_dtype`` without compression."""
    return windows * frames_out * grid[0] * grid[1] * (1 if pseudo_dtype == "uint8" else _FP16)


def latent_bytes(windows: int, *, frames: int, channels: int, grid: tuple[int, int]) -> int:
    """Return the bytes of the cached latents of a diffusion, fp16 ``[windows, frames, C, h, w]``."""
    return windows * frames * channels * grid[0] * grid[1] * _FP16


def log_bytes(steps: int, *, every_steps: int) -> int:
    """Return the approximate bytes of ``metrics.jsonl`` and of the TensorBoard events."""
    return steps // every_steps * _LOG_BYTES_PER_RECORD
