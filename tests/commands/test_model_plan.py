"""``simcast model plan``: of every stage, with settings that the reader takes back; a refusal says what lacks."""

import json
from pathlib import Path

import pytest

from tests.commands.test_convert import simcast

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = CONFIGS / "pipeline" / "quickstart-full.yaml"
SWITCHES = {"teacher": None, "direct": None, "student": None, "autoencoder": "autoencoder.model.checkpoint",
            "diffusion": "diffusion.casformer.checkpoint"}  # fmt: skip


@pytest.mark.parametrize(("stage", "switch"), SWITCHES.items())
def test_every_stage_and_what_it_recommends_is_taken_back(stage, switch, capsys):
    words = ["model", "plan", SMALL, "--stage", stage, "--gpus", "2", "--nodes", "2", "--memory", "2", "--json"]
    assert simcast(*words) == 0
    found = json.loads(capsys.readouterr().out)
    best, ways = found["recommended"], found["ways"]
    assert found["how"] == "computed, not measured" and found["stage"] == stage
    assert best["fits"] and best["bytes_on_a_gpu"]["all"] <= found["memory_bytes"]
    assert found["global_batch"] % (best["micro_batch"] * 2) == 0
    keys = [setting.split("=")[0] for setting in best["set"]]
    assert all(key.startswith(f"stages.{stage}.") for key in keys)
    assert (f"stages.{stage}.{switch}" in keys) == (switch is not None)
    taken = [word for setting in best["set"] for word in ("--set", setting)]
    assert simcast(*words, *taken) == 0
    assert json.loads(capsys.readouterr().out)["ways"] == ways, "the plan does not depend on what it recommends"
    assert (ways[0]["bytes_on_a_gpu"]["beside"] > 0) == (stage == "autoencoder")


def test_a_table_with_the_way_marked(capsys):
    config = CONFIGS / "direct" / "synthetic-earthformer.yaml"
    assert simcast("model", "plan", config, "--gpus", "1", "--memory", "16") == 0
    said = capsys.readouterr().out
    assert "Computed, not measured." in said and "+0 %" in said and "<- this" in said
    settings = said.splitlines()[-1]
    assert settings.startswith("--set engine.zero_stage=") and "--set model.checkpoint_levels=[]" in settings


def test_a_budget_between_two_ways_takes_some_levels(capsys):
    config = CONFIGS / "direct" / "synthetic-earthformer.yaml"
    words = ["model", "plan", config, "--gpus", "1", "--json", "--set", "batch.global_size=1"]
    assert simcast(*words, "--memory", "1000") == 0
    ways = [way for way in json.loads(capsys.readouterr().out)["ways"] if way["offload"] == "none"]
    longer = {tuple(way["computed_again"]): way["longer_step"] for way in ways}
    assert longer[()] == 0 < longer[(0,)] < longer[(0, 1)] < 0.5
    least = min(way["bytes_on_a_gpu"]["all"] for way in ways if way["computed_again"] == [0])
    assert simcast(*words, "--memory", str(least / 2**30 + 1e-6)) == 0
    best = json.loads(capsys.readouterr().out)["recommended"]
    assert best["computed_again"] == [0], "no memory to keep all, and no need to compute both again"
    assert "model.checkpoint_levels=[0]" in best["set"]


def test_costs_may_be_measured(capsys):
    config = CONFIGS / "direct" / "synthetic-earthformer.yaml"
    words = ["model", "plan", config, "--gpus", "1", "--memory", "16", "--measure", "--json"]
    assert simcast(*words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["how"].startswith("bytes computed, costs of computing again measured on c")
    costs = {tuple(way["computed_again"]): way["longer_step"] for way in found["ways"]}
    assert costs[()] == 0 and all(cost >= 0 for cost in costs.values())


def test_nothing_fits_is_status_1_and_says_what_lacks(capsys):
    config = CONFIGS / "direct" / "sevir.yaml"
    assert simcast("model", "plan", config, "--gpus", "1", "--memory", "4") == 1
    said = capsys.readouterr().err
    assert "nothing fits into 4 GiB: the least is" in said and "GiB too much" in said
    assert "its largest part is activations" in said and "no number of GPUs of this size" in said


def test_gpus_that_cannot_share_the_batch_are_status_2(capsys):
    assert (
        simcast("model", "plan", CONFIGS / "direct" / "synthetic-earthformer.yaml", "--gpus", "7", "--memory", "9") == 2
    )
    assert "does not fall evenly on --gpus 7" in capsys.readouterr().err
