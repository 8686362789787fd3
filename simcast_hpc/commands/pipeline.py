"""``simcast pipeline``: all stages, verification and the report from one configuration."""

from typing import Annotated

import typer

from simcast_hpc.config import PipelineConfig, read_config, to_yaml

from .options import ConfigFile, Overrides, PrintConfig, Quiet


def pipeline(
    config: ConfigFile,
    overrides: Overrides = None,
    part: Annotated[
        str | None,
        typer.Option(help="Run only this part, on all ranks of the launcher; see --parts.", show_default=False),
    ] = None,
    parts: Annotated[bool, typer.Option("--parts", help="List the parts in order, one per line.")] = False,
    print_config: PrintConfig = False,
    quiet: Quiet = False,
) -> None:
    """Train all stages in order, verify them and write the report.

    Reads the data in data.root, or creates synthetic data there. Writes to run_dir: a run directory per stage, the
    scores, and report/index.html. Run again, the command resumes an interrupted pipeline and skips complete stages.

    Example: simcast pipeline pipeline/sevir --set data.root=/data/sevir --set launch.ranks=8
    """
    resolved = read_config(PipelineConfig, config, overrides or ())
    if parts:
        from simcast_hpc.pipeline import part_names

        print("\n".join(part_names(resolved)))
        return
    import os

    from simcast_hpc.distributed.ranks import find_rank
    from simcast_hpc.monitoring.log import set_up_logging
    from simcast_hpc.pipeline import run_part, run_pipeline
    from simcast_hpc.report import print_tables

    def announce(checked: PipelineConfig) -> None:
        if print_config:
            print(to_yaml(checked), flush=True)

    set_up_logging(find_rank(os.environ).rank, quiet=quiet)
    if part is not None:
        run_part(resolved, part, announce=announce)
        return
    report = run_pipeline(resolved, announce=announce, quiet=quiet)
    if not quiet:
        print_tables(resolved.run_dir)
        print(f"report: {report.resolve()}")
