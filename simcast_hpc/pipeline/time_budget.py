"""Fitting the steps of all stages to a time budget, once, before the first starts."""

import logging
import math
from collections.abc import Mapping

from simcast_hpc.config import FORECASTING, PipelineConfig

from .stage_timing import seconds_of_steps

logger = logging.getLogger(__name__)
_FEWEST_STEPS = 20


def fix_steps(config: PipelineConfig) -> PipelineConfig:
    """Time some steps of every kind that the stages take, and scale all stages so that training fits the budget.

    Making roll-outs and latents, starting processes and verifying are not part of the budget.
    """
    assert config.time_budget_minutes is not None
    stages = {name: config.train_config(name) for name in config.stages}
    asked = {name: stage.max_steps for name, stage in stages.items()}
    seconds = seconds_of_steps(config)
    steps = scaled_steps(
        asked,
        seconds_per_step=seconds,
        budget_seconds=config.time_budget_minutes * 60,
        forecasting=[name for name, stage in stages.items() if stage.stage in FORECASTING],
    )
    said = ", ".join(f"{name} {count} of {asked[name]} ({seconds[name]:.3f} s each)" for name, count in steps.items())
    logger.info("steps that fit %.1f minutes: %s", config.time_budget_minutes, said)
    share = sum(steps.values()) / sum(asked.values())
    if share < 1:
        logger.warning(
            "training is cut to %.0f %% of the steps asked for, since this machine is slow or busy, and scores will be "
            "lower for it; for all of them: --set time_budget_minutes=null and another run_dir",
            100 * share,
        )
    return config.model_copy(update={"fitted_steps": steps})


def scaled_steps(
    asked: Mapping[str, int],
    *,
    seconds_per_step: Mapping[str, float],
    budget_seconds: float,
    forecasting: list[str],
) -> dict[str, int]:
    """Return the steps of each stage scaled by one factor, at most 1, so that all together fit the budget.

    A forecasting stage that was asked to take as many steps as teacher and student together still does: equal
    optimizer steps are what makes the comparison fair.

    Args:
        asked: the steps of each stage.
        seconds_per_step: of each stage, the mean over its steps.
        budget_seconds: for all of them together.
        forecasting: the stages that are compared with one another.
    """
    factor = min(1.0, budget_seconds / sum(count * seconds_per_step[name] for name, count in asked.items()))
    steps = {name: min(count, max(_FEWEST_STEPS, math.floor(count * factor))) for name, count in asked.items()}
    pair = ("teacher", "student")
    if all(name in asked for name in pair):
        total = sum(asked[name] for name in pair)
        steps |= {name: sum(steps[one] for one in pair) for name in forecasting if asked[name] == total}
    return steps
