"""The committed compile table, and what of it a compiler or a change of a kernel made worse.

``benchmarks/compiled.csv`` holds one line for each launch and target. A row is worse than its committed one if more of
it spills, if it takes more shared memory, if more registers let fewer warps stand on a multiprocessor, if its matrix
products moved to a weaker unit, or if a smaller share of its loads and stores is 16 bytes wide. Registers alone are no
loss: what they cost is warps to hide latency with, and those are lost in whole blocks.
"""

import csv
import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .compile_kernels import Row

TRITON_WARPS = 4  # of a launch that names none
COMMITTED = Path(__file__).parent / "compiled.csv"
# Weakest first: one thread's own arithmetic, a warp's matrix product, that of a group of warps or of a wavefront.
UNITS = ("", "mma", "mfma", "wgmma", "tcgen05")


class Processor(NamedTuple):
    """What blocks share on one multiprocessor: registers and shared memory are handed out in these portions.

    Source: CUDA C++ Programming Guide, table of technical specifications per compute capability (registers by 256 to a
    warp, 1 KiB of shared memory reserved for each block); AMD Instinct MI300 instruction set, sections 3.6 and 4 (512
    registers a lane and SIMD by 8, 4 SIMDs with 8 waves each to a compute unit).
    """

    registers: int
    registers_by: int
    warps: int
    blocks: int
    shared_bytes: int
    shared_reserved: int


PROCESSORS = {
    "sm_80": Processor(65_536, 256, 64, 32, 167_936, 1024),
    "sm_90": Processor(65_536, 256, 64, 32, 233_472, 1024),
    "sm_100": Processor(65_536, 256, 64, 32, 233_472, 1024),
    "gfx942": Processor(4 * 512 * 64, 8 * 64, 32, 32, 65_536, 0),
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the committed table; ``warps`` are those that can stand on a multiprocessor at once."""

    op: str
    kernel: str
    case: str
    direction: str
    target: str
    dispatched: bool
    options: str
    registers: int
    warps: int
    spill_bytes: int
    shared_bytes: int
    unit: str
    products: int
    wide: int
    accesses: int
    triton: str

    @property
    def key(self) -> tuple[str, ...]:
        """What makes it the same launch before and after; a candidate is told from others by its options."""
        return self.op, self.kernel, self.case, self.direction, self.target, "" if self.dispatched else self.options

    @property
    def share(self) -> Fraction:
        """Share of loads and stores that move 16 bytes; of none, all."""
        return Fraction(self.wide, self.accesses) if self.accesses else Fraction(1)

    def __str__(self) -> str:
        return " ".join(filter(None, self.key))


def entry_of(row: "Row", *, triton: str) -> Entry:
    """Return the line of the committed table that a compiled launch makes."""
    counts = {name: int(count) for name, count in (mark.split(":") for mark in row.marks.split())}
    unit = max((name for name in UNITS if counts.get(name)), key=UNITS.index, default="")
    return Entry(
        op=row.op,
        kernel=row.kernel,
        case=row.case,
        direction=row.direction,
        target=row.target,
        dispatched=row.dispatched,
        options=row.options,
        registers=row.registers,
        warps=standing_warps(row.target, row.registers, row.shared_bytes, warps=_warps_of(row.options)),
        spill_bytes=row.spill_bytes,
        shared_bytes=row.shared_bytes,
        unit=unit,
        products=counts.get(unit, 0),
        wide=counts.get("ld16", 0) + counts.get("st16", 0),
        accesses=counts.get("ld", 0) + counts.get("st", 0),
        triton=triton,
    )


def standing_warps(target: str, registers: int, shared_bytes: int, *, warps: int) -> int:
    """Return how many warps of a kernel can stand on one multiprocessor at once.

    Args:
        target: a key of ``PROCESSORS``.
        registers: of a thread.
        shared_bytes: of a block.
        warps: of a block.
    """
    has = PROCESSORS[target]
    lanes = 64 if target.startswith("gfx") else 32
    each = -(-registers * lanes // has.registers_by) * has.registers_by
    by_registers = has.registers // each // warps if each else has.blocks
    by_shared = has.shared_bytes // (shared_bytes + has.shared_reserved) if shared_bytes else has.blocks
    return warps * min(has.blocks, has.warps // warps, by_registers, by_shared)


def _warps_of(options: str) -> int:
    found = re.search(r"\bnum_warps=(\d+)", options)
    return int(found[1]) if found else TRITON_WARPS


def worse(before: Entry, after: Entry) -> list[str]:
    """Return what got worse, one text for each column; see the top of this file for what counts."""
    found = []
    for column in ("spill_bytes", "shared_bytes"):
        old, new = getattr(before, column), getattr(after, column)
        if new > old:
            found.append(f"{column} {old} -> {new}")
    if after.registers > before.registers and after.warps < before.warps:
        found.append(f"registers {before.registers} -> {after.registers}, warps {before.warps} -> {after.warps}")
    if UNITS.index(after.unit) < UNITS.index(before.unit):
        found.append(f"unit {before.unit} -> {after.unit or 'none'}")
    if after.share < before.share:
        found.append(f"16-byte accesses {before.wide} of {before.accesses} -> {after.wide} of {after.accesses}")
    return found


class Comparison(NamedTuple):
    """Two tables compared: texts of rows that got worse or are gone, and of what is only new or better."""

    worse: list[str]
    said: list[str]


def compare(committed: Sequence[Entry], compiled: Sequence[Entry]) -> Comparison:
    """Compare every compiled row with its committed one; rows of other operators or targets are not asked for."""
    asked = {(entry.op, entry.target) for entry in compiled}
    before = {entry.key: entry for entry in committed if (entry.op, entry.target) in asked}
    after = {entry.key: entry for entry in compiled}
    lost = [f"{before[key]}: gone" for key in before.keys() - after.keys()]
    said = [f"{after[key]}: new" for key in after.keys() - before.keys()]
    for key in before.keys() & after.keys():
        lost += [f"{after[key]}: {text}" for text in worse(before[key], after[key])]
        said += [f"{after[key]}: better, {text}" for text in worse(after[key], before[key])]
        if before[key].options != after[key].options:
            said.append(f"{after[key]}: options {before[key].options} -> {after[key].options}")
    return Comparison(sorted(lost), sorted(said))


def read(path: Path = COMMITTED) -> list[Entry]:
    """Return the committed table.

    Raises:
        FileNotFoundError: there is none.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = {field.name: field.type for field in dataclasses.fields(Entry)}
    return [Entry(**{name: _read_as(kinds[name], text) for name, text in row.items()}) for row in rows]


def _read_as(kind: object, text: str) -> object:
    return text == "True" if kind is bool else kind(text) if kind is int else text


def write(entries: Iterable[Entry], path: Path = COMMITTED) -> None:
    """Write the table anew, in the order of its keys, so that a change of it reads as a change of rows."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Entry)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(entry) for entry in sorted(entries, key=lambda entry: entry.key))


def merged(committed: Sequence[Entry], compiled: Sequence[Entry]) -> list[Entry]:
    """Return the committed table with all rows of the compiled operators and targets put in their place."""
    asked = {(entry.op, entry.target) for entry in compiled}
    return [entry for entry in committed if (entry.op, entry.target) not in asked] + list(compiled)
