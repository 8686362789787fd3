"""``simcast pipeline``: teacher, student, baselines, verification and a page, from one configuration."""

from simcast_hpc.config import PipelineConfig, read_config, to_yaml

from .options import ConfigFile, Overrides


def pipeline(config: ConfigFile, overrides: Overrides = None) -> None:
    """Run all stages in order, verify them and write a page; started again, it goes on where it stopped."""
    resolved = read_config(PipelineConfig, config, overrides or ())
    print(to_yaml(resolved), flush=True)
    from simcast_hpc.pipeline import run_pipeline
    from simcast_hpc.report import print_tables

    page = run_pipeline(resolved)
    print_tables(resolved.run_dir)
    print(f"page: {page.resolve()}")
