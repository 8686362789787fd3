"""The comparison with public code: its table, what it refuses, and, where a fake checkout stands in, the whole way."""

import csv
import json

import pytest
import torch

from benchmarks import peers, public_code
from benchmarks.peers import WrongForecastError
from simcast_hpc.diffusion import make_schedule, plan_steps, run_sampler, spaced_timesteps


@pytest.fixture
def checkout(tmp_path):
    """A folder with the file by which a checkout of OpenSTL is known; nothing is imported from it here."""
    mark = tmp_path / "openstl" / public_code.MARKS["openstl"]
    mark.parent.mkdir(parents=True)
    mark.write_text("")
    return tmp_path / "openstl"


def answering(monkeypatch, *, ours: float, difference: float = 0.0, rounding: float = 0.0):
    """Let every process answer at once: seconds of the public side are 2 and 4, of ours ``ours`` times those.

    ``rounding`` is how far the public side lies off its own fp32 in bf16.
    """
    order = []

    def answer(task):
        order.append(task.side)
        forecast = torch.linspace(0, 1, 8) + (difference if task.side == "ours" else 0)
        forecast[0] += rounding if (task.side, task.precision) == ("public", "bf16") else 0
        if task.forecast:
            torch.save(forecast, task.forecast)
        factor = ours if task.side == "ours" else 1.0
        seconds = [[2 * factor, 1 * factor], [4 * factor, 3 * factor]]
        return {"times": {"step": seconds}, "peak_gb": 9.9 * factor}

    monkeypatch.setattr(peers, "_answer", answer)
    return order


def test_both_sides_are_rows_and_the_order_alternates(checkout, tmp_path, monkeypatch, capsys):
    order = answering(monkeypatch, ours=0.5, difference=1e-6)
    path = tmp_path / "peers.csv"
    assert peers.main(["--openstl", str(checkout), "--csv", str(path), "--turns", "2"]) == 0
    assert order == ["public", "ours", "ours", "public"]
    public, ours = csv.DictReader(path.open())
    assert (public["provider"], ours["provider"]) == ("public", "ours")
    assert public["shape"] == "1x25x1x384x384" and public["rounds"] == "4" and public["processes"] == "2"
    assert float(public["p50_s"]) == 2 * float(ours["p50_s"]) == 4.0
    assert float(ours["samples_per_s"]) == 0.5 and float(ours["apart"]) == pytest.approx(1e-6, rel=0.1)
    assert "2.00x" in capsys.readouterr().out


def test_a_forecast_that_differs_is_not_written(checkout, tmp_path, monkeypatch, capsys):
    answering(monkeypatch, ours=0.1, difference=2e-4)
    path = tmp_path / "peers.csv"
    assert peers.main(["--openstl", str(checkout), "--csv", str(path)]) == 1
    assert list(csv.DictReader(path.open())) == []
    assert "must be below 0.0001; not timed" in capsys.readouterr().err


def test_bf16_is_judged_by_how_far_the_public_code_rounds(checkout, tmp_path, monkeypatch, capsys):
    path = tmp_path / "peers.csv"
    words = ["--openstl", str(checkout), "--csv", str(path), "--precision", "bf16", "--turns", "1"]
    order = answering(monkeypatch, ours=0.5, difference=0.019, rounding=0.01)
    assert peers.main(words) == 0
    assert order == ["public", "ours", "public"], "the last is the public forecast in fp32"
    assert [float(row["apart"]) for row in csv.DictReader(path.open())] == pytest.approx([0.01, 0.019], rel=1e-3)
    answering(monkeypatch, ours=0.5, difference=0.021, rounding=0.01)
    assert peers.main(words) == 1
    assert "must be below 0.0201; not timed" in capsys.readouterr().err


def test_the_scheduler_that_stands_in_for_cascasts_steps_as_our_ddim():
    schedule, latents = make_schedule(), torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))

    def denoiser(x, timesteps):
        return torch.sin(3 * x) + timesteps.view(-1, 1, 1) / 1000

    steps = plan_steps("ddim", schedule, spaced_timesteps(schedule, 5))
    ours = run_sampler(steps, denoiser, latents, clip=1.5)
    scheduler = public_code._Ddim(5, 1.5)
    for timestep in scheduler.timesteps:
        noise = denoiser(latents, torch.full((2,), timestep))
        latents = scheduler.step(noise, timestep, latents).prev_sample
    assert ours.clip_rate > 0.1, "what was clipped must matter"
    torch.testing.assert_close(ours.latents, latents)


def test_a_process_that_breaks_is_told(checkout, monkeypatch):
    monkeypatch.setattr(peers.sys, "executable", "/bin/false")
    options = peers.parse(["--openstl", str(checkout)])
    with pytest.raises(WrongForecastError, match="the process of public ended with 1"):
        list(peers.measured("simvp", "fp32", options, {}))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name at least one checkout"),
        (["--earthformer", "nowhere"], "--earthformer nowhere holds no src/earthformer"),
        (["--openstl", "CHECKOUT", "--case", "sampling"], "--cascast"),
        (["--openstl", "CHECKOUT", "--rounds", "0"], "--rounds 0"),
        (["--openstl", "CHECKOUT", "--frames", "4", "12"], "no more frames in one pass"),
    ],
)
def test_what_it_cannot_compare_is_rejected(words, says, checkout, capsys):
    with pytest.raises(SystemExit):
        peers.parse([str(checkout) if word == "CHECKOUT" else word for word in words])
    assert says in capsys.readouterr().err


def test_a_task_goes_to_its_process_and_back(checkout, tmp_path):
    options = peers.parse(["--openstl", str(checkout)])
    task = peers.task_of("simvp", "ours", "fp32", options, tmp_path / "x.pt")
    fields = json.loads(json.dumps(vars(task)))
    assert peers.Task(**fields | {"frames": tuple(fields["frames"])}) == task
