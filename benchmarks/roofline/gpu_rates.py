"""Published rates of GPUs, and the assumptions of the estimate. Nothing here is measured by this project.

Sources:

[1] NVIDIA data sheets of H100 SXM, H200 SXM and A100 SXM 80 GB: memory bandwidth, clock, tensor core rates.
[2] CUDA C++ Programming Guide, table "Throughput of Native Arithmetic Instructions", compute capabilities 8.0 and 9.0:
    operations per cycle and multiprocessor; a multiprocessor has four schedulers, a warp 32 lanes.
[3] Luo et al., Benchmarking and Dissecting the Nvidia Hopper GPU Architecture (2024), memory latency table: H100 PCIe
    shared memory 29 cycles, L1 41, L2 263, global memory 479; A100 29, 38, 262, 466. Tensor core tables:
    mma.m16n8k16 about 33 cycles; on H100 ``mma`` reaches about 62 % of the rate of ``wgmma``.
[4] Chips and Cheese, Nvidia's H100: Funny L2, and Tons of Bandwidth (2023): L2 read bandwidth of H100 PCIe and A100.
"""

from dataclasses import dataclass
from typing import NamedTuple

COPY_SHARE = 0.9
"""Copy bandwidth divided by the data sheet's bandwidth: 4.3 of 4.8 TB/s on an H200. Assumed for all three."""
SUSTAINED_ISSUE = 0.7
"""Share of issue slots that real kernels sustain (assumption; 0.6 to 0.7 is usual)."""
SUSTAINED_PIPE = 0.9
"""Share of the peak rate of one execution unit that real kernels sustain (assumption)."""
LOADED_LATENCY = 1.5
"""Latency of DRAM near saturation divided by the unloaded latency of [3] (assumption)."""
OVERLAP = 3.0
"""Exponent of the sum of bounds: time^3 is the sum of bound^3 (assumption). Infinity would be the largest bound."""
L1_REUSED_BYTES = 65_536
"""Bytes per block, of a tensor that many blocks read, that stay in L1 (assumption; L1 has 192 to 256 KiB)."""
SCHEDULERS = 4
LSU_BYTES = 128
"""Bytes per cycle and multiprocessor between registers and L1 or shared memory."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU; times in seconds, rates per second, instruction costs in cycles of one scheduler per warp."""

    name: str
    target: str
    multiprocessors: int
    clock: float
    copy: float
    l2: float
    dram_latency: float
    l2_latency: float
    fma_cycles: float
    mma_cycles: float
    """``HMMA.16816``; half of it for ``HMMA.1688``."""
    wgmma_cycles: float
    """``HGMMA.64xNx16``, per column of N."""


H100 = Gpu(
    name="H100", target="sm_90", multiprocessors=132, clock=1.98e9, copy=COPY_SHARE * 3.35e12, l2=5.5e12,
    dram_latency=LOADED_LATENCY * 479 / 1.755e9, l2_latency=263 / 1.755e9, fma_cycles=1, mma_cycles=6.5,
    wgmma_cycles=0.5,
)  # fmt: skip
H200 = Gpu(**{**H100.__dict__, "name": "H200", "copy": 4.3e12})
A100 = Gpu(
    name="A100", target="sm_80", multiprocessors=108, clock=1.41e9, copy=COPY_SHARE * 2.04e12, l2=4.0e12,
    dram_latency=LOADED_LATENCY * 466 / 1.41e9, l2_latency=262 / 1.41e9, fma_cycles=2, mma_cycles=8, wgmma_cycles=0.5,
)  # fmt: skip
GPUS = (H200, H100, A100)


class Cost(NamedTuple):
    """Execution unit of an instruction, cycles it occupies that of one scheduler, and cycles until its result is."""

    pipe: str
    cycles: float
    latency: float


# [2]: 64 operations per cycle and multiprocessor take 2 cycles of a scheduler's unit, 32 take 4, 16 take 8.
ALU, UNIFORM, XU = Cost("alu", 2, 4), Cost("uniform", 2, 10), Cost("xu", 8, 20)
INTEGER_MULTIPLY, WIDE_MULTIPLY = Cost("fma", 2, 4), Cost("fma", 4, 5)
SHUFFLE, CONTROL = Cost("lsu", 4, 23), Cost("control", 0, 1)
CONSTANT, SPECIAL = Cost("control", 0, 30), Cost("control", 0, 20)
SHARED_LATENCY, L1_LATENCY, MMA_LATENCY, BARRIER = 29, 41, 33, 25

FMA_OPS = {"FADD", "FMUL", "FFMA", "HFMA2", "HADD2", "HMUL2"}
XU_OPS = {"MUFU", "I2F", "F2I", "F2F", "FCHK", "POPC", "FLO", "BREV"}
SHUFFLE_OPS = {"SHFL", "REDUX", "VOTE", "MATCH"}
CONTROL_OPS = {
    "BRA", "EXIT", "NOP", "BSSY", "BSYNC", "CALL", "RET", "BAR", "DEPBAR", "LDGDEPBAR", "WARPGROUP", "WARPSYNC",
    "YIELD", "MEMBAR", "ERRBAR", "CGAERRBAR", "CCTL", "BMOV", "FENCE",
}  # fmt: skip
SPECIAL_OPS = {"S2R", "S2UR", "CS2R", "R2UR", "LEPC"}
