"""Scale the steps of all stages to a time budget, once, before the first stage starts."""

import logging
import math
from collections.abc import Mapping

from simcast_hpc.config import FORECASTING, PipelineConfig

from .stage_timing import measure_costs

logger = logging.getLogger(__name__)
_FEWEST_STEPS = 20


def fit_steps(config: PipelineConfig) -> PipelineConfig:
    """Time short runs of the stages, and return the configuration with all steps scaled so that training fits.

    The budget includes the validation of forecasting stages. It excludes rollouts, latents, ensembles sampled during
    training, the start of processes, and verification.
    """
    assert config.time_budget_minutes is not None
    stages = {name: config.train_config(name) for name in config.stages}
    requested = {name: stage.max_steps for name, stage in stages.items()}
    costs = measure_costs(config)
    seconds = {name: cost.step for name, cost in costs.items()}
    steps = scale_steps(
        requested,
        seconds_per_step=seconds,
        budget_seconds=max(0.0, config.time_budget_minutes * 60 - sum(cost.fixed for cost in costs.values())),
        forecasting=[name for name, stage in stages.items() if stage.stage in FORECASTING],
    )
    listed = ", ".join(
        f"{name} {count} of {requested[name]} ({seconds[name]:.3f} s/step)" for name, count in steps.items()
    )
    logger.info("steps that fit %.1f minutes: %s", config.time_budget_minutes, listed)
    share = sum(steps.values()) / sum(requested.values())
    if share < 1:
        logger.warning(
            "training is shortened to %.0f %% of the requested steps to fit the time budget on this machine, which "
            "lowers the scores; for all steps: --set time_budget_minutes=null and another run_dir",
            100 * share,
        )
    return config.model_copy(update={"fitted_steps": steps})


def scale_steps(
    requested: Mapping[str, int],
    *,
    seconds_per_step: Mapping[str, float],
    budget_seconds: float,
    forecasting: list[str],
) -> dict[str, int]:
    """Return the steps of each stage scaled by one factor, at most 1, so that their total time fits the budget.

    A forecasting stage whose requested steps equal those of teacher and student together keeps that equality, because
    the comparison is at equal optimizer steps.

    Args:
        requested: steps of each stage.
        seconds_per_step: mean over the steps of each stage.
        budget_seconds: for all stages together.
        forecasting: the stages that are compared with one another.
    """
    factor = min(1.0, budget_seconds / sum(count * seconds_per_step[name] for name, count in requested.items()))
    steps = {name: min(count, max(_FEWEST_STEPS, math.floor(count * factor))) for name, count in requested.items()}
    pair = ("teacher", "student")
    if all(name in requested for name in pair):
        total = sum(requested[name] for name in pair)
        steps |= {name: sum(steps[one] for one in pair) for name in forecasting if requested[name] == total}
    return steps
