"""The benchmarks of scoring: comparison before the timing, and imports of third-party files with stubs."""

import csv
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import protocol_comparison, published_evaluators, scoring
from benchmarks.stub_imports import execute_file, stub_imports


def evaluator(tables, *, off=0):
    """Return an object with the counters of CasCast's evaluator, filled from our tables."""
    counters = {}
    for pool, suffix in scoring._POOLS.items():
        for row, name in enumerate(("hits", "misses", "fas")):
            counters[name + suffix] = tables[pool][row].sum(-1).float()
    counters["fas_avg_pool_16"] = counters["fas_avg_pool_16"] + off
    return SimpleNamespace(**counters)


def test_rejects_a_different_count():
    codes, forecast = scoring.storm(shape=(2, 64, 64))
    tables = scoring.tables(codes, forecast)
    scoring.compare(evaluator(tables), tables)
    with pytest.raises(SystemExit, match="fas_avg_pool_16: CasCast"):
        scoring.compare(evaluator(tables, off=1), tables)


def test_alternates_the_timed_calls():
    calls = []
    rows = scoring.time_in_turn(
        {name: lambda name=name: calls.append(name) for name in "ab"}, repetitions=3, device="cpu"
    )
    assert calls == ["a", "b"] * 5 and [row["provider"] for row in rows] == ["a", "b"]
    assert all(0 <= row["p20_s"] <= row["p50_s"] <= row["p80_s"] for row in rows)


def test_writes_rows_with_provenance(tmp_path, monkeypatch, capsys):
    codes, forecast = scoring.storm(shape=(2, 64, 64))

    class Evaluator:
        def __init__(self, **options):
            self.options = options

        def update(self, forecast, target):
            assert self.options["seq_len"] == 2 and forecast.shape == target.shape == (1, 2, 1, 64, 64)
            vars(self).update(vars(evaluator(scoring.tables(target[:, :, 0], forecast[:, :, 0]))))

    monkeypatch.setattr(scoring, "load_cascast", lambda _: SimpleNamespace(SEVIRSkillScore=Evaluator))
    monkeypatch.setattr(scoring, "storm", lambda: (codes, forecast))
    path = tmp_path / "new" / "scoring.csv"
    words = ["--cascast", str(tmp_path), "--threads", str(torch.get_num_threads()), "--repetitions", "2"]
    scoring.main([*words, "--csv", str(path)])
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["provider"] for row in rows] == ["cascast", "ours, same tables", "ours, maxima"]
    for row in rows:
        assert 0 < float(row["p20_s"]) <= float(row["p50_s"]) <= float(row["p80_s"]) and row["cpu_least_s"]
        assert (row["shape"], row["thresholds"], row["repetitions"]) == ("2x64x64", "6", "2")
        assert "threads" in row["device"] and row["commit"] and row["load"] and row["public_commit"] == "unknown"
    assert "cpu_least_s" in capsys.readouterr().out


def test_executes_a_file_with_stubbed_imports(tmp_path):
    path = tmp_path / "third_party.py"
    path.write_text(
        "import absent_package.deep as deep\nfrom absent_package import tool\n@tool()\ndef f(x):\n    return x\n"
    )
    with stub_imports("absent_package"):
        assert execute_file(path, "third_party_of_test").deep is not None
    assert "absent_package" not in sys.modules and "absent_package.deep" not in sys.modules
    with pytest.raises(SystemExit, match="must be the root of a checkout"):
        execute_file(tmp_path / "no.py", "no")


def test_largest_difference_is_infinite_for_a_one_sided_nan():
    nan = float("nan")
    assert published_evaluators.largest({"a": 1.0, "b": 2.0}, {"a": 1.5, "b": 2.1}) == 0.5
    assert published_evaluators.largest({"a": nan}, {"a": nan}) == 0.0
    assert published_evaluators.largest({"a": nan}, {"a": 1.0}) == float("inf")


def test_fields_contain_every_threshold():
    fields = published_evaluators.sample_fields()
    for threshold in (16, 74, 133, 160, 181, 219):
        assert (fields.observed * 255 >= threshold).any() and (fields.observed * 255).round().eq(threshold).any()


def test_smoothed_persistence_varies_less_with_lead_time():
    forecast = protocol_comparison.smoothed_persistence(torch.rand(2, 32, 32), frames_out=3)
    assert forecast.shape == (2, 3, 32, 32)
    assert (forecast.std((2, 3)).diff(dim=1) < 0).all()
