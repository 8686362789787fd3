"""Scaling steps to a time budget: the short runs that are timed, the discriminator's start, and resuming."""

from pathlib import Path

import pytest

from simcast_hpc.config import ConfigError, PipelineConfig, to_yaml
from simcast_hpc.pipeline import time_budget as budget
from simcast_hpc.pipeline.pipeline_checks import resumed_config
from simcast_hpc.pipeline.stage_timing import StageCost, StepSeconds, short_runs, stage_cost, step_seconds
from simcast_hpc.pipeline.time_budget import fit_steps, scale_steps
from tests.test_pipeline_generative import five_stages

STEPS = {"teacher": 100, "student": 200, "direct": 300, "autoencoder": 300, "diffusion": 500}


def pipeline(run_dir: Path, **changes: object) -> PipelineConfig:
    stages: dict[str, dict] = {name: {"max_steps": count} for name, count in STEPS.items()}
    stages["autoencoder"]["autoencoder"] = {"adversarial_start": 200}
    return five_stages(run_dir, **{"stages": stages, "time_budget_minutes": 1.0} | changes)


def with_adversarial_start(run_dir: Path, start: int) -> PipelineConfig:
    own = {"max_steps": 300, "autoencoder": {"adversarial_start": start}}
    return pipeline(run_dir, stages={**pipeline(run_dir).stages, "autoencoder": own})


def runs_of(config: PipelineConfig):
    return short_runs({name: config.train_config(name) for name in config.stages}, config.run_dir / "timing")


def test_times_equal_stages_once_and_diffusion_last(tmp_path):
    config = pipeline(tmp_path)
    runs = runs_of(config)
    assert runs.keys() == STEPS.keys()
    forecast = runs["student"]
    assert all(runs[name] is forecast for name in ("teacher", "direct")), "one run for three stages of equal steps"
    assert forecast.stage == "direct" and forecast.frames_out == config.sequence.frames_out
    diffusion = runs["diffusion"].diffusion
    assert diffusion.student == forecast.run_dir and diffusion.autoencoder == runs["autoencoder"].run_dir
    order = [run.run_dir for run in runs.values()]
    assert order[-2:] == [diffusion.autoencoder, runs["diffusion"].run_dir] and diffusion.student in order[:-2]
    assert all(run.run_dir.parent == tmp_path / "timing" for run in runs.values())
    assert all(run.max_steps == (40 if name == "autoencoder" else 20) for name, run in runs.items())


def test_times_different_networks_separately_and_uses_finished_runs_from_elsewhere(tmp_path):
    config = pipeline(tmp_path, diffusion={"student": "elsewhere", "casformer": {"patch": 4}})
    stages = {**config.stages, "direct": {"model": {"hidden_temporal": 32}}}
    runs = runs_of(config.model_copy(update={"stages": stages}))
    assert runs["direct"].run_dir != runs["student"].run_dir and runs["direct"].model != runs["student"].model
    assert runs["diffusion"].diffusion.student == Path("elsewhere")
    assert runs["diffusion"].diffusion.latents == "cached", "shared latents belong to other runs"


@pytest.mark.parametrize(
    ("start", "steps", "expected_start"), [(200, 40, 20), (0, 20, 0), (300, 20, 20), (10**5, 20, 20)]
)
def test_times_autoencoder_with_and_without_discriminator(tmp_path, start, steps, expected_start):
    config = with_adversarial_start(tmp_path, start)
    run = runs_of(config)["autoencoder"]
    assert (run.max_steps, run.autoencoder.adversarial_start) == (steps, expected_start)


def test_step_seconds_exclude_the_first_interval():
    lines = [{"step": step, "time/seconds_per_step": 0.1 * step, "loss": 1.0} for step in range(5, 45, 5)]
    lines.insert(3, {"step": 15, "validation/crps": 0.1})
    seconds = step_seconds(lines)
    assert seconds == pytest.approx((1.5, 3.5, 0.0))
    assert step_seconds(lines[:5]) == pytest.approx((1.5, 1.5, 0.0))
    assert step_seconds([*lines, {"step": 40, "time/validation_seconds": 7.0}]).validation == 7.0


