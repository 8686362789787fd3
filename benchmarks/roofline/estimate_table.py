"""The committed table of estimates, ``benchmarks/estimates.csv``: one line per case, direction and GPU.

An estimate got worse if its time is more than ``TOLERANCE`` above the committed one. Estimates are deterministic; the
tolerance allows for changes of instruction order that do not matter.
"""

import csv
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cases import Case, Direction

from .gpu_rates import GPUS
from .launch_estimate import Estimate

COMMITTED = Path(__file__).resolve().parents[1] / "estimates.csv"
TOLERANCE = 0.02
_COPY = {gpu.name: gpu.copy for gpu in GPUS}


@dataclass(frozen=True, kw_only=True)
class EstimateRow:
    """Estimate of all launches of one direction, with times in microseconds.

    ``real`` is False for cases at the edges of the tiling. ``floor_us`` is the roofline, the sum of each launch's
    largest bound; ``share`` the time of the needed bytes at the copy bandwidth divided by ``time_us``: the minimum
    bytes of the case, or those of its only launch without partial sums, which are more where training has a gradient
    that the benchmark lacks (adaLN's residual stream); ``limit`` the largest bound of the longest launch; ``sums_us``
    the time of reading partial sums again. ``instructions``, ``waits`` and ``warps`` (resident) are those of the
    longest launch.
    """

    op: str
    case: str
    direction: str
    gpu: str
    real: bool
    time_us: float
    floor_us: float
    share: float
    limit: str
    dram_us: float
    l2_us: float
    issue_us: float
    latency_us: float
    sums_us: float
    instructions: int
    waits: int
    warps: int
    triton: str

    @property
    def key(self) -> tuple[str, ...]:
        """Identity of the line across tables."""
        return self.op, self.case, self.direction, self.gpu

    def __str__(self) -> str:
        return " ".join(self.key)


def row_of(op: str, case: Case, direction: Direction, launches: Sequence[Estimate], *, triton: str) -> EstimateRow:
    """Return the line of the launches of one direction on one GPU; there is at least one launch."""
    longest = max(launches, key=lambda launch: launch.seconds)
    seconds = sum(launch.seconds for launch in launches)
    needed = case.bytes_moved(direction) / _COPY[longest.gpu]
    if len(launches) == 1:
        needed = max(needed, longest.dram - longest.partial_sums)

    def total(name: str) -> float:
        return round(1e6 * sum(getattr(launch, name) for launch in launches), 2)

    return EstimateRow(
        op=op,
        case=case.name,
        direction=direction,
        gpu=longest.gpu,
        real=not case.edge,
        time_us=total("seconds"),
        floor_us=total("floor"),
        share=round(needed / seconds, 3),
        limit=longest.limit,
        dram_us=total("dram"),
        l2_us=total("l2"),
        issue_us=total("issue"),
        latency_us=total("latency"),
        sums_us=total("partial_sums"),
        instructions=longest.instructions,
        waits=longest.waits,
        warps=longest.resident_warps,
        triton=triton,
    )


def worse(committed: Sequence[EstimateRow], found: Sequence[EstimateRow]) -> tuple[list[str], list[str]]:
    """Return messages about estimates that got worse, and notes about new or better ones.

    Lines of operators and GPUs that are not in ``found`` are ignored; other missing lines are worse.
    """
    estimated = {(row.op, row.gpu) for row in found}
    before = {row.key: row for row in committed if (row.op, row.gpu) in estimated}
    after = {row.key: row for row in found}
    lost = [f"{before[key]}: no estimate" for key in before.keys() - after.keys()]
    notes = [f"{after[key]}: new estimate" for key in after.keys() - before.keys()]
    for key in before.keys() & after.keys():
        old, new = before[key].time_us, after[key].time_us
        text = f"{after[key]}: estimate {old} -> {new} us, limited by {after[key].limit}"
        if new > old * (1 + TOLERANCE):
            lost.append(text)
        elif old > new * (1 + TOLERANCE):
            notes.append(text)
    return sorted(lost), sorted(notes)


def read(path: Path = COMMITTED) -> list[EstimateRow]:
    """Return the committed table; empty without a file."""
    if not path.is_file():
        return []
    kinds = {field.name: field.type for field in dataclasses.fields(EstimateRow)}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [EstimateRow(**{name: _read_as(kinds[name], text) for name, text in row.items()}) for row in rows]  # pyright: ignore[reportArgumentType]


def _read_as(kind: object, text: str) -> object:
    return text == "True" if kind is bool else kind(text) if kind in (int, float) else text  # pyright: ignore[reportCallIssue]


def write(rows: Iterable[EstimateRow], path: Path = COMMITTED) -> None:
    """Write the table, sorted by key, so that a diff shows the changed rows."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(EstimateRow)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in sorted(rows, key=lambda row: row.key))


def merged(committed: Sequence[EstimateRow], found: Sequence[EstimateRow]) -> list[EstimateRow]:
    """Return the committed table with the lines of the estimated operators and GPUs replaced."""
    estimated = {(row.op, row.gpu) for row in found}
    return [row for row in committed if (row.op, row.gpu) not in estimated] + list(found)
