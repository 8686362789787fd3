"""The benchmarks of scoring: they compare before they time, and run another's file without what it imports besides."""

import csv
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import one_forecast, released_evaluators, scoring
from benchmarks.released_code import emptied, executed


def answers(tables, *, off=0):
    """Return an object with the counters of CasCast's evaluator, filled from ours."""
    found = {}
    for pool, suffix in scoring._POOLS.items():
        for row, name in enumerate(("hits", "misses", "fas")):
            found[name + suffix] = tables[pool][row].sum(-1).float()
    found["fas_avg_pool_16"] = found["fas_avg_pool_16"] + off
    return SimpleNamespace(**found)


def test_equal_tables_pass_and_one_count_too_many_is_rejected():
    codes, forecast = scoring.storm(shape=(2, 64, 64))
    tables = scoring.tables(codes, forecast)
    scoring.compare(answers(tables), tables)
    with pytest.raises(SystemExit, match="fas_avg_pool_16 differ"):
        scoring.compare(answers(tables, off=1), tables)


def test_every_call_is_timed_in_turn():
    calls = []
    rows = scoring.timed(
        {name: lambda name=name: calls.append(name) for name in "ab"}, repetitions=3, device=torch.device("cpu")
    )
    assert calls == ["a", "b"] * 5 and [row.provider for row in rows] == ["a", "b"]
    assert all(0 < row.p20 <= row.p50 <= row.p80 for row in rows)


def test_rows_say_what_was_counted_where(tmp_path, monkeypatch, capsys):
    codes, forecast = scoring.storm(shape=(2, 64, 64))

    class Evaluator:
        def __init__(self, **options):
            self.options = options

        def update(self, forecast, target):
            assert self.options["seq_len"] == 2 and forecast.shape == target.shape == (1, 2, 1, 64, 64)
            vars(self).update(vars(answers(scoring.tables(target[:, :, 0], forecast[:, :, 0]))))

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
    assert "all integers are equal" in capsys.readouterr().out


def test_a_file_is_executed_without_what_it_never_calls(tmp_path):
    path = tmp_path / "theirs.py"
    path.write_text(
        "import absent_package.deep as deep\nfrom absent_package import tool\n@tool()\ndef f(x):\n    return x\n"
    )
    with emptied("absent_package"):
        assert executed(path, "theirs_of_test").deep is not None
    assert "absent_package" not in sys.modules and "absent_package.deep" not in sys.modules
    with pytest.raises(SystemExit, match="give the root of the repository's checkout"):
        executed(tmp_path / "no.py", "no")


def test_a_difference_is_the_largest_and_a_one_sided_nan_is_infinite():
    nan = float("nan")
    assert released_evaluators.largest({"a": 1.0, "b": 2.0}, {"a": 1.5, "b": 2.1}) == 0.5
    assert released_evaluators.largest({"a": nan}, {"a": nan}) == 0.0
    assert released_evaluators.largest({"a": nan}, {"a": 1.0}) == float("inf")


def test_drawn_fields_reach_every_threshold():
    fields = released_evaluators.drawn_fields()
    for threshold in (16, 74, 133, 160, 181, 219):
        assert (fields.observed * 255 >= threshold).any() and (fields.observed * 255).round().eq(threshold).any()


def test_smoothed_persistence_fades_with_the_lead():
    forecast = one_forecast.smoothed_persistence(torch.rand(2, 32, 32), frames_out=3)
    assert forecast.shape == (2, 3, 32, 32)
    assert (forecast.std((2, 3)).diff(dim=1) < 0).all()
