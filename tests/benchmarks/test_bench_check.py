"""Regression check of ratios: comparison, update of the committed file, and agreement of the pairs."""

import dataclasses
import time

import pytest
import torch

from benchmarks import bench_check
from benchmarks.bench_check import COMMITTED, Ratio, compare, main, read, write
from benchmarks.ratio_pairs import Pair, kept_bytes, pairs

RATIO = Ratio(device="cpu", pair="a/b", quantity="time", ratio=0.8, tolerance=1.25, measured_on="here")


@pytest.mark.parametrize(
    ("now", "worse"), [(0.8, False), (1.0, False), (1.01, True), (float("nan"), True), (0.1, False)]
)
def test_reports_ratio_over_its_tolerance(now, worse):
    found = compare([RATIO], [dataclasses.replace(RATIO, ratio=now)])
    assert found == ([f"a/b, time: {now:.3f} of the peer's, was 0.800"] if worse else [])


def test_reports_missing_pairs_of_this_device_only():
    other = dataclasses.replace(RATIO, pair="c/d")
    of_gpu = dataclasses.replace(RATIO, device="NVIDIA H200")
    assert compare([RATIO, other, of_gpu], [RATIO]) == ["c/d, time: missing"]
    assert compare([RATIO], [RATIO, other]) == []


def test_command_compares_and_updates_ratios(tmp_path, monkeypatch, capsys):
    slow = [1]

    def work():
        end = time.process_time() + 0.001 * slow[0]
        while time.process_time() < end:
            pass

    def peer():
        end = time.process_time() + 0.001
        while time.process_time() < end:
            pass

    monkeypatch.setattr(bench_check, "pairs", lambda device: [Pair(name="work", ours=work, peer=peer)])
    path = tmp_path / "baseline.csv"
    words = ["--device", "cpu", "--rounds", "3", "--baseline", str(path)]
    assert main([*words, "--update"]) == 0
    (ratio,) = read(path)
    assert ratio.ratio == pytest.approx(1, rel=0.3) and ratio.tolerance == bench_check.TOLERANCE["time"]
    write([dataclasses.replace(ratio, tolerance=1.8), dataclasses.replace(RATIO, device="NVIDIA H200")], path)
    assert main(words) == 0
    slow[0] = 4
    capsys.readouterr()
    assert main(words) == 1
    assert "worse: work, time: " in capsys.readouterr().err
    assert main([*words, "--update"]) == 0
    updated = {one.device: one for one in read(path)}
    assert updated["cpu"].ratio > 2 and updated["cpu"].tolerance == 1.8
    assert updated["NVIDIA H200"].ratio == RATIO.ratio, "ratios of other devices are kept"


def test_every_pair_is_committed_agrees_and_saves_memory():
    found = list(pairs("cpu"))
    committed = {ratio.pair for ratio in read(COMMITTED) if ratio.device == "cpu"}
    assert {pair.name for pair in found} == committed, "python -m benchmarks.bench_check --update --device cpu"
    for pair in found:
        one, other = pair.ours(), pair.peer()
        if pair.kept is None:
            continue
        assert torch.allclose(one[0], other[0], rtol=1e-4, atol=1e-4)
        ours, peer = (forward() for forward in pair.kept)
        assert torch.allclose(ours, peer, rtol=1e-4, atol=1e-4)
        assert kept_bytes(pair.kept[0]) < kept_bytes(pair.kept[1])
