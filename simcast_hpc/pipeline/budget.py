"""Fitting the steps of all stages to a time budget, once, before the first starts."""

import logging
import math
import shutil

from simcast_hpc.config import PipelineConfig
from simcast_hpc.observe.metrics import read_metrics
from simcast_hpc.observe.run_folder import RunFolder

from .checks import with_steps
from .start import start

logger = logging.getLogger("simcast")
_TIMED_STEPS = 20
_FEWEST_STEPS = 20


def fix_steps(config: PipelineConfig) -> PipelineConfig:
    """Time some steps of a stage that needs no other once, and scale all stages so that training fits the budget.

    The direct model's steps are timed where there is one, since they have the long horizon; making roll-outs is not
    part of the budget.
    """
    assert config.time_budget_minutes is not None
    asked = {name: config.train_config(name).max_steps for name in config.stages}
    kinds = {config.train_config(name).stage: name for name in config.stages}
    name = kinds.get("direct") or kinds["teacher"]
    seconds = _seconds_per_step(config, name)
    steps = scaled_steps(asked, seconds_per_step=seconds, budget_seconds=config.time_budget_minutes * 60)
    said = ", ".join(f"{name} {count}" for name, count in steps.items())
    logger.info("%.3f s a step; steps that fit %.1f minutes: %s", seconds, config.time_budget_minutes, said)
    return with_steps(config, steps, asked=asked)


def scaled_steps(asked: dict[str, int], *, seconds_per_step: float, budget_seconds: float) -> dict[str, int]:
    """Return the steps of each stage scaled by one factor, at most 1, so that all together fit the budget.

    A stage that was asked to take as many steps as teacher and student together still does: equal optimizer steps
    are what makes the comparison fair.
    """
    factor = min(1.0, budget_seconds / (seconds_per_step * sum(asked.values())))
    steps = {name: min(count, max(_FEWEST_STEPS, math.floor(count * factor))) for name, count in asked.items()}
    pair = ("teacher", "student")
    if all(name in asked for name in pair):
        total = sum(asked[name] for name in pair)
        steps |= {name: sum(steps[one] for one in pair) for name, count in asked.items() if count == total}
    return steps


def _seconds_per_step(config: PipelineConfig, name: str) -> float:
    folder = RunFolder(config.run_dir / "timing")
    shutil.rmtree(folder.path, ignore_errors=True)
    every = _TIMED_STEPS // 4
    timed = config.train_config(name).model_copy(
        update={
            "run_dir": folder.path,
            "max_steps": _TIMED_STEPS,
            "log": config.log.model_copy(update={"every_steps": every}),
        }
    )
    start(timed, "train", ranks=config.launch.ranks)
    lines = read_metrics(folder.metrics)[1:]  # the first interval pays for caches and allocations
    shutil.rmtree(folder.path)
    return sum(line["time/seconds_per_step"] for line in lines) / len(lines)
