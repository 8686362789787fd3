"""Comparison of ensemble and student: dressing with residuals, power at short wavelengths, and the table."""

import json

import torch

from benchmarks import ensemble_crps as ensembles


def test_dressing_adds_residuals_of_complete_windows():
    forecast = torch.full((2, 3, 4, 4), 0.5)
    residuals = torch.arange(5).view(5, 1, 1, 1).expand(5, 3, 4, 4) / 100
    members = ensembles.dress(forecast, residuals, [7, 9], members=6, seed=1)
    assert members.shape == (2, 6, 3, 4, 4)
    flat = members.flatten(2)
    assert torch.equal(flat.amax(-1), flat.amin(-1)), "one residual per member"
    assert len(set(flat[..., 0].flatten().tolist())) > 2
    assert torch.equal(ensembles.dress(forecast[1:], residuals, [9], members=6, seed=1), members[1:])
    assert ensembles.dress(forecast, residuals + 1, [0, 1], members=2, seed=1).max() == 1.0


def test_short_wave_power_excludes_long_waves():
    columns = torch.arange(32)
    long_wave = torch.sin(2 * torch.pi * 2 * columns / 32).expand(32, 32)
    checkerboard = (columns[:, None] + columns[None]) % 3 - 1.0
    assert ensembles.short_wave_power(long_wave).item() < 1e-9
    assert ensembles.short_wave_power(checkerboard).item() > 0.1


def test_command_writes_the_table(runs, tmp_path, capsys):
    out = tmp_path / "ensembles.json"
    options = ["--split", "train", "--residuals", "train", "--draws", "50", "--json", str(out)]
    assert ensembles.main([str(runs / "diffusion"), *options]) == 0
    table = json.loads(out.read_text())
    assert set(table["crps"]) == {"ensemble", "student", "student, dressed"}
    # On random pixel values, dressing improves an untrained student.
    assert table["crps"]["student, dressed"]["value"] < table["crps"]["student"]["value"]
    difference = table["difference"]["ensemble - student"]
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert set(table["short_wave_power"]) == set(table["crps"]) and table["spread_skill"] > 0
    assert "power below 4 pixels" in capsys.readouterr().out
