"""The comparison with reference implementations: rows, rejected forecasts and invalid arguments."""

import csv
import json

import pytest
import torch

from benchmarks import peers, reference_networks
from benchmarks.peers import WrongForecastError
from simcast_hpc.diffusion import make_schedule, plan_steps, run_sampler, spaced_timesteps


@pytest.fixture
def checkout(tmp_path):
    """A folder with the file that identifies a checkout of OpenSTL; nothing is imported from it."""
    file = tmp_path / "openstl" / reference_networks.REQUIRED_FILES["openstl"]
    file.parent.mkdir(parents=True)
    file.write_text("")
    return tmp_path / "openstl"


def fake_processes(monkeypatch, *, ours: float, difference: float = 0.0, rounding: float = 0.0):
    """Replace the processes: the reference takes 2 s and 4 s, ours ``ours`` times as long.

    ``rounding`` is the difference of the reference in bf16 from its fp32 forecast.
    """
    order = []

    def answer(task):
        order.append(task.side)
        forecast = torch.linspace(0, 1, 8) + (difference if task.side == "ours" else 0)
        forecast[0] += rounding if (task.side, task.precision) == ("reference", "bf16") else 0
        if task.forecast:
            torch.save(forecast, task.forecast)
        factor = ours if task.side == "ours" else 1.0
        seconds = [[2 * factor, 1 * factor], [4 * factor, 3 * factor]]
        return {"times": {"step": seconds}, "peak_gb": 9.9 * factor}

    monkeypatch.setattr(peers, "_run_process", answer)
    return order


def test_writes_rows_of_both_sides_in_alternating_order(checkout, tmp_path, monkeypatch, capsys):
    order = fake_processes(monkeypatch, ours=0.5, difference=1e-6)
    path = tmp_path / "peers.csv"
    assert peers.main(["--openstl", str(checkout), "--csv", str(path), "--turns", "2"]) == 0
    assert order == ["reference", "ours", "ours", "reference"]
    reference, ours = csv.DictReader(path.open())
    assert (reference["provider"], ours["provider"]) == ("reference", "ours")
    assert reference["shape"] == "1x25x1x384x384" and reference["rounds"] == "4" and reference["processes"] == "2"
    assert float(reference["p50_s"]) == 2 * float(ours["p50_s"]) == 4.0
    assert float(ours["samples_per_s"]) == 0.5 and float(ours["apart"]) == pytest.approx(1e-6, rel=0.1)
    assert "| 2.00 | 2.00 | 2.00 |" in capsys.readouterr().out


def test_rejects_a_different_forecast(checkout, tmp_path, monkeypatch, capsys):
    fake_processes(monkeypatch, ours=0.1, difference=2e-4)
    path = tmp_path / "peers.csv"
    assert peers.main(["--openstl", str(checkout), "--csv", str(path)]) == 1
    assert list(csv.DictReader(path.open())) == []
    assert "must be below 0.0001; not timed" in capsys.readouterr().err


def test_bf16_tolerance_follows_the_rounding_of_the_reference(checkout, tmp_path, monkeypatch, capsys):
    path = tmp_path / "peers.csv"
    words = ["--openstl", str(checkout), "--csv", str(path), "--precision", "bf16", "--turns", "1"]
    order = fake_processes(monkeypatch, ours=0.5, difference=0.019, rounding=0.01)
    assert peers.main(words) == 0
    assert order == ["reference", "ours", "reference"], "the last one is the reference in fp32"
    assert [float(row["apart"]) for row in csv.DictReader(path.open())] == pytest.approx([0.01, 0.019], rel=1e-3)
    fake_processes(monkeypatch, ours=0.5, difference=0.021, rounding=0.01)
    assert peers.main(words) == 1
    assert "must be below 0.0201; not timed" in capsys.readouterr().err


def test_replaced_scheduler_equals_our_ddim():
    schedule, latents = make_schedule(), torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))

    def denoiser(x, timesteps):
        return torch.sin(3 * x) + timesteps.view(-1, 1, 1) / 1000

    steps = plan_steps("ddim", schedule, spaced_timesteps(schedule, 5))
    ours = run_sampler(steps, denoiser, latents, clip=1.5)
    scheduler = reference_networks._Ddim(5, 1.5)
    for timestep in scheduler.timesteps:
        noise = denoiser(latents, torch.full((2,), timestep))
        latents = scheduler.step(noise, timestep, latents).prev_sample
    assert ours.clip_rate > 0.1, "clipping must have an effect"
    torch.testing.assert_close(ours.latents, latents)


def test_reports_a_failed_process(checkout, monkeypatch):
    monkeypatch.setattr(peers.sys, "executable", "/bin/false")
    options = peers.parse(["--openstl", str(checkout)])
    with pytest.raises(WrongForecastError, match="the process of reference ended with status 1"):
        peers.compare_case("simvp", "fp32", options)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "at least one checkout is required"),
        (["--earthformer", "nowhere"], "--earthformer nowhere does not contain src/earthformer"),
        (["--openstl", "CHECKOUT", "--case", "sampling"], "--cascast"),
        (["--openstl", "CHECKOUT", "--rounds", "0"], "--rounds 0"),
        (["--openstl", "CHECKOUT", "--frames", "4", "12"], "at most as many frames"),
    ],
)
def test_rejects_invalid_arguments(words, message, checkout, capsys):
    with pytest.raises(SystemExit):
        peers.parse([str(checkout) if word == "CHECKOUT" else word for word in words])
    assert message in capsys.readouterr().err


def test_task_survives_json(checkout, tmp_path):
    options = peers.parse(["--openstl", str(checkout)])
    task = peers.task_of("simvp", "ours", "fp32", options, tmp_path / "x.pt")
    fields = json.loads(json.dumps(vars(task)))
    assert peers.Task(**fields | {"frames": tuple(fields["frames"])}) == task
