"""``simcast doctor``: check this machine, or all nodes of a job, before a run."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simcast_hpc.config import ConfigError

if TYPE_CHECKING:
    from simcast_hpc.distributed.health import HealthReport, RankReport


def doctor(
    run_dir: Annotated[
        Path, typer.Option(help="Run directory that will be written: checked for free space and write access.")
    ] = Path("runs"),
    min_free_gib: Annotated[
        float, typer.Option(help="Free space required in the run directory, in GiB.", min=0)
    ] = 10.0,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Data folder to check: whether its HDF5 files open (default: not checked).", show_default=False
        ),
    ] = None,
    ranks: Annotated[
        bool, typer.Option("--ranks", help="Print one line per rank instead of one line per node.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    timeout_minutes: Annotated[
        float, typer.Option(help="Timeout for connecting the ranks and for collectives, in minutes.")
    ] = 5.0,
) -> None:
    """Check this machine for problems that would end, hang or slow down a run or corrupt its results.

    The checks cover GPUs, driver and clocks; installed versions, compiler, caches and stale build locks; MPI, launcher
    ranks, an all-reduce, Slurm variables and limits; free space, HDF5 filters and file locking. Start the command with
    the launcher of the run to check every node.

    Exit status: 0 no error (warnings are possible), 1 an error, 2 an invalid option.

    Example: simcast doctor --run-dir runs/sevir --data /data/sevir --min-free-gib 50
    """
    if timeout_minutes <= 0:
        raise ConfigError(f"--timeout-minutes {timeout_minutes:g} must be above 0, for example 5")
    from simcast_hpc.distributed.health import HealthOptions, check_health

    report = check_health(os.environ, HealthOptions(run_dir, min_free_gib, data, timeout_minutes))
    if report.rank == 0:
        lines = [json.dumps(_as_data(report), indent=1)] if as_json else _lines(report, run_dir, every_rank=ranks)
        print("\n".join(lines))
    if not report.healthy:
        raise typer.Exit(1)


def _as_data(report: "HealthReport") -> dict[str, object]:
    nodes: dict[str, object] = {}
    for node, findings in report.by_node().items():
        ranks = [asdict(rank) for rank in report.ranks if rank.node == node]
        for rank in ranks:
            del rank["findings"], rank["node"]
        nodes[node] = {"ranks": ranks, "findings": [asdict(finding) for finding in findings]}
    return {"healthy": report.healthy, "launcher": report.launcher, "nodes": nodes}


def _lines(report: "HealthReport", run_dir: Path, *, every_rank: bool) -> list[str]:
    lines, counts = [], {"error": 0, "warning": 0, "ok": 0}
    for node, findings in report.by_node().items():
        ranks = [rank for rank in report.ranks if rank.node == node]
        for rank in ranks if every_rank else ranks[:1]:
            lines.append(f"rank {rank.rank} on {node}: {_measurements(rank, run_dir)}")
        for finding in findings:
            counts[finding.severity] += 1
            lines.append(f"  {finding.severity:7}  {finding.check}: {finding.message}")
            if finding.remedy:
                lines.append(f"           remedy: {finding.remedy}")
    verdict = "ready for a run" if report.healthy else "not ready for a run"
    return [*lines, f"{verdict}: {counts['error']} errors, {counts['warning']} warnings"]


def _measurements(rank: "RankReport", run_dir: Path) -> str:
    if rank.matmul_seconds is None or rank.free_gib is None:
        return "not measured"
    return (
        f"{rank.device}, 512 x 512 matmul {rank.matmul_seconds * 1e3:.2f} ms, {rank.free_gib:.1f} GiB free in {run_dir}"
    )
