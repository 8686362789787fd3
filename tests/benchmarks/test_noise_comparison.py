"""Comparison of a network with noise inputs with a deterministic one: both arms are trained and scored."""

import json

import pytest

from benchmarks import noise_ensemble
from tests.benchmarks.test_evidence_run import TINY


def test_trains_and_scores_both_arms(tmp_path, capsys):
    out = tmp_path / "noise.json"
    options = ["--steps", "2", "--seeds", "1", "--members", "3", "--work", str(tmp_path), "--json", str(out)]
    settings = [word for override in TINY for word in ("--set", override)]
    assert noise_ensemble.main([*options, *settings]) == 0
    assert capsys.readouterr().out.count("crps") == 3
    result = json.loads(out.read_text(encoding="utf-8"))
    baseline, deterministic, noise = result["runs"]
    assert [row["arm"] for row in (baseline, deterministic, noise)] == ["extrapolation", "deterministic", "noise"]
    for row in (baseline, deterministic):
        assert row["crps"] == row["mae"] and "spread_skill" not in row
    # After two small steps both are still close to their base forecast, in which members do not differ.
    assert deterministic["mae"] == pytest.approx(baseline["mae"], rel=0.2)
    assert 0 < noise["crps"] < noise["mae"] and 0 < noise["spread_skill"] < 1
