"""Timed training steps: kinds of work by name, a row per input, large models are only counted."""

import csv

import pytest
import torch
from torch import nn

from benchmarks import end_to_end
from benchmarks.work_kinds import KINDS, kind_of, shares_by_kind
from simcast_hpc.planning.flops import ModelCost

SMALL = ModelCost(
    parameters={"all": 10},
    forward_flops={"all": 10**8},
    training_flops=3 * 10**8,
    activation_bytes=100,
    activation_bytes_without_checkpointing=100,
    activation_bytes_with_checkpointing=100,
)


@pytest.mark.parametrize(
    ("name", "above", "kind"),
    [
        ("aten::mkldnn_convolution", (), "convolution"),
        ("ConvolutionBackward0", (), "convolution"),
        ("aten::addmm", (), "product"),
        ("aten::bmm", ("simcast_kernels::cuboid_attention",), "attention"),
        ("aten::native_group_norm_backward", (), "norm"),
        ("aten::leaky_relu_", (), "pointwise"),
        ("aten::copy_", (), "copy"),
        ("aten::mul_", ("Optimizer.step#AdamW.step",), "optimizer"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", (), "attention"),
        ("something else", (), "other"),
    ],
)
def test_kind_of_an_operator(name, above, kind):
    assert kind_of(name, above) == kind and kind in KINDS


def test_shares_sum_to_one():
    network = nn.Sequential(nn.Linear(128, 512), nn.GELU(), nn.Linear(512, 128))
    optimizer = torch.optim.AdamW(network.parameters())
    x = torch.randn(512, 128)

    def step():
        network(x).square().mean().backward()
        optimizer.step()

    shares = shares_by_kind(step)
    assert set(shares) == set(KINDS) and sum(shares.values()) == pytest.approx(1)
    assert shares["product"] > 0 and shares["pointwise"] > 0 and shares["optimizer"] > 0
    assert shares["convolution"] == shares["attention"] == 0


@pytest.mark.slow
def test_measures_a_small_step_with_and_without_input(tmp_path, monkeypatch, capsys):
    path = tmp_path / "rows.csv"
    words = ["--case", "earthformer-teacher", "--size", "24", "--rounds", "1", "--threads", "1", "--csv", str(path)]
    monkeypatch.setattr(end_to_end, "model_cost", lambda run, size, dtype: SMALL)
    monkeypatch.setattr(end_to_end, "matmul_rate", lambda device, dtype: 1e11)
    assert end_to_end.main(words) == 0
    rows = list(csv.DictReader(path.open()))
    assert [row["input"] for row in rows] == ["none", "archive"]
    for row in rows:
        assert float(row["p50_s"]) > 0 and float(row["peak_gb"]) > 0 and 0 < float(row["model_flop_utilisation"]) < 1
        utilisation = float(row["training_gflop"]) / 1e3 / float(row["p50_s"]) / float(row["product_tflop_per_s"])
        assert float(row["model_flop_utilisation"]) == pytest.approx(utilisation, rel=0.05, abs=1e-3)
    shares = [kind.partition(":")[2] for kind in rows[0]["kinds"].split()]
    assert sum(map(float, shares)) == pytest.approx(1, abs=0.01) and rows[1]["kinds"] == ""
    assert str(path) in capsys.readouterr().out


def test_only_counts_a_model_above_the_memory_limit(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    words = ["--case", "casformer", "--size", "16", "--most-gb", "0.1", "--csv", str(path)]
    assert end_to_end.main(words) == 0
    (row,) = csv.DictReader(path.open())
    assert row["p50_s"] == "" and int(row["parameters"]) == 309_246_016
    assert float(row["needs_gb"]) > 16 * 309_246_016 / 1e9 - 0.01
    assert "needs_gb" in capsys.readouterr().out
