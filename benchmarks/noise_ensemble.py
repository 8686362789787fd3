"""Compare an ensemble of a network with noise inputs with the same deterministic network, at equal optimizer steps.

    python -m benchmarks.noise_ensemble [--base extrapolation] [--steps 600] [--seeds 3] [--members 10] [--json FILE]

Both networks are trained on the synthetic storms of the evidence study (24 x 24 pixels, 6 -> 6 frames) with its
optimizer: the deterministic one by the mean absolute error, which is its CRPS, and the other one by the almost-fair
CRPS of two members, both without weights. The test windows are scored by fair CRPS, and so is extrapolation along the
optical flow. The archive is written to ``--work`` on first use.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.evidence.study import STUDY, Study, read_study
from benchmarks.evidence.study_windows import Archive
from benchmarks.evidence.train_arm import PlainEngine, device_batches
from benchmarks.measurements import machine
from simcast_hpc.baselines import load_baseline
from simcast_hpc.config import TrainConfig, from_mapping
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.distributed.engine import set_learning_rate
from simcast_hpc.evaluation import protocols_of
from simcast_hpc.inference.noise_ensemble import NoiseEnsemble
from simcast_hpc.inference.trained_model import TrainedModel
from simcast_hpc.train.learning_rate import learning_rate
from simcast_hpc.train.loop import train
from simcast_hpc.train.stages.forecast_stage import DirectStage
from simcast_hpc.verification import scores
from simcast_hpc.verification.counting import Accumulator

_PLAIN = {"mse_weight": 0.0, "thresholds": [], "weights": [1.0]}
ARMS: dict[str, dict[str, Any]] = {
    "deterministic": {"loss": {**_PLAIN, "mae_weight": 1.0}},
    "noise": {"loss": {**_PLAIN, "crps_weight": 1.0, "members": 2}, "model": {"noise_channels": 2}},
}
SCORES = ("crps", "mae", "csi/mean", "spread_skill")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, score, print and write the results; return 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--base", choices=["none", "persistence", "extrapolation"], default="extrapolation")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a field of the study")
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/noise_ensemble.json"))
    options = parser.parse_args(arguments)
    study = read_study(STUDY, options.set)
    archive = Archive(study, options.work / "archive")
    archive.write()
    rows = [{"arm": "extrapolation", **score_baseline(study, archive, "extrapolation")}]
    for seed in range(options.seeds):
        for arm in ARMS:
            model, seconds = train_arm(study, archive, arm, seed=seed, base=options.base, steps=options.steps)
            row = {"arm": arm, "seed": seed, "cpu_seconds_per_step": seconds / options.steps}
            row |= score(study, archive, model, members=options.members)
            rows.append(row)
            print(", ".join(f"{key} {_shown(value)}" for key, value in row.items()), flush=True)
    print(", ".join(f"{key} {_shown(value)}" for key, value in rows[0].items()))
    settings = {"base": options.base, "steps": options.steps, "members": options.members, "study": study.name}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({**settings, **machine("cpu"), "runs": rows}, indent=1), encoding="utf-8")
    print(options.json)
    return 0


def train_arm(
    study: Study, archive: Archive, arm: str, *, seed: int, base: str, steps: int
) -> tuple[TrainedModel, float]:
    """Train an arm of the comparison; return it, with its CPU time in seconds."""
    own = ARMS[arm]
    config = from_mapping(
        TrainConfig,
        {
            "name": f"{arm}-seed{seed}",
            "run_dir": str(archive.root.parent / "noise" / f"{arm}-seed{seed}"),
            "stage": "direct",
            "seed": seed,
            "max_steps": steps,
            "data": {"dataset": "synthetic", "root": str(archive.root), "window_stride": study.window_stride},
            "sequence": study.sequence.model_dump(mode="json") | {"teacher_frames_out": study.half_horizon},
            "model": study.model.model_dump(mode="json") | {"base": base} | own.get("model", {}),
            "loss": own["loss"],
            "batch": {"global_size": study.batch_size, "micro_size": study.batch_size},
            "optimizer": study.optimizer.model_dump(mode="json"),
            "engine": {"precision": "fp32"},
        },
    )
    source = archive.windows("train", frames=study.sequence.frames_in + study.sequence.frames_out)
    stage = DirectStage(config, source)
    torch.manual_seed(seed)
    module = stage.module()
    engine = PlainEngine(module, config)
    begin = time.process_time()
    train(
        engine,
        device_batches(config, stage, source),
        first_step=0,
        max_steps=steps,
        before_step=lambda step: set_learning_rate(
            engine, learning_rate(step, max_steps=steps, config=config.optimizer)
        ),
    )
    module.model.eval().requires_grad_(False)
    return TrainedModel(module.model, config, ""), time.process_time() - begin


def score(study: Study, archive: Archive, model: TrainedModel, *, members: int) -> dict[str, float]:
    """Return scores of the test windows; the CRPS of a deterministic forecast is its mean absolute error."""
    frames_out, method = study.sequence.frames_out, model
    if model.config.model.noise_channels:
        sampling = model.config.sampling.model_copy(update={"members": members, "chunk": 10 * members})
        method = NoiseEnsemble(model.network, model.config, sampling, "")
    return _scores(study, archive, lambda past: method.forecast(past, frames_out=frames_out))


def score_baseline(study: Study, archive: Archive, name: str) -> dict[str, float]:
    """Return scores of the test windows of a baseline."""
    baseline = load_baseline(name, read_spec("synthetic").encoding)
    return _scores(study, archive, lambda past: baseline.forecast(past, study.sequence.frames_out))


def _scores(study: Study, archive: Archive, forecast: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
    (protocol,) = protocols_of(read_spec("synthetic"), ["global"])
    frames_in = study.sequence.frames_in
    source, sums = archive.windows("test", frames=frames_in + study.sequence.frames_out), Accumulator(protocol)
    for begin in range(0, len(source), study.scoring.batch_size):
        indices = range(begin, min(begin + study.scoring.batch_size, len(source)))
        codes = torch.from_numpy(np.stack([source.read(index) for index in indices]))
        events = [source.key(index).event for index in indices]
        sums.add(codes[:, frames_in:], forecast(codes[:, :frames_in]).cpu(), events=events)
    values = scores(sums.statistics)
    return {name: float(values[name]) for name in SCORES if name in values}


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
