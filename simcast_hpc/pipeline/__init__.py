"""Stages in order, each a process, or a job step, of its own; what stands is skipped, what was cut short goes on.

``run`` goes through all parts on one machine, ``parts`` names them and runs a single one on all ranks of whichever
launcher started it, ``budget`` fits the steps to a time, ``checks`` refuses before anything is made.
"""

from .run_pipeline import PipelineError, run_pipeline
from .stages import part_names, run_part

__all__ = ["PipelineError", "part_names", "run_part", "run_pipeline"]
