"""The benchmark of extrapolation: rows of each forecast, scores against perfect and missing skill."""

import csv

import pytest
import torch

from benchmarks import extrapolation
from simcast_hpc.baselines import Persistence
from simcast_hpc.verification import protocol_for


class Perfect:
    name = "perfect"

    def __init__(self, windows):
        self.future = windows[:, extrapolation.FRAMES_IN :].float() / 255.0
        self.done = 0

    def forecast(self, frames, frames_out):
        self.done += len(frames)
        return self.future[self.done - len(frames) : self.done, :frames_out]


def test_scores_each_baseline_over_all_batches():
    windows = torch.randint(0, 255, (11, 12, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
    protocol = protocol_for("test", (40.0, 120.0, 200.0))
    baselines = {"perfect": Perfect(windows), "persistence": Persistence()}
    perfect, persistence = extrapolation.compare(windows, ["a"] * 11, baselines, protocol)
    assert (perfect["csi"], perfect["csi_6"], perfect["mse_e3"], perfect["bias_high"]) == (1.0, 1.0, 0.0, 1.0)
    expected = (windows[:, 5:6].double() - windows[:, 6:].double()).square().mean() / 255**2 * 1e3
    assert persistence["mse_e3"] == pytest.approx(expected.item(), abs=1e-3) and persistence["csi"] < 0.8
    assert perfect["cpu_ms"] >= 0


def test_writes_a_row_per_baseline(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pysteps")
    pytest.importorskip("cv2")
    monkeypatch.setattr(extrapolation, "SYNTHETIC", ((24, 2, 1),))
    path = tmp_path / "rows.csv"
    extrapolation.main(["--threads", str(torch.get_num_threads()), "--csv", str(path)])
    with path.open(newline="") as file:
        rows = {row["provider"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["persistence", "pysteps-lk", "extrapolation"]
    assert {row["data"] for row in rows.values()} == {"synthetic 24 x 24"}
    assert float(rows["extrapolation"]["csi"]) > float(rows["persistence"]["csi"]) + 0.02
    assert "extrapolation" in capsys.readouterr().out
