"""Run the stages of a pipeline in forked processes, which have imported torch and DeepSpeed already.

A stage of a test takes less time than these imports. The processes are forked from a server that has executed nothing
else, because a fork of the test's own process could deadlock in its thread pools.
"""

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from simcast_hpc.config import PipelineConfig
from simcast_hpc.pipeline import run_pipeline, stage_process

PRELOADED = ["tests.forked_stages", "simcast_hpc.cli", "simcast_hpc.train.trainer", "deepspeed"]


def run_forked(command: Sequence[str], *, ranks: int, environment: Mapping[str, str]) -> int:
    """Run ``python -m simcast_hpc ...`` as one process and return its status, as ``launchers.run_ranks`` does."""
    assert ranks == 1
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_simcast, args=(list(command[3:]), dict(environment)))
    process.start()
    process.join()
    status = process.exitcode
    assert status is not None
    return status if status >= 0 else 128 - status


def _simcast(arguments: list[str], environment: dict[str, str]) -> None:
    from simcast_hpc import cli

    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["simcast", *arguments]
    cli.main()


def run_pipeline_forked(config: PipelineConfig) -> Path:
    """Run a pipeline whose stages are forked processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_process, "run_ranks", run_forked)
        return run_pipeline(config)
