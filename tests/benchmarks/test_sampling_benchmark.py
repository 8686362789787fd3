"""The benchmark of sampling times every part in both ways, and both ways sample the same members."""

import csv

import pytest
import torch

from benchmarks import sampling
from simcast_hpc.diffusion import make_schedule, plan_steps, spaced_timesteps
from simcast_hpc.models.casformer import CasFormer


def test_times_every_part_in_both_ways(tmp_path, capsys):
    out = tmp_path / "sampling.csv"
    assert (
        sampling.main(
            ["--small", "--size", "64", "--members", "2", "--repeats", "1", "--device", "cpu", "--csv", str(out)]
        )
        == 0
    )
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    parts = {"ddim-20", "dpm-solver-6", "decode"}
    assert {(row["part"], row["way"]) for row in rows} == {
        (part, way) for part in parts for way in ("batched", "member by member")
    }
    assert all(float(row["p50_s"]) > 0 and row["commit"] and row["load"] and row["python"] for row in rows)
    assert {(row["networks"], row["shape"]) for row in rows} == {("small", "2x12x4x8x8")}
    assert "member by member" in capsys.readouterr().out


def test_times_one_part_at_another_size(tmp_path):
    out = tmp_path / "new" / "sampling.csv"
    words = ["--small", "--members", "1", "--repeats", "1", "--device", "cpu", "--size", "32", "--parts", "decode"]
    assert sampling.main([*words, "--csv", str(out)]) == 0
    with out.open(newline="") as file:
        rows = [(row["part"], row["shape"]) for row in csv.DictReader(file)]
    assert rows == [("decode", "1x12x4x4x4")] * 2


def test_rejects_a_size_that_is_no_multiple_of_8(capsys):
    with pytest.raises(SystemExit):
        sampling.main(["--size", "100"])
    assert "multiple of 8" in capsys.readouterr().err


@torch.inference_mode()
def test_members_are_independent_of_the_batch():
    torch.manual_seed(0)
    network = CasFormer(sampling.SMALL_CASFORMER, frames=12, channels=4).eval()
    schedule = make_schedule()
    steps = plan_steps("dpm_solver", schedule, spaced_timesteps(schedule, 3, "trailing"))
    condition = torch.randn(1, 12, 4, 4, 4)
    batched = sampling.sample_members(network, steps, condition, range(3))
    single = torch.cat([sampling.sample_members(network, steps, condition, range(i, i + 1)) for i in range(3)])
    torch.testing.assert_close(single, batched, atol=1e-5, rtol=0)
