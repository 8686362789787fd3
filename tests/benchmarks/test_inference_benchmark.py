"""The benchmark of one forecast: its rows, and what it refuses."""

import csv

import pytest
import torch

from benchmarks import inference

TINY = ["--device", "cpu", "--size", "16", "--repeats", "2", "--way", "eager", "--case", "simvp-student"]


def test_every_precision_is_a_row(tmp_path, capsys):
    out = tmp_path / "new" / "inference.csv"
    assert inference.main([*TINY, "--precision", "fp32", "bf16", "--csv", str(out)]) == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["precision"], row["shape"], row["repeats"]) for row in rows] == [
        ("fp32", "1x25x1x16x16", "2"),
        ("bf16", "1x25x1x16x16", "2"),
    ]
    assert all(float(row["p50_s"]) > 0 and row["commit"] and float(row["apart"]) == 0 for row in rows)
    assert "eager" in capsys.readouterr().out


def test_a_way_with_another_forecast_is_not_written(tmp_path, monkeypatch, capsys):
    plain = inference.called

    def called(way, network, frames):
        return plain("eager", network, frames) if way == "eager" else lambda: 1.001 * network(frames)

    monkeypatch.setattr(inference, "called", called)
    out = tmp_path / "inference.csv"
    words = [word for word in TINY if word not in ("--way", "eager")] + [
        "--way",
        "eager",
        "compiled",
        "--csv",
        str(out),
    ]
    assert inference.main(words) == 1
    assert "compiled lies 0.001 of the largest off" in capsys.readouterr().err
    with out.open(newline="") as file:
        assert [row["way"] for row in csv.DictReader(file)] == ["eager"]


@pytest.mark.parametrize(
    ("words", "says"), [(["--way", "graph"], "needs --device cuda"), (["--batch", "0"], "at least 1")]
)
def test_what_it_cannot_time_is_rejected(words, says, capsys):
    with pytest.raises(SystemExit):
        inference.parse(["--device", "cpu", *words])
    assert says in capsys.readouterr().err


@pytest.mark.gpu
def test_a_graph_gives_the_networks_forecast(tmp_path):
    out = tmp_path / "inference.csv"
    words = ["--device", "cuda", "--size", "64", "--way", "eager", "graph", "--precision", "fp32", "--csv", str(out)]
    assert torch.cuda.is_available() and inference.main(words) == 0
