"""Comparison of bf16 and fp32: paired differences of stored sums, and the committed results."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import precision_skill
from benchmarks.evidence.block_sums import Sums
from benchmarks.evidence.study import STUDY, read_study
from benchmarks.evidence.unit_results import save_unit
from tests.benchmarks.test_evidence_run import TINY

BLOCKS, THRESHOLDS, LEADS = 2, 6, 4


def sums(hits: int, error: int) -> Sums:
    """Return the sums of blocks with 100 forecast and 100 observed pixels per threshold and lead time."""
    table, field = (BLOCKS, THRESHOLDS, LEADS), (BLOCKS, LEADS)
    fss = np.ones((BLOCKS, 1, LEADS), np.int64)
    one, both = np.full(table, hits), np.full(table, 100)
    return Sums(one, both, both, fss, fss, fss, np.full(field, error), np.full(field, error**2), np.full(field, 256))


def test_differences_are_paired_by_seed(tmp_path):
    hits = {"fp32": [40, 60, 50], "bf16": [41, 61, 51]}
    folders = {name: {seed: tmp_path / f"{name}-{seed}" for seed in range(3)} for name in hits}
    for name, by_seed in folders.items():
        for seed, folder in by_seed.items():
            folder.mkdir()
            save_unit(folder, sums(hits[name][seed], 510), {"seconds": 1.0, "loss": 0.5})
    result = precision_skill.compare(read_study(STUDY, TINY), folders)
    csi = {name: [hit / (200 - hit) for hit in hits[name]] for name in hits}
    for name in hits:
        assert [one["csi/mean"] for one in result["by_seed"][name].values()] == pytest.approx(csi[name])
        assert result["mean"][name]["mse"] == pytest.approx(510**2 / 256 / 255**2)
    difference = result["difference"]["csi/mean"]
    assert difference["value"] == pytest.approx(np.mean(csi["bf16"]) - np.mean(csi["fp32"]))
    assert 0 < difference["low"] < difference["value"] < difference["high"], "seeds differ more than precisions"
    assert result["difference"]["mae"]["value"] == 0


@pytest.mark.slow
def test_trains_and_scores_both_precisions(tmp_path):
    settings = [part for override in (*TINY, "steps=3") for part in ("--set", override)]
    path = tmp_path / "result.json"
    arguments = ["--seeds", "0", "1", "--work", str(tmp_path), "--json", str(path), *settings]
    assert precision_skill.main(arguments) == 0
    result = json.loads(path.read_text(encoding="utf-8"))
    losses = result["training_loss"]
    assert losses["bf16"]["0"] == pytest.approx(losses["fp32"]["0"], rel=0.05) and losses["bf16"] != losses["fp32"]


def test_page_has_the_committed_results():
    root = Path(__file__).resolve().parents[2]
    result = json.loads((root / "benchmarks/results/cpu/precision_skill.json").read_text(encoding="utf-8"))
    page = (root / "docs/concepts/recipes.md").read_text(encoding="utf-8")
    for name, digits, scale in (("csi/mean", 4, 1), ("csi/74", 4, 1), ("csi/181", 4, 1), ("mse", 2, 1e3)):
        one, unit = result["difference"][name], "e-3" if scale > 1 else ""
        value, low, high = (f"{one[key] * scale:+.{digits}f}{unit}" for key in ("value", "low", "high"))
        assert f"| {result['mean']['fp32'][name] * scale:.{digits}f}{unit} | {value} | [{low}, {high}] |" in page
