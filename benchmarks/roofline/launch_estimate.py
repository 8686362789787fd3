"""Predict the time of a launch from its executed instructions: four lower bounds, and their combination.

- DRAM: bytes of every tensor that a block touches, once for reads and once for writes, at the copy bandwidth.
- L2: sectors between L2 and the multiprocessors, of all blocks.
- Issue: instructions of the busiest multiprocessor, over its four schedulers; and the busiest execution unit.
- Latency: duration of one block alone, in order, with every load at its latency, times the number of rounds of
  resident blocks.

The largest bound is the roofline. The estimate is larger where other bounds are close to it, see ``OVERLAP``; DRAM and
L2 count as one, because the same bytes pass both.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.compile_baseline import resident_warps
from simcast_kernels.dispatch import Launch

from . import gpu_rates as rates
from .gpu_rates import Cost, Gpu
from .launch_block import Tensors, constant_bank, middle_block
from .sass_execution import MEMORY, SECTOR, Step, Warp, width_of
from .sass_program import TRUE, ZERO, Instruction, disassemble, parse

PARTIAL_SUMS = ("partials", "d_bias", "d_global_key", "d_global_value")
"""Ends of the names of buffers that PyTorch reads again, to add them up."""
_LONG_STALL = 100  # cycles: a wait for L2 or DRAM


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What one launch does, by block: executed instructions of every warp, and bytes of all blocks together."""

    warps: tuple[tuple[Step, ...], ...]
    blocks: int
    tensors: Tensors
    registers: int
    shared_bytes: int
    target: str

    @property
    def instructions(self) -> int:
        """Executed warp instructions of a block."""
        return sum(map(len, self.warps))

    def sectors(self, *, stores: bool) -> Counter[int]:
        """Return the sectors that a block loads or stores, by tensor."""
        found: Counter[int] = Counter()
        for step in (step for warp in self.warps for step in warp):
            is_store = step.instruction.base in ("STG", "ATOMG", "RED")
            if step.access is not None and step.access.sectors and is_store == stores:
                found[step.access.tensor] += step.access.sectors
        return found

    def unique_bytes(self, *, stores: bool) -> dict[int, int]:
        """Return the bytes of each tensor that all blocks together read from, or write to, DRAM."""
        found = {}
        for number, sectors in self.sectors(stores=stores).items():
            traffic = sectors * SECTOR * self.blocks
            found[number] = traffic if number < 0 else min(traffic, self.tensors.sizes[number])
        return found

    @property
    def partial_bytes(self) -> int:
        """Bytes of the partial sums that another kernel reads again."""
        written = self.unique_bytes(stores=True)
        return sum(size for number, size in written.items() if self._name(number).endswith(PARTIAL_SUMS))

    def _name(self, number: int) -> str:
        return self.tensors.names[number] if number >= 0 else ""


