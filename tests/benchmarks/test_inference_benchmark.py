"""The benchmark of one forecast: its rows, a rejected forecast and invalid arguments."""

import csv

import pytest
import torch

from benchmarks import inference

TINY = ["--device", "cpu", "--size", "16", "--repeats", "2", "--way", "eager", "--case", "simvp-student"]


def test_writes_a_row_per_precision(tmp_path, capsys):
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


def test_rejects_a_different_forecast(tmp_path, monkeypatch, capsys):
    original = inference.forecaster

    def forecaster(way, network, frames):
        return original("eager", network, frames) if way == "eager" else lambda: 1.001 * network(frames)

    monkeypatch.setattr(inference, "forecaster", forecaster)
    out = tmp_path / "inference.csv"
    words = [word for word in TINY if word not in ("--way", "eager")] + [
        "--way",
        "eager",
        "compiled",
        "--csv",
        str(out),
    ]
    assert inference.main(words) == 1
    assert "max. relative difference of compiled 0.001" in capsys.readouterr().err
    with out.open(newline="") as file:
        assert [row["way"] for row in csv.DictReader(file)] == ["eager"]


@pytest.mark.parametrize(
    ("words", "message"), [(["--way", "graph"], "requires --device cuda"), (["--batch", "0"], "at least 1")]
)
def test_rejects_invalid_arguments(words, message, capsys):
    with pytest.raises(SystemExit):
        inference.parse(["--device", "cpu", *words])
    assert message in capsys.readouterr().err


@pytest.mark.gpu
def test_graph_gives_the_forecast_of_the_network(tmp_path):
    out = tmp_path / "inference.csv"
    words = ["--device", "cuda", "--size", "64", "--way", "eager", "graph", "--precision", "fp32", "--csv", str(out)]
    assert torch.cuda.is_available() and inference.main(words) == 0
