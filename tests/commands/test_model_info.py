"""``simcast model info``: of every kind of configuration, as tables and as JSON, without the memory of the model."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.test_convert import simcast

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
COUNTS = {
    "direct/sevir.yaml": 9_254_209,
    "student/sevir-earthformer.yaml": 8_659_677,
    "direct/sevir-earthformer-100m.yaml": 103_581_667,
}


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_json_of_the_configurations(name, count, capsys):
    assert simcast("model", "info", CONFIGS / name, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"]["all"] == count == sum(found["parameters"]["by_part"].values())
    assert found["grid"] == [384, 384]
    assert found["flops"]["forward_and_backward"] > 2 * found["flops"]["forward"] > 0
    assert found["bytes_on_a_rank"]["weights"] == 2 * count


def test_a_billion_parameters_are_counted_without_their_memory():
    """Their fp32 values alone would be 3.6 GiB."""
    program = (
        "import resource, sys; from simcast_hpc import cli\n"
        "try: cli.main()\n"
        "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    config = str(CONFIGS / "direct" / "sevir-earthformer-1b.yaml")
    told = subprocess.run(
        [sys.executable, "-c", program, "model", "info", config, "--json", "--ranks", "8"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(told.stdout)
    assert found["parameters"]["all"] == 976_274_441
    held = found["bytes_on_a_rank"]
    assert held["weights"] == 2 * -(-976_274_441 // 8)
    assert held["activations"] == held["activations_recomputed_all"] < held["activations_kept_all"] / 2
    assert int(told.stderr.split()[-1]) < 1_500_000  # KiB


def test_the_table_names_parts_and_bytes(capsys):
    words = ["--set", "model={hidden_spatial: 8, hidden_temporal: 64}", "--ranks", "2"]
    assert simcast("model", "info", CONFIGS / "pipeline" / "quickstart.yaml", *words, "--stage", "teacher") == 0
    told = capsys.readouterr().out
    assert "SimVP, stage teacher: 6 -> 3 frames of 48 x 48 pixels, micro batch 8, fp32" in told
    for word in ("translator", "forward and backward", "ZeRO stage 1, 2 ranks", "activations kept for backward"):
        assert word in told


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pipeline/quickstart.yaml", "--stage", "pupil"], r"--stage pupil is none of this pipeline: teacher, student"),
        (["direct/sevir.yaml", "--set", "model.hidden_spatial=5"], r"the model does not fit: model\.hidden_spatial=5"),
        (
            ["direct/sevir-earthformer.yaml", "--set", "data.block_mean=5"],
            r"76 x 76 .*; try model\.stem\.scales",
        ),
        (["autoencoder/sevir.yaml"], r"stage autoencoder trains no forecast; what is counted are models of teacher"),
        (["absent.yaml"], r"cannot read the configuration"),
        (["direct/sevir.yaml", "--set", "model=earthfromer"], r"known kinds are earthformer, simvp"),
    ],
)
def test_a_configuration_that_does_not_hold_is_one_message(words, says, capsys):
    assert simcast("model", "info", CONFIGS / words[0], *words[1:]) == 2
    assert re.search(says, capsys.readouterr().err)
