"""``simcast doctor``: whether this machine, or all nodes of a job, are fit for a run, and what to do where not."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simcast_hpc.config import ConfigError

if TYPE_CHECKING:
    from simcast_hpc.distributed.health import Examined, RankReport

DOCTOR_HELP = """Look for what would end, hang, slow down or falsify a run, and say what to do about it.

Devices, driver and clocks; versions, compiler, caches and stale build locks; MPI's and the launcher's ranks, an
all-reduce, Slurm's variables, limits; free space, HDF5 filters and file locking. Under a launcher on every node.

Status 0: no error (warnings may be there); 1: an error; 2: refused.

Example: simcast doctor --run-dir runs/sevir --data /data/sevir --min-free-gib 50
"""


def doctor(
    run_dir: Annotated[Path, typer.Option(help="Where the run will write.")] = Path("runs"),
    min_free_gib: Annotated[float, typer.Option(help="Free space asked for there, GiB.", min=0)] = 10.0,
    data: Annotated[
        Path | None, typer.Option(help="Where its data stand: readable, and HDF5 files open?", show_default=False)
    ] = None,
    ranks: Annotated[bool, typer.Option("--ranks", help="A line for each rank, not for each node.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
    timeout_minutes: Annotated[float, typer.Option(help="How long ranks wait for one another.")] = 5.0,
) -> None:
    """Look for what would end, hang, slow down or falsify a run."""
    from simcast_hpc.distributed.health import Asked, examine

    if timeout_minutes <= 0:
        raise ConfigError(f"--timeout-minutes {timeout_minutes:g} must be above 0, for example 5")
    found = examine(os.environ, Asked(run_dir, min_free_gib, data, timeout_minutes))
    if found.rank == 0:
        print(json.dumps(_as_data(found), indent=1) if as_json else "\n".join(_lines(found, run_dir, every_rank=ranks)))
    if not found.fit:
        raise typer.Exit(1)


def _as_data(found: "Examined") -> dict[str, object]:
    nodes: dict[str, object] = {}
    for node, findings in found.by_node().items():
        ranks = [asdict(report) for report in found.reports if report.node == node]
        for rank in ranks:
            del rank["findings"], rank["node"]
        nodes[node] = {"ranks": ranks, "findings": [asdict(one) for one in findings]}
    return {"fit": found.fit, "launcher": found.launcher, "nodes": nodes}


def _lines(found: "Examined", run_dir: Path, *, every_rank: bool) -> list[str]:
    lines, counts = [], {"error": 0, "warning": 0, "ok": 0}
    for node, findings in found.by_node().items():
        reports = [report for report in found.reports if report.node == node]
        for report in reports if every_rank else reports[:1]:
            lines.append(f"rank {report.rank} on {node}: {_measured(report, run_dir)}")
        for one in findings:
            counts[one.severity] += 1
            lines.append(f"  {one.severity:7}  {one.check}: {one.found}")
            if one.do:
                lines.append(f"           what to do: {one.do}")
    verdict = "fit for a run" if found.fit else "not fit for a run"
    return [*lines, f"{verdict}: errors {counts['error']}, warnings {counts['warning']}"]


def _measured(report: "RankReport", run_dir: Path) -> str:
    if report.matmul_seconds is None or report.free_gib is None:
        return "not measured"
    return (
        f"{report.device}, 512 x 512 matmul {report.matmul_seconds * 1e3:.2f} ms, "
        f"{report.free_gib:.1f} GiB free in {run_dir}"
    )
