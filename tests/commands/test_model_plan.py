"""``simcast model plan``: of every stage; its recommended overrides are valid, and an error names what is missing."""

import json
from pathlib import Path

import pytest

from tests.commands.test_convert import simcast

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = CONFIGS / "pipeline" / "quickstart-full.yaml"
SWITCHES = {"teacher": None, "direct": None, "student": None, "autoencoder": "autoencoder.model.checkpoint",
            "diffusion": "diffusion.casformer.checkpoint"}  # fmt: skip


@pytest.mark.parametrize(("stage", "switch"), SWITCHES.items())
def test_recommended_settings_of_every_stage_are_accepted(stage, switch, capsys):
    words = ["model", "plan", SMALL, "--stage", stage, "--gpus", "2", "--nodes", "2", "--memory", "2", "--json"]
    assert simcast(*words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["recommended"]["traffic"]["sent_bytes"] > 2 * report["parameters"]
    best, plans = report["recommended"], report["plans"]
    assert report["method"] == "computed, not measured" and report["stage"] == stage
    assert best["fits"] and best["bytes_on_a_gpu"]["all"] <= report["memory_bytes"]
    assert report["global_batch"] % (best["micro_batch"] * 2) == 0
    keys = [setting.split("=")[0] for setting in best["set"]]
    assert all(key.startswith(f"stages.{stage}.") for key in keys)
    assert (f"stages.{stage}.{switch}" in keys) == (switch is not None)
    overrides = [word for setting in best["set"] for word in ("--set", setting)]
    assert simcast(*words, *overrides) == 0
    assert json.loads(capsys.readouterr().out)["plans"] == plans, "the plan does not depend on what it recommends"
    assert (plans[0]["bytes_on_a_gpu"]["auxiliary"] > 0) == (stage == "autoencoder")


def test_table_marks_the_recommended_plan(capsys):
    config = CONFIGS / "direct" / "synthetic-earthformer.yaml"
    assert simcast("model", "plan", config, "--gpus", "1", "--memory", "16") == 0
    output = capsys.readouterr().out
    assert "Computed, not measured." in output and "+0 %" in output and "<- recommended" in output
    settings = output.splitlines()[-1]
    assert settings.startswith("--set engine.zero_stage=") and "--set model.checkpoint_levels=[]" in settings


def test_memory_between_two_plans_recomputes_some_levels(capsys):
    config = CONFIGS / "direct" / "synthetic-earthformer.yaml"
    words = ["model", "plan", config, "--gpus", "1", "--json", "--set", "batch.global_size=1"]
    assert simcast(*words, "--memory", "1000") == 0
    plans = [plan for plan in json.loads(capsys.readouterr().out)["plans"] if plan["offload"] == "none"]
    cost = {tuple(plan["recomputed_levels"]): plan["step_time_increase"] for plan in plans}
    assert cost[()] == 0 < cost[(0,)] < cost[(0, 1)] < 0.5
    least = min(plan["bytes_on_a_gpu"]["all"] for plan in plans if plan["recomputed_levels"] == [0])
    assert simcast(*words, "--memory", str(least / 2**30 + 1e-6)) == 0
    best = json.loads(capsys.readouterr().out)["recommended"]
    assert best["recomputed_levels"] == [0], "no memory to keep all, and no need to recompute both"
    assert "model.checkpoint_levels=[0]" in best["set"]


def test_measures_costs(capsys):
    config = CONFIGS / "direct" / "synthetic-earthformer.yaml"
    words = ["model", "plan", config, "--gpus", "1", "--memory", "16", "--measure", "--json"]
    assert simcast(*words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["method"].startswith("memory computed, cost of recomputation measured on c")
    costs = {tuple(plan["recomputed_levels"]): plan["step_time_increase"] for plan in report["plans"]}
    assert costs[()] == 0 and all(cost >= 0 for cost in costs.values())


def test_no_plan_fits_is_status_1(capsys):
    config = CONFIGS / "direct" / "sevir.yaml"
    assert simcast("model", "plan", config, "--gpus", "1", "--memory", "4") == 1
    output = capsys.readouterr().err
    assert "no plan fits into 4 GiB: the smallest needs" in output and "GiB too much" in output
    assert "its largest part is activations" in output and "more GPUs of this size do not suffice" in output


def test_gpus_that_do_not_divide_the_batch_are_status_2(capsys):
    assert (
        simcast("model", "plan", CONFIGS / "direct" / "synthetic-earthformer.yaml", "--gpus", "7", "--memory", "9") == 2
    )
    assert "--gpus 7 does not divide batch.global_size" in capsys.readouterr().err
