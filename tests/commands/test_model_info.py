"""``simcast model info``: of every kind of configuration, as tables and JSON, without allocating the model."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from simcast_hpc.config import TrainConfig, read_config
from simcast_hpc.models import build_model, with_grid
from tests.commands.test_convert import simcast

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
COUNTS = {
    "direct/sevir.yaml": 9_254_209,
    "student/sevir-earthformer.yaml": 8_659_677,
}


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_json_of_the_configurations(name, count, capsys):
    assert simcast("model", "info", CONFIGS / name, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["parameters"]["all"] == count == sum(report["parameters"]["by_part"].values())
    assert report["grid"] == [384, 384]
    assert report["flops"]["forward_and_backward"] > 2 * report["flops"]["forward"] > 0
    assert report["bytes_on_a_rank"]["weights"] == 2 * count


def test_parameters_of_the_largest_configuration_of_one_gpu():
    config = read_config(TrainConfig, CONFIGS / "direct" / "sevir-earthformer-100m.yaml")
    model = with_grid(config.model, (384, 384))
    with torch.device("meta"):
        network = build_model(model, frames_in=config.sequence.frames_in, frames_out=config.frames_out)
    assert sum(parameter.numel() for parameter in network.parameters()) == 103_581_667


def test_base_forecast_is_named(capsys):
    assert simcast("model", "info", CONFIGS / "teacher" / "sevir.yaml", "--set", "model.base=persistence") == 0
    assert "SimVP + persistence, stage teacher: 13 -> 6 frames" in capsys.readouterr().out


def test_counts_a_billion_parameters_without_allocating_them():
    """Their fp32 values alone would be 3.6 GiB. ru_maxrss would include the process of the tests before the exec."""
    program = (
        "import pathlib, sys; from simcast_hpc import cli\n"
        "try: cli.main()\n"
        "finally:\n"
        "    status = pathlib.Path('/proc/self/status').read_text()\n"
        "    print(status.partition('VmHWM:')[2].split()[0], file=sys.stderr)"
    )
    config = str(CONFIGS / "direct" / "sevir-earthformer-1b.yaml")
    output = subprocess.run(
        [sys.executable, "-c", program, "model", "info", config, "--json", "--ranks", "8"],
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(output.stdout)
    assert report["parameters"]["all"] == 976_274_441
    memory = report["bytes_on_a_rank"]
    assert memory["weights"] == 2 * -(-976_274_441 // 8)
    assert memory["activations"] == memory["activations_recomputed_all"] < memory["activations_kept_all"] / 2
    assert int(output.stderr.split()[-1]) < 1_500_000  # KiB


@pytest.mark.parametrize(
    ("stage", "count"), [("autoencoder", 83_649_253), ("diffusion", 309_246_016)], ids=["autoencoder", "diffusion"]
)
def test_generative_stages_by_zero_stage(stage, count, capsys):
    words = ["--set", "batch.micro_size=1", "--ranks", "8"]
    assert simcast("model", "info", CONFIGS / stage / "sevir.yaml", *words, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["parameters"]["all"] == count == sum(report["parameters"]["by_part"].values())
    own = -(-count // 8)
    assert list(report["bytes_on_a_rank_by_zero_stage"]) == ["1", "2", "3"], "bf16 without ZeRO is rejected"
    by_stage = report["bytes_on_a_rank_by_zero_stage"]
    assert by_stage["1"] == {"weights": 2 * count, "gradients": 4 * count, "optimizer": 12 * own}
    assert by_stage["3"] == {"weights": 2 * own, "gradients": 4 * own, "optimizer": 12 * own}
    memory = report["bytes_on_a_rank"]
    assert memory["activations_recomputed_all"] < memory["activations_kept_all"] / 3


def test_diffusion_uses_the_autoencoder_of_its_pipeline(capsys):
    words = ["--stage", "diffusion", "--ranks", "2"]
    assert simcast("model", "info", CONFIGS / "pipeline" / "quickstart-full.yaml", *words, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model"] == "CasFormer"
    count = report["parameters"]["all"]
    expected = {"weights": 4 * count, "gradients": 4 * count, "optimizer": 8 * count}
    assert report["bytes_on_a_rank_by_zero_stage"]["0"] == expected, "fp32 weights are the master weights"
    # Latents of 48 / 4 pixels and 4 channels, in pieces of 2: (2 * 4) * 2 * 2 * 32 weights and 32 biases.
    assert report["parameters"]["by_part"]["embed"] == 8 * 4 * 32 + 32
    assert simcast("model", "info", CONFIGS / "pipeline" / "quickstart-full.yaml", *words) == 0
    output = capsys.readouterr().out
    for word in ("CasFormer, stage diffusion", "GiB per rank, 2 ranks", "sum, full"):
        assert word in output


def test_table_lists_parts_and_memory(capsys):
    words = ["--set", "model={hidden_spatial: 8, hidden_temporal: 64}", "--ranks", "2"]
    assert simcast("model", "info", CONFIGS / "pipeline" / "quickstart.yaml", *words, "--stage", "teacher") == 0
    output = capsys.readouterr().out
    assert "SimVP, stage teacher: 6 -> 3 frames of 48 x 48 pixels, micro-batch 8, fp32" in output
    for word in ("translator", "forward and backward", "ZeRO stage 1, 2 ranks", "activations for backward"):
        assert word in output


def test_model_without_levels_has_no_rows_of_activation_checkpointing(capsys):
    """SimVP cannot recompute activations: the rows would repeat the same number."""
    assert simcast("model", "info", CONFIGS / "pipeline" / "quickstart.yaml", "--stage", "teacher") == 0
    assert "checkpointing" not in capsys.readouterr().out
    assert simcast("model", "info", CONFIGS / "direct" / "synthetic-earthformer.yaml") == 0
    output = capsys.readouterr().out
    assert "without activation checkpointing" in output and "with full activation checkpointing" in output


def cost_of(capsys, *words) -> dict:
    assert simcast("model", "info", *words, "--json") == 0
    cost = json.loads(capsys.readouterr().out)["training_cost"]
    assert cost["label"] == "estimate, not measured"
    assert cost["gpu_hours"] == pytest.approx(sum(part["gpu_hours"] for part in cost["parts"]))
    return cost


def test_training_cost_of_a_teacher(capsys):
    cost = cost_of(capsys, CONFIGS / "teacher" / "sevir.yaml")
    assert cost["samples"] == 446_475 * 8 and [part["part"] for part in cost["parts"]] == ["forward and backward"]
    assert cost["gpu_hours"] == pytest.approx(8.3, abs=0.1)
    assert cost["gpu_hours_by_utilization"]["0.1"] == pytest.approx(3 * cost["gpu_hours"])
    assert cost["storage_bytes"]["weights"] * 9 == cost["storage_bytes"]["checkpoints"], "3 of 12 bytes per parameter"
    other = cost_of(capsys, CONFIGS / "teacher" / "sevir.yaml", "--gpu", "a100", "--utilization", "0.6")
    assert other["gpu_hours"] == pytest.approx(cost["gpu_hours"] * 989 / 312 / 2)


def test_cost_of_a_network_with_noise_is_that_of_its_members(capsys):
    config = CONFIGS / "pipeline" / "quickstart.yaml"
    noise = "model: {noise_channels: 2}, loss: {mse_weight: 0.0, crps_weight: 1.0, members: %d}"
    costs = {}
    for members in (2, 4):
        words = [
            config,
            "--stage",
            "student",
            "--set",
            f"stages.student={{max_steps: 800, {noise % members}}}",
            "--set",
            "model.base=none",
            "--windows",
            "1000",
        ]
        costs[members] = cost_of(capsys, *words)
    two, four = (costs[members]["parts"] for members in (2, 4))
    assert four[0]["flops_per_sample"] == 2 * two[0]["flops_per_sample"]
    assert four[1] == two[1], "the teacher is deterministic"


def test_training_cost_of_rollouts(capsys):
    """Online rollouts are computed for every sample, cached ones once per training window."""
    config = CONFIGS / "pipeline" / "quickstart.yaml"
    words = [config, "--stage", "student", "--set", "model.base=none", "--set", "stages.student.max_steps=800"]
    assert [part["part"] for part in cost_of(capsys, *words)["parts"]] == ["forward and backward"], "unknown windows"
    cached = cost_of(capsys, *words, "--windows", "1000")
    online = cost_of(capsys, *words, "--set", "student.rollouts=online")
    assert cached["parts"][1]["part"] == "cached rollouts" and cached["parts"][1]["samples"] == 1000
    assert online["parts"][1]["part"] == "online rollouts" and online["parts"][1]["samples"] == 800 * 8
    assert cached["parts"][1]["flops_per_sample"] == online["parts"][1]["flops_per_sample"]
    assert cached["storage_bytes"]["rollouts"] == 1000 * 6 * 48 * 48 and "rollouts" not in online["storage_bytes"]


def test_training_cost_of_generative_stages(capsys):
    config = CONFIGS / "pipeline" / "quickstart-full.yaml"
    words = ["--windows", "100", "--gpu", "mi300x"]
    first = cost_of(capsys, config, "--stage", "autoencoder", *words)
    assert [part["part"] for part in first["parts"]] == [
        "forward and backward", "discriminator", "latent scale factor"
    ]  # fmt: skip
    assert first["parts"][1]["samples"] == (1500 - 1000) * 8
    second = cost_of(capsys, config, "--stage", "diffusion", *words)
    assert [part["part"] for part in second["parts"]] == ["forward and backward", "cached latents"]
    assert second["storage_bytes"]["latents"] == 100 * 3 * 6 * 4 * 12 * 12 * 2
    # A window: 12 frames are encoded, as the scale factor encodes one, and the student forecasts once.
    assert second["parts"][1]["flops_per_sample"] > 12 * first["parts"][2]["flops_per_sample"]


def test_training_cost_is_printed_as_an_estimate(capsys):
    words = ["--stage", "student", "--windows", "1000", "--gpu", "h200"]
    assert simcast("model", "info", CONFIGS / "pipeline" / "quickstart.yaml", *words) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "Training cost (estimated): NVIDIA H200 SXM 141 GB, 30% utilization" in output
    assert (
        "An estimate, not measured" in output
        and "At 10% to 40% utilization" in output
        and "rollouts 0.0138 GB" in output
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["pipeline/quickstart.yaml", "--stage", "pupil"],
            r"--stage pupil is not in this pipeline; choose from teacher, student",
        ),
        (["direct/sevir.yaml", "--set", "model.hidden_spatial=5"], r"invalid model: model\.hidden_spatial=5"),
        (
            ["direct/sevir-earthformer.yaml", "--set", "data.block_mean=5"],
            r"76 x 76 .*; try model\.stem\.scales",
        ),
        (
            ["diffusion/sevir.yaml", "--set", "data.block_mean=5"],
            r"76 x 76 are not divisible by the autoencoder's reduction 8",
        ),
        (["direct/sevir.yaml", "--gpu", "k80"], r"--gpu k80 is unknown; choose from a100, h100"),
        (["absent.yaml"], r"neither a configuration file nor the name"),
        (["direct/sevir.yaml", "--set", "model=earthfromer"], r"known kinds are earthformer, simvp"),
    ],
)
def test_invalid_configuration_is_one_message(words, says, capsys):
    assert simcast("model", "info", CONFIGS / words[0], *words[1:]) == 2
    assert re.search(says, capsys.readouterr().err)
