"""The steps that fit a time: what is timed for which stage, an autoencoder's two halves, and starting again."""

from pathlib import Path

import pytest

from simcast_hpc.config import ConfigError, PipelineConfig, to_yaml
from simcast_hpc.pipeline import time_budget as budget
from simcast_hpc.pipeline.pipeline_checks import continue_or_reject
from simcast_hpc.pipeline.stage_timing import StepSeconds, mean_seconds, short_runs, step_seconds
from simcast_hpc.pipeline.time_budget import fix_steps, scaled_steps
from tests.test_pipeline_generative import five_stages

STEPS = {"teacher": 100, "student": 200, "direct": 300, "autoencoder": 300, "diffusion": 500}


def asked(run_dir: Path, **changes: object) -> PipelineConfig:
    stages: dict[str, dict] = {name: {"max_steps": count} for name, count in STEPS.items()}
    stages["autoencoder"]["autoencoder"] = {"adversarial_start": 200}
    return five_stages(run_dir, **{"stages": stages, "time_budget_minutes": 1.0} | changes)


def runs_of(config: PipelineConfig):
    return short_runs({name: config.train_config(name) for name in config.stages}, config.run_dir / "timing")


def test_every_kind_of_step_is_timed_once_and_before_what_stands_on_it(tmp_path):
    config = asked(tmp_path)
    runs = runs_of(config)
    assert runs.keys() == STEPS.keys()
    forecast = runs["student"]
    assert all(runs[name] is forecast for name in ("teacher", "direct")), "one run for three stages of equal steps"
    assert forecast.stage == "direct" and forecast.frames_out == config.sequence.frames_out
    chosen = runs["diffusion"].diffusion
    assert chosen.student == forecast.run_dir and chosen.autoencoder == runs["autoencoder"].run_dir
    order = [run.run_dir for run in runs.values()]
    assert order[-2:] == [chosen.autoencoder, runs["diffusion"].run_dir] and chosen.student in order[:-2]
    assert all(run.run_dir.parent == tmp_path / "timing" for run in runs.values())
    assert all(run.max_steps == (40 if name == "autoencoder" else 20) for name, run in runs.items())


def test_other_networks_are_timed_apart_and_finished_runs_from_elsewhere_serve(tmp_path):
    config = asked(tmp_path, diffusion={"student": "elsewhere", "casformer": {"patch": 4}})
    stages = {**config.stages, "direct": {"model": {"hidden_temporal": 32}}}
    runs = runs_of(config.model_copy(update={"stages": stages}))
    assert runs["direct"].run_dir != runs["student"].run_dir and runs["direct"].model != runs["student"].model
    assert runs["diffusion"].diffusion.student == Path("elsewhere")
    assert runs["diffusion"].diffusion.latents == "cached", "latents to share are made of other parts"


@pytest.mark.parametrize(("start", "steps", "begins"), [(200, 40, 20), (0, 20, 0), (300, 20, 20), (10**5, 20, 20)])
def test_an_autoencoder_is_timed_on_both_sides_of_its_discriminator(tmp_path, start, steps, begins):
    config = asked(tmp_path, stages={"autoencoder": {"max_steps": 300, "autoencoder": {"adversarial_start": start}}})
    run = runs_of(config)["autoencoder"]
    assert (run.max_steps, run.autoencoder.adversarial_start) == (steps, begins)


def test_seconds_leave_out_what_the_first_steps_pay_for():
    lines = [{"step": step, "time/seconds_per_step": 0.1 * step, "loss": 1.0} for step in range(5, 45, 5)]
    lines.insert(3, {"step": 15, "validation/crps": 0.1})
    seconds = step_seconds(lines)
    assert seconds == pytest.approx((1.5, 3.5))
    assert step_seconds(lines[:5]) == pytest.approx((1.5, 1.5))


def test_an_autoencoders_step_is_the_mean_of_both_halves(tmp_path):
    config = asked(tmp_path)
    assert mean_seconds(config.train_config("autoencoder"), StepSeconds(1.0, 4.0)) == pytest.approx(2.0)
    never = asked(tmp_path, stages={"autoencoder": {"max_steps": 300, "autoencoder": {"adversarial_start": 10**5}}})
    assert mean_seconds(never.train_config("autoencoder"), StepSeconds(1.0, 4.0)) == 1.0


def test_slow_steps_take_their_share_of_the_budget():
    seconds = {"teacher": 0.1, "student": 0.1, "direct": 0.1, "autoencoder": 0.4, "diffusion": 0.2}
    assert sum(STEPS[name] * seconds[name] for name in STEPS) == pytest.approx(280.0)
    found = scaled_steps(
        STEPS, seconds_per_step=seconds, budget_seconds=140.0, forecasting=["teacher", "student", "direct"]
    )
    assert found == {name: count // 2 for name, count in STEPS.items()}
    few = scaled_steps(
        STEPS, seconds_per_step=seconds, budget_seconds=0.1, forecasting=["teacher", "student", "direct"]
    )
    assert few == {"teacher": 20, "student": 20, "direct": 40, "autoencoder": 20, "diffusion": 20}


@pytest.fixture
def fitted(tmp_path, monkeypatch) -> PipelineConfig:
    """A pipeline whose steps were fitted by half, and whose autoencoder had begun."""
    monkeypatch.setattr(budget, "seconds_of_steps", lambda config: dict.fromkeys(config.stages, 120.0 / 1400))
    config = fix_steps(asked(tmp_path))
    (tmp_path / "autoencoder" / "checkpoints").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    return config


def test_the_discriminator_joins_after_the_same_share(fitted):
    run = fitted.train_config("autoencoder")
    assert (run.max_steps, run.autoencoder.adversarial_start) == (150, 100)
    assert fitted.train_config("diffusion").max_steps == 250
    assert fitted.stages["autoencoder"]["max_steps"] == 300, "what was asked for still stands there"


def test_started_again_it_keeps_what_was_fitted_and_knows_what_was_asked(fitted, tmp_path):
    again = continue_or_reject(asked(tmp_path))
    assert again.train_config("autoencoder") == fitted.train_config("autoencoder")
    assert again.fitted_steps == fitted.fitted_steps
    stages = {**asked(tmp_path).stages, "autoencoder": {"max_steps": 300, "autoencoder": {"adversarial_start": 250}}}
    with pytest.raises(ConfigError, match=r"autoencoder\.adversarial_start was 200, is 250"):
        continue_or_reject(asked(tmp_path, stages=stages))


def test_another_budget_for_steps_that_were_fitted_is_rejected(fitted, tmp_path):
    with pytest.raises(ConfigError, match=r"time_budget_minutes is 2\.0, .* were fitted to 1\.0 .* another run_dir"):
        continue_or_reject(asked(tmp_path, time_budget_minutes=2.0))
