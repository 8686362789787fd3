"""Run a pipeline: train its stages in order, verify them, and write the report.

``run_pipeline`` runs all parts on one machine, each stage in child processes (``stage_process``). ``pipeline_parts``
defines the parts and runs a single part on all ranks of a launcher. Part ``prepare`` validates the configuration
(``pipeline_checks``) and scales the steps to a time budget (``time_budget``), for which short runs are timed
(``stage_timing``). Complete stages are skipped, interrupted ones are resumed.
"""

from .pipeline_parts import part_names, run_part
from .run_pipeline import PipelineError, run_pipeline

__all__ = ["PipelineError", "part_names", "run_part", "run_pipeline"]
