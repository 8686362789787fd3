"""Compare an ensemble with its student on test events: CRPS with confidence intervals, and power spectra.

    python -m benchmarks.ensemble_crps RUN [--split test] [--draws 2000] [--json FILE]

RUN is a finished run of the stage ``diffusion``. The ensemble is compared with the student, whose CRPS is its MAE, and
with the dressed student: as many members as the ensemble, each the student's forecast plus its residual of a validation
window, sampled by a counter, clipped to [0, 1]. Differences use the same bootstrap samples of events. Spectra are those
of single members, at wavelengths below four pixels. One run with one seed does not measure the variance of training.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.measurements import machine
from simcast_hpc.data.encoding import MISSING_CODE
from simcast_hpc.data.open_windows import open_windows, target_spec
from simcast_hpc.data.sample_order import random_integer
from simcast_hpc.data.window_source import WindowSource
from simcast_hpc.distill.cut_windows import to_frames
from simcast_hpc.evaluation import protocols_of
from simcast_hpc.inference.trained_ensemble import TrainedEnsemble, load_ensemble
from simcast_hpc.verification import radial_power
from simcast_hpc.verification.bootstrap import bootstrap, paired_difference
from simcast_hpc.verification.counting import Accumulator
from simcast_hpc.verification.protocols import ScoreProtocol

SHORTEST_PIXELS = 4.0
Forecaster = Callable[[Tensor, Sequence[int]], Tensor]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print and write the results; return 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--split", choices=["train", "val", "test", "all"], default="test")
    parser.add_argument("--residuals", choices=["train", "val"], default="val", help="split of the residuals")
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/ensembles.json"))
    options = parser.parse_args(arguments)
    ensemble = load_ensemble(options.run)
    result = compare(
        ensemble, split=options.split, dressed_by=options.residuals, draws=options.draws, batch=options.batch
    )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    for name, one in result["crps"].items():
        print(f"CRPS, {name:<28} {one['value']:.5f} [{one['low']:.5f}, {one['high']:.5f}]")
    for name, one in result["difference"].items():
        print(f"CRPS, {name:<28} {one['value']:+.5f} [{one['low']:+.5f}, {one['high']:+.5f}]")
    for name, ratio in result["short_wave_power"].items():
        print(f"power below {SHORTEST_PIXELS:g} pixels / observed, {name:<10} {ratio:.4f}")
    print(f"spread / error {result['spread_skill']:.3f}; {result['windows']} windows of {result['events']} events")
    print(f"{options.json}")
    return 0


def compare(ensemble: TrainedEnsemble, *, split: str, dressed_by: str, draws: int, batch: int) -> dict[str, Any]:
    """Return CRPS of ensemble, student and dressed student, their differences, and power at short wavelengths."""
    data, sequence = ensemble.config.data, ensemble.config.sequence
    frames = sequence.frames_in + sequence.frames_out
    source = open_windows(data, split=split, frames=frames)  # pyright: ignore[reportArgumentType]
    others = open_windows(data, split=dressed_by, frames=frames)  # pyright: ignore[reportArgumentType]
    residuals = residuals_of(ensemble, others, batch=batch)
    seed, members = ensemble.sampling.seed, ensemble.sampling.members

    def student(past: Tensor, indices: Sequence[int]) -> Tensor:
        return ensemble.student.forecast(past, frames_out=sequence.frames_out)

    def dressed(past: Tensor, indices: Sequence[int]) -> Tensor:
        return dress(student(past, indices), residuals, indices, members=members, seed=seed)

    forecasters: dict[str, Forecaster] = {
        "ensemble": lambda past, indices: ensemble.forecast(past, frames_out=sequence.frames_out),
        "student": student,
        "student, dressed": dressed,
    }
    (protocol,) = protocols_of(target_spec(data), ["global"])
    counted, power = {}, {}
    for name, forecaster in forecasters.items():
        counted[name], power[name] = score_forecaster(
            forecaster, source, protocol, frames_in=sequence.frames_in, batch=batch
        )
    intervals = {name: bootstrap(one, draws=draws) for name, one in counted.items()}
    pairs = {f"ensemble - {name}": name for name in ("student", "student, dressed")}
    differences = {
        shown: paired_difference(counted["ensemble"], counted[name], draws=draws)["crps"]
        for shown, name in pairs.items()
    }
    return {
        "split": split,
        "windows": len(source),
        "events": len({source.key(index).event for index in range(len(source))}),
        "protocol": protocol.hash,
        "sampling": ensemble.sampling.model_dump(mode="json"),
        "crps": {name: vars(one["crps"]) for name, one in intervals.items()},
        "difference": {name: vars(one) for name, one in differences.items()},
        "spread_skill": intervals["ensemble"]["spread_skill"].value,
        "short_wave_power": {name: forecast / observed for name, (observed, forecast) in power.items()},
        **machine("cpu"),
    }


def score_forecaster(
    forecaster: Forecaster, source: WindowSource, protocol: ScoreProtocol, *, frames_in: int, batch: int
) -> tuple[Any, tuple[float, float]]:
    """Return the score statistics, and the mean observed and forecast power at short wavelengths."""
    sums, power, frames = Accumulator(protocol), torch.zeros(2, dtype=torch.float64), 0
    for indices, codes in _batches(source, batch):
        past, future = codes[:, :frames_in], codes[:, frames_in:]
        forecast = forecaster(past, indices)
        sums.add(future, forecast, events=[source.key(index).event for index in indices])
        members = forecast if forecast.ndim == 5 else forecast[:, None]
        complete = (future != MISSING_CODE).flatten(2).all(dim=-1)
        observed = short_wave_power(to_frames(future).values)[complete]
        simulated = short_wave_power(members).mean(dim=1)[complete]
        power += torch.stack([observed.sum(), simulated.sum()])
        frames += int(complete.sum())
    observed, simulated = (power / max(1, frames)).tolist()
    return sums.statistics, (observed, simulated)


def short_wave_power(fields: Tensor) -> Tensor:
    """Return the mean power of fields ``[..., H, W]`` at wavelengths below four pixels, ``[...]``."""
    spectrum = radial_power(fields)
    longest = max(fields.shape[-2:])
    wavenumbers = torch.arange(spectrum.shape[-1])
    return spectrum[..., wavenumbers > longest / SHORTEST_PIXELS].mean(dim=-1)


def residuals_of(ensemble: TrainedEnsemble, source: WindowSource, *, batch: int) -> Tensor:
    """Return observation minus student forecast of each window, ``[N, T', H, W]``, 0 where missing."""
    sequence = ensemble.config.sequence
    residuals = []
    for _, codes in _batches(source, batch):
        forecast = ensemble.student.forecast(codes[:, : sequence.frames_in], frames_out=sequence.frames_out)
        observed = to_frames(codes[:, sequence.frames_in :])
        residuals.append(torch.where(observed.valid, observed.values - forecast, 0.0))
    return torch.cat(residuals)


def dress(forecast: Tensor, residuals: Tensor, indices: Sequence[int], *, members: int, seed: int) -> Tensor:
    """Return ``[B, members, T', H, W]``: the forecast plus the residuals of windows sampled per (window, member)."""
    chosen = [
        [
            random_integer(index * members + m, seed=seed, purpose="dressing", choices=len(residuals))
            for m in range(members)
        ]
        for index in indices
    ]
    return (forecast[:, None] + residuals[torch.tensor(chosen)]).clamp(0.0, 1.0)


def _batches(source: WindowSource, batch: int) -> Iterator[tuple[range, Tensor]]:
    for begin in range(0, len(source), batch):
        indices = range(begin, min(begin + batch, len(source)))
        yield indices, torch.from_numpy(np.stack([source.read(index) for index in indices]))


if __name__ == "__main__":
    sys.exit(main())
