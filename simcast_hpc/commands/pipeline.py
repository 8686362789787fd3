"""``simcast pipeline``: teacher, student, baselines, verification and a page, from one configuration."""

from typing import Annotated

import typer

from simcast_hpc.config import PipelineConfig, read_config, to_yaml

from .options import ConfigFile, Overrides

_PART = "Run this part alone, on all ranks of the launcher in use; --parts lists them."


def pipeline(
    config: ConfigFile,
    overrides: Overrides = None,
    part: Annotated[str | None, typer.Option(help=_PART, show_default=False)] = None,
    parts: Annotated[bool, typer.Option("--parts", help="List the parts in their order, one a line.")] = False,
) -> None:
    """Run all stages in order, verify them and write a page; started again, it goes on where it stopped.

    Example: simcast pipeline configs/pipeline/sevir.yaml --set data.root=/data/sevir --set launch.ranks=8
    """
    resolved = read_config(PipelineConfig, config, overrides or ())
    if parts:
        from simcast_hpc.pipeline import part_names

        print("\n".join(part_names(resolved)))
        return

    def announce(checked: PipelineConfig) -> None:
        print(to_yaml(checked), flush=True)

    if part is not None:
        from simcast_hpc.pipeline import run_part

        run_part(resolved, part, announce=announce)
        return
    from simcast_hpc.pipeline import run_pipeline
    from simcast_hpc.report import print_tables

    page = run_pipeline(resolved, announce=announce)
    print_tables(resolved.run_dir)
    print(f"page: {page.resolve()}")
