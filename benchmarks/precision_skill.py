"""Compare the skill of models trained in bf16 and in fp32: the direct model of the evidence study, paired seeds.

    python -m benchmarks.precision_skill [--seeds 0 1 2 3 4] [--work DIR] [--json FILE] [--set KEY=VALUE ...]

Each run is ``simcast train`` with DeepSpeed on one rank; only ``engine.precision`` differs in a pair, so both have the
same initial weights, samples and schedule. Forecasts are computed in fp32 from the exported fp32 weights. Intervals of
the paired differences are over seeds and blocks of events, as in the study. Finished runs in ``--work`` are kept.
"""

import argparse
import dataclasses
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence.arms import arm_named
from benchmarks.evidence.block_sums import score_forecast
from benchmarks.evidence.intervals import Bootstrap
from benchmarks.evidence.study import STUDY, Study, read_study
from benchmarks.evidence.study_windows import Archive
from benchmarks.evidence.train_arm import config_of
from benchmarks.evidence.unit_results import Evidence, is_finished, load_unit, save_unit
from benchmarks.measurements import machine
from simcast_hpc.config import EngineConfig, ValidationConfig
from simcast_hpc.inference.trained_model import load_trained
from simcast_hpc.monitoring.metrics import read_metrics
from simcast_hpc.storage.atomic_files import write_json
from simcast_hpc.storage.run_directory import RunDirectory

PRECISIONS = ("fp32", "bf16")
SCORES = ("csi/mean", "csi/74", "csi/181", "frequency_bias/181", "mse", "mae")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, compare, print and write the results; return 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--work", type=Path, default=Path("runs/precision"), help="folder of archive and runs")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/precision_skill.json"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a field of the study")
    options = parser.parse_args(arguments)
    study = read_study(STUDY, tuple(options.set))
    archive = Archive(study, options.work.absolute() / "archive")
    archive.write()
    folders = {
        precision: {seed: options.work.absolute() / f"{precision}-seed{seed}" for seed in options.seeds}
        for precision in PRECISIONS
    }
    for seed in options.seeds:
        for precision in PRECISIONS:
            if not is_finished(folders[precision][seed]):
                record = train_and_score(study, archive, folders[precision][seed], precision=precision, seed=seed)
                print(f"{precision} seed {seed}: loss {record['loss']:.5f}, {record['seconds']:.0f} s", flush=True)
    result = compare(study, folders)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.json, result)
    for name, one in result["difference"].items():
        mean = result["mean"]["fp32"][name]
        print(f"bf16 - fp32, {name:<20} {one['value']:+.5f} [{one['low']:+.5f}, {one['high']:+.5f}] (fp32 {mean:.5f})")
    print(options.json)
    return 0


def train_and_score(study: Study, archive: Archive, folder: Path, *, precision: str, seed: int) -> dict[str, Any]:
    """Train the direct model with ``simcast train``, score its test forecasts, store both in ``folder``.

    Raises:
        CalledProcessError: training failed.
    """
    arm = arm_named(study, "direct")
    config = config_of(study, arm, seed=seed, folder=folder, archive=archive.root)
    # As in the study, the weights of the last step: a selection would add its own variance.
    last = ValidationConfig(every_steps=0, export="last")
    engine = EngineConfig.model_validate({"precision": precision})
    config = config.model_copy(update={"engine": engine, "validation": last})
    run = RunDirectory(folder)
    run.prepare(config)
    began = time.monotonic()
    command = [sys.executable, "-m", "simcast_hpc", "train", str(folder / "config.yaml"), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    model = load_trained(folder)
    frames = study.sequence.frames_out
    sums = score_forecast(study, archive, lambda codes: model.forecast(codes, frames_out=frames))
    losses = [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    fifth = max(1, len(losses) // 5)
    record = {"seconds": round(seconds, 1), "loss": sum(losses[-fifth:]) / fifth}
    save_unit(folder, sums, record)
    return record


def compare(study: Study, folders: dict[str, dict[int, Path]]) -> dict[str, Any]:
    """Return the scores of both precisions per seed and on average, and the intervals of their paired differences."""
    by_arm = {
        precision: {seed: load_unit(folder) for seed, folder in by_seed.items()}
        for precision, by_seed in folders.items()
    }
    evidence = Evidence(study, by_arm)  # pyright: ignore[reportArgumentType]
    bootstrap = Bootstrap(evidence)
    seeds = list(folders["fp32"])
    single = {
        precision: {
            seed: Bootstrap(Evidence(study, {precision: {0: result}}), draws=1) for seed, result in units.items()
        }
        for precision, units in by_arm.items()
    }
    return {
        "study": study.name,
        "steps": study.steps,
        "seeds": seeds,
        "by_seed": {
            precision: {
                seed: {name: one.one(((precision, 1.0),), name).value for name in SCORES} for seed, one in units.items()
            }
            for precision, units in single.items()
        },
        "training_loss": {
            precision: {seed: units[seed].record["loss"] for seed in seeds} for precision, units in by_arm.items()
        },
        "seconds": {
            precision: {seed: units[seed].record["seconds"] for seed in seeds} for precision, units in by_arm.items()
        },
        "mean": {
            precision: {name: bootstrap.one(((precision, 1.0),), name).value for name in SCORES}
            for precision in PRECISIONS
        },
        "difference": {
            name: dataclasses.asdict(bootstrap.one((("bf16", 1.0), ("fp32", -1.0)), name)) for name in SCORES
        },
        **machine("cpu"),
    }


if __name__ == "__main__":
    sys.exit(main())