def test_mean_seconds_of_an_autoencoder_weights_both_phases(tmp_path):
    config = pipeline(tmp_path)
    assert stage_cost(config.train_config("autoencoder"), StepSeconds(1.0, 4.0)) == pytest.approx((2.0, 0.0))
    never = with_adversarial_start(tmp_path, 10**5)
    assert stage_cost(never.train_config("autoencoder"), StepSeconds(1.0, 4.0)) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("validation", "expected"),
    [
        ({}, (1.0, 45.0)),  # every 20 of 300 steps: 15 validations
        ({"every_steps": 10}, (1.3, 0.0)),
        ({"every_steps": 0, "export": "last"}, (1.0, 0.0)),
    ],
)
def test_validation_is_part_of_the_cost(tmp_path, validation, expected):
    """By default the number of validations is fixed, otherwise the number of steps between them."""
    config = pipeline(tmp_path, validation=validation)
    measured = StepSeconds(1.0, 1.0, 0.0 if validation.get("every_steps") == 0 else 3.0)
    assert stage_cost(config.train_config("direct"), measured) == pytest.approx(expected)
    timed = runs_of(config)["direct"].validation
    assert timed.validations(20) == (0 if validation.get("every_steps") == 0 else 1)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.001, {"teacher": 500, "student": 800, "direct": 1300}),
        (0.4, {"teacher": 250, "student": 400, "direct": 650}),
        (0.45, {"teacher": 222, "student": 355, "direct": 577}),
        (1000.0, {"teacher": 20, "student": 20, "direct": 40}),
    ],
)
def test_scales_steps_by_one_factor_at_most_1(seconds, expected):
    requested = {"teacher": 500, "student": 800, "direct": 1300}
    each = dict.fromkeys(requested, seconds)
    assert scale_steps(requested, seconds_per_step=each, budget_seconds=520.0, forecasting=list(requested)) == expected


def test_does_not_raise_few_steps_to_the_minimum():
    requested = {"teacher": 6, "student": 4, "direct": 10}
    each = dict.fromkeys(requested, 1000.0)
    assert scale_steps(requested, seconds_per_step=each, budget_seconds=1.0, forecasting=list(requested)) == requested


def test_scales_steps_by_the_time_of_each_stage():
    seconds = {"teacher": 0.1, "student": 0.1, "direct": 0.1, "autoencoder": 0.4, "diffusion": 0.2}
    assert sum(STEPS[name] * seconds[name] for name in STEPS) == pytest.approx(280.0)
    steps = scale_steps(
        STEPS, seconds_per_step=seconds, budget_seconds=140.0, forecasting=["teacher", "student", "direct"]
    )
    assert steps == {name: count // 2 for name, count in STEPS.items()}
    few = scale_steps(STEPS, seconds_per_step=seconds, budget_seconds=0.1, forecasting=["teacher", "student", "direct"])
    assert few == {"teacher": 20, "student": 20, "direct": 40, "autoencoder": 20, "diffusion": 20}


@pytest.fixture
def fitted(tmp_path, monkeypatch) -> PipelineConfig:
    """A pipeline with steps fitted to one half, whose autoencoder was started."""
    cost = StageCost(100.0 / 1400, 2.0)
    monkeypatch.setattr(budget, "measure_costs", lambda config: dict.fromkeys(config.stages, cost))
    config = fit_steps(pipeline(tmp_path))
    (tmp_path / "autoencoder" / "checkpoints").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    return config


def test_discriminator_starts_after_the_same_share_of_steps(fitted):
    run = fitted.train_config("autoencoder")
    assert (run.max_steps, run.autoencoder.adversarial_start) == (150, 100)
    assert fitted.train_config("diffusion").max_steps == 250
    assert fitted.stages["autoencoder"]["max_steps"] == 300, "the requested steps are kept"


def test_resume_keeps_fitted_steps_and_compares_requested_ones(fitted, tmp_path):
    again = resumed_config(pipeline(tmp_path))
    assert again.train_config("autoencoder") == fitted.train_config("autoencoder")
    assert again.fitted_steps == fitted.fitted_steps
    with pytest.raises(ConfigError, match=r"autoencoder\.adversarial_start was 200, is 250"):
        resumed_config(with_adversarial_start(tmp_path, 250))


def test_rejects_another_budget_after_steps_were_fitted(fitted, tmp_path):
    with pytest.raises(
        ConfigError, match=r"time_budget_minutes is 2\.0, .* were fitted to 1\.0 minutes; choose another run_dir"
    ):
        resumed_config(pipeline(tmp_path, time_budget_minutes=2.0))
