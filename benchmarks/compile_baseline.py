"""The committed compile table, and its comparison with a newly compiled one.

``benchmarks/compiled.csv`` contains one line per launch and target. A row got worse if it spills more, needs more
shared memory, needs more registers so that fewer warps are resident on a multiprocessor, uses a weaker matrix unit, or
if a smaller share of its loads and stores is 16 bytes wide. More registers with the same number of resident warps are
not worse.
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

TRITON_WARPS = 4  # default of a launch
COMMITTED = Path(__file__).parent / "compiled.csv"
# Weakest first: no matrix unit, warp-level, wavefront-level, warp-group-level, fifth-generation tensor cores.
UNITS = ("", "mma", "mfma", "wgmma", "tcgen05")


class Processor(NamedTuple):
    """Resources that blocks share on one multiprocessor, and their allocation granularity.

    Source: CUDA C++ Programming Guide, table of technical specifications per compute capability (256 registers
    per warp, 1 KiB of shared memory reserved per block); AMD Instinct MI300 instruction set, sections 3.6 and 4 (512
    registers per lane and SIMD in units of 8, 4 SIMDs with 8 waves each per compute unit).
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
    """One line of the committed table.

    Attributes:
        real: False for a case that only tests the edges of the tiling.
        warps: resident warps per multiprocessor.
        products: instructions of ``unit``.
        wide: loads, stores and asynchronous copies of 16 bytes, of the ``accesses`` of any width.
        asynchronous: copies from global to shared memory that do not wait (``cp.async``).
    """

    op: str
    kernel: str
    case: str
    direction: str
    target: str
    real: bool
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
    asynchronous: int
    triton: str

    @property
    def key(self) -> tuple[str, ...]:
        """Identity of the launch across tables; candidates are distinguished by their options."""
        return self.op, self.kernel, self.case, self.direction, self.target, "" if self.dispatched else self.options

    @property
    def share(self) -> Fraction:
        """Share of loads, stores and copies that move 16 bytes; 1 without any."""
        return Fraction(self.wide, self.accesses) if self.accesses else Fraction(1)

    def __str__(self) -> str:
        return " ".join(filter(None, self.key))


def entry_of(row: "Row", *, triton: str) -> Entry:
    """Return the line of the committed table for a compiled launch."""
    counts = {name: int(count) for name, count in (mark.split(":") for mark in row.marks.split())}
    unit = max((name for name in UNITS if counts.get(name)), key=UNITS.index, default="")
    return Entry(
        op=row.op,
        kernel=row.kernel,
        case=row.case,
        direction=row.direction,
        target=row.target,
        real=row.real,
        dispatched=row.dispatched,
        options=row.options,
        registers=row.registers,
        warps=resident_warps(row.target, row.registers, row.shared_bytes, warps=_warps_of(row.options)),
        spill_bytes=row.spill_bytes,
        shared_bytes=row.shared_bytes,
        unit=unit,
        products=counts.get(unit, 0),
        wide=sum(counts.get(name, 0) for name in ("ld16", "st16", "cp16")),
        accesses=sum(counts.get(name, 0) for name in ("ld", "st", "cp")),
        asynchronous=counts.get("cp", 0),
        triton=triton,
    )


def resident_warps(target: str, registers: int, shared_bytes: int, *, warps: int) -> int:
    """Return the number of warps of a kernel that are resident on one multiprocessor.

    Args:
        target: a key of ``PROCESSORS``.
        registers: per thread.
        shared_bytes: per block.
        warps: per block.
    """
    processor = PROCESSORS[target]
    lanes = 64 if target.startswith("gfx") else 32
    each = -(-registers * lanes // processor.registers_by) * processor.registers_by
    by_registers = processor.registers // each // warps if each else processor.blocks
    by_shared = (
        processor.shared_bytes // (shared_bytes + processor.shared_reserved) if shared_bytes else processor.blocks
    )
    return warps * min(processor.blocks, processor.warps // warps, by_registers, by_shared)


def _warps_of(options: str) -> int:
    found = re.search(r"\bnum_warps=(\d+)", options)
    return int(found[1]) if found else TRITON_WARPS


def worse(before: Entry, after: Entry) -> list[str]:
    """Return what got worse, one message per column; see the docstring of this module."""
    messages = []
    for column in ("spill_bytes", "shared_bytes"):
        old, new = getattr(before, column), getattr(after, column)
        if new > old:
            messages.append(f"{column} {old} -> {new}")
    if after.registers > before.registers and after.warps < before.warps:
        messages.append(f"registers {before.registers} -> {after.registers}, warps {before.warps} -> {after.warps}")
    if UNITS.index(after.unit) < UNITS.index(before.unit):
        messages.append(f"unit {before.unit} -> {after.unit or 'none'}")
    if after.share < before.share:
        messages.append(f"16-byte accesses {before.wide} of {before.accesses} -> {after.wide} of {after.accesses}")
    return messages


class Comparison(NamedTuple):
    """Messages about rows that got worse or are missing, and notes about new or improved rows."""

    worse: list[str]
    notes: list[str]


def compare(committed: Sequence[Entry], compiled: Sequence[Entry]) -> Comparison:
    """Compare every compiled row with the committed one; rows of other operators or targets are ignored."""
    compiled_for = {(entry.op, entry.target) for entry in compiled}
    before = {entry.key: entry for entry in committed if (entry.op, entry.target) in compiled_for}
    after = {entry.key: entry for entry in compiled}
    lost = [f"{before[key]}: missing" for key in before.keys() - after.keys()]
    notes = [f"{after[key]}: new" for key in after.keys() - before.keys()]
    for key in before.keys() & after.keys():
        lost += [f"{after[key]}: {text}" for text in worse(before[key], after[key])]
        notes += [f"{after[key]}: better, {text}" for text in worse(after[key], before[key])]
        if before[key].options != after[key].options:
            notes.append(f"{after[key]}: options {before[key].options} -> {after[key].options}")
    return Comparison(sorted(lost), sorted(notes))


def read(path: Path = COMMITTED) -> list[Entry]:
    """Return the committed table.

    Raises:
        FileNotFoundError: there is no file.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = {field.name: field.type for field in dataclasses.fields(Entry)}
    return [Entry(**{name: _read_as(kinds[name], text) for name, text in row.items()}) for row in rows]


def _read_as(kind: object, text: str) -> object:
    return text == "True" if kind is bool else kind(text) if kind is int else text


def write(entries: Iterable[Entry], path: Path = COMMITTED) -> None:
    """Write the table, sorted by key, so that a diff shows the changed rows."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Entry)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(entry) for entry in sorted(entries, key=lambda entry: entry.key))


def merged(committed: Sequence[Entry], compiled: Sequence[Entry]) -> list[Entry]:
    """Return the committed table with the rows of the compiled operators and targets replaced."""
    compiled_for = {(entry.op, entry.target) for entry in compiled}
    return [entry for entry in committed if (entry.op, entry.target) not in compiled_for] + list(compiled)