def profile(launch: Launch, compiled: Any, *, target: str, registers: int) -> Profile:
    """Return the profile of a compiled launch, from the block in the middle of its grid.

    Args:
        launch: the launch.
        compiled: Triton's compiled kernel of it.
        target: ``sm_80`` or ``sm_90``.
        registers: per thread.

    Raises:
        SassError: the code cannot be executed without its data.
    """
    warps = compiled.metadata.num_warps
    bank, tensors = constant_bank(
        launch, compiled.src.signature, arch=int(target.removeprefix("sm_")), threads=32 * warps
    )
    program, block = parse(disassemble(compiled.asm["cubin"])), middle_block(launch, bank)
    blocks = 1
    for size in launch.grid:
        blocks *= size
    return Profile(
        warps=tuple(tuple(Warp(block, warp).run(program)) for warp in range(warps)),
        blocks=blocks,
        tensors=tensors,
        registers=registers,
        shared_bytes=compiled.metadata.shared,
        target=target,
    )


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Lower bounds of a launch on one GPU, seconds, and the counts behind them."""

    gpu: str
    dram: float
    l2: float
    issue: float
    latency: float
    partial_sums: float
    """Time of reading partial sums again, in another launch."""
    bytes: int
    l2_bytes: int
    instructions: int
    pipe: str
    block_cycles: float
    waits: int
    resident_warps: int

    @property
    def seconds(self) -> float:
        """Estimated time, with the sum of the partial sums."""
        power = rates.OVERLAP
        together = sum(bound**power for bound in (max(self.dram, self.l2), self.issue, self.latency))
        return together ** (1 / power) + self.partial_sums

    @property
    def floor(self) -> float:
        """Largest bound, with the sum of the partial sums: the roofline."""
        return max(self.bounds.values()) + self.partial_sums

    @property
    def bounds(self) -> Mapping[str, float]:
        """Return the four bounds by name."""
        return {"dram": self.dram, "l2": self.l2, "issue": self.issue, "latency": self.latency}

    @property
    def limit(self) -> str:
        """Name of the largest bound; for issue the busiest unit."""
        name = max(self.bounds, key=lambda bound: self.bounds[bound])
        return self.pipe if name == "issue" else name


def estimate(found: Profile, gpu: Gpu) -> Estimate:
    """Return the bounds of a launch on a GPU of the profile's target."""
    if gpu.target != found.target:
        raise ValueError(f"{gpu.name} is {gpu.target}; the profile is of {found.target}")
    # 1. Bytes, and the cache that serves the loads of each tensor
    reads, writes = found.unique_bytes(stores=False), found.unique_bytes(stores=True)
    loaded, stored = found.sectors(stores=False), found.sectors(stores=True)
    moved = sum(reads.values()) + sum(writes.values())
    caches = {number: _cache(found, number) for number in loaded}
    from_l2 = sum(count for number, count in loaded.items() if caches[number] != "l1") + sum(stored.values())
    traffic = SECTOR * found.blocks * from_l2
    # 2. Issue slots and execution units of the busiest multiprocessor
    busiest = -(-found.blocks // gpu.multiprocessors)
    slots = {"issue": found.instructions / rates.SUSTAINED_ISSUE}
    for step in (step for warp in found.warps for step in warp):
        cost = cost_of(step.instruction, gpu)
        slots[cost.pipe] = slots.get(cost.pipe, 0.0) + cost.cycles / rates.SUSTAINED_PIPE
    pipe = max(slots, key=lambda name: slots[name])
    issue = slots[pipe] * busiest / rates.SCHEDULERS / gpu.clock
    # 3. Latency
    spans = [duration(warp, gpu, caches=caches) for warp in found.warps]
    cycles, waits = max(spans)
    resident = resident_warps(found.target, found.registers, found.shared_bytes, warps=len(found.warps))
    rounds = max(1.0, busiest / (resident // len(found.warps)))
    return Estimate(
        gpu=gpu.name,
        dram=moved / gpu.copy,
        l2=traffic / gpu.l2,
        issue=issue,
        latency=rounds * cycles / gpu.clock,
        partial_sums=found.partial_bytes / gpu.copy,
        bytes=moved,
        l2_bytes=traffic,
        instructions=found.instructions,
        pipe=pipe,
        block_cycles=cycles,
        waits=waits,
        resident_warps=resident,
    )


def _cache(found: Profile, number: int) -> str:
    """Return where the loads of a tensor hit: ``dram``, or ``l2`` or ``l1`` if many blocks read the same bytes."""
    used = SECTOR * found.sectors(stores=False)[number]
    if number < 0 or used * found.blocks <= 2 * found.tensors.sizes[number]:
        return "dram"
    copied = any(
        step.instruction.base == "LDGSTS" and step.access is not None and step.access.tensor == number
        for step in found.warps[0]
    )
    return "l2" if copied or used > rates.L1_REUSED_BYTES else "l1"


def cost_of(instruction: Instruction, gpu: Gpu) -> Cost:
    """Return the execution unit, its occupancy and the latency of an instruction on a GPU."""
    base, modifiers = instruction.base, instruction.modifiers
    if base in MEMORY:
        cycles = rates.SCHEDULERS * max(1, 32 * width_of(instruction) / rates.LSU_BYTES)
        return Cost("lsu", cycles, rates.SHARED_LATENCY)
    if base in rates.FMA_OPS:
        return Cost("fma", gpu.fma_cycles, 4)
    if base == "IMAD":
        return rates.WIDE_MULTIPLY if {"WIDE", "HI"} & modifiers else rates.INTEGER_MULTIPLY
    if base == "HMMA":
        return Cost("tensor", gpu.mma_cycles / (2 if "1688" in modifiers else 1), rates.MMA_LATENCY)
    if base == "HGMMA":
        columns = int(instruction.opcode.split(".")[1].split("x")[1])
        return Cost("tensor", gpu.wgmma_cycles * columns, gpu.wgmma_cycles * columns)
    if base in rates.XU_OPS:
        return rates.XU
    if base in rates.SHUFFLE_OPS:
        return rates.SHUFFLE
    if base in ("LDC", "ULDC"):
        return rates.CONSTANT
    if base in rates.SPECIAL_OPS:
        return rates.SPECIAL
    if base in rates.CONTROL_OPS:
        return rates.CONTROL
    return rates.UNIFORM if base.startswith("U") else rates.ALU


def duration(warp: Sequence[Step], gpu: Gpu, *, caches: Mapping[int, str]) -> tuple[float, int]:
    """Return the cycles of one warp alone, issuing in order, and how often it waits for L2 or DRAM.

    Args:
        warp: its executed instructions.
        gpu: the GPU.
        caches: where the loads of each tensor hit: ``l1``, ``l2`` or ``dram``, the default.
    """
    l2 = gpu.l2_latency * gpu.clock
    latencies = {"dram": gpu.dram_latency * gpu.clock, "l2": l2, "l1": rates.L1_LATENCY}
    ready: dict[tuple[str, int], float] = {}
    distinct = {step.instruction.number: step.instruction for step in warp}
    dependences = {number: _dependences(instruction) for number, instruction in distinct.items()}
    now, waits, tensor_ready = 0.0, 0, 0.0
    copies: list[float] = []  # completion of asynchronous copies that no group contains yet
    groups: list[float] = []
    for step in warp:
        instruction = step.instruction
        reads, writes = dependences[instruction.number]
        start = max([now, *(ready.get(key, 0.0) for key in reads)])
        cost = cost_of(instruction, gpu)
        latency = cost.latency
        if step.access is not None and step.access.sectors:
            latency = latencies[caches.get(step.access.tensor, "dram")]
            if instruction.base in ("ATOMG", "RED"):
                latency = l2
        match instruction.base:
            case "LDGSTS":
                copies.append(start + latency)
            case "LDGDEPBAR":
                groups.append(max(copies, default=start))
                copies = []
            case "DEPBAR":
                allowed = instruction.operands[-1].index if instruction.operands[-1].kind == "number" else 0
                done = groups[: len(groups) - allowed]
                start = max([start, *done])
            case "HGMMA":
                tensor_ready = max(tensor_ready, start) + latency
            case "WARPGROUP" if "DEPBAR" in instruction.modifiers:
                start = max(start, tensor_ready)
            case "BAR":
                start += rates.BARRIER
            case "MEMBAR":
                start += l2
        if start - now > _LONG_STALL:
            waits += 1
        now = start + 1
        for key in writes:
            ready[key] = start + latency
    return now, waits


def _dependences(instruction: Instruction) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Return the registers and predicates that an instruction reads and writes."""
    reads, writes = [], []
    base = instruction.base
    is_store = base.startswith("ST") or base in ("LDGSTS", "RED")
    words = max(1, width_of(instruction) // 4) if base in MEMORY else 1
    if base == "HMMA":
        words = 4
    if {"WIDE", "64"} & instruction.modifiers and base not in MEMORY:
        words = 2
    if instruction.guard is not None and instruction.guard.index != TRUE:
        reads.append((instruction.guard.kind, instruction.guard.index))
    for place, operand in enumerate(instruction.operands):
        for term in operand.terms:
            reads += [(term.kind, term.index + part) for part in range(2 if ".64" in term.text else 1)]
        if operand.kind not in ("register", "uniform", "predicate", "uniform_predicate") or operand.index == ZERO:
            continue
        leading = all(o.kind.endswith("predicate") for o in instruction.operands[:place])
        is_predicate = operand.kind.endswith("predicate")
        if not is_store and (leading or (is_predicate and place == 1)) and base not in rates.CONTROL_OPS:
            writes += [(operand.kind, operand.index + part) for part in range(1 if is_predicate else words)]
        else:
            count = words if base in MEMORY or base == "HMMA" else 1
            reads += [(operand.kind, operand.index + part) for part in range(1 if is_predicate else count)]
    return reads, writes
