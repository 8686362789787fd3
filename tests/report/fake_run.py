"""A complete run directory of a pipeline with synthetic results."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simcast_hpc.config import PipelineConfig, from_mapping, to_yaml
from tests.report import fake_diagrams

CODES = {"16": 16.0, "74": 74.0, "133": 133.0, "160": 160.0, "181": 181.0, "219": 219.0}
RATES = {"0.5": 46.0, "2": 87.0, "5": 113.0, "10": 134.0, "30": 165.0}
STEPS = {"teacher": 500, "student": 800, "direct": 1300}
MEAN_CSI = {
    "persistence": (0.658, 0.468, 0.362, 0.298, 0.257, 0.227),
    "teacher": (0.672, 0.552, 0.439, 0.369, 0.318, 0.278),
    "student": (0.614, 0.573, 0.461, 0.373, 0.318, 0.269),
    "direct": (0.686, 0.555, 0.448, 0.370, 0.306, 0.256),
}
ENSEMBLE = "diffusion"
WITH_ENSEMBLE = {**MEAN_CSI, ENSEMBLE: (0.601, 0.55, 0.45, 0.36, 0.31, 0.26)}
_NOTES = {"persistence": "the last input frame", "teacher": "rolled out 2 times"}


def write_run(
    run_dir: Path,
    *,
    name: str = "quickstart",
    steps: Mapping[str, int] | None = None,
    config: Mapping[str, Any] | None = None,
    test_sets: Sequence[dict[str, Any]] | None = None,
) -> Path:
    """Write a finished run; ``test_sets`` are score files from :func:`score_file`, by default one."""
    steps = STEPS if steps is None else steps
    settings = {
        "name": name,
        "run_dir": str(run_dir),
        "data": {"dataset": "synthetic"},
        "sequence": {"frames_in": 6, "frames_out": 6, "teacher_frames_out": 3},
        "engine": {"precision": "fp32"},
        "stages": {stage: {"max_steps": count} for stage, count in steps.items()},
        **(config or {}),
    }
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(to_yaml(from_mapping(PipelineConfig, settings)), encoding="utf-8")
    versions = {"python": "3.11.9", "machine": "x86_64", "torch": "2.13.0", "device": "cpu", "commit": "01c0580"}
    write_json(run_dir / "versions.json", versions)
    for stage, count in steps.items():
        _write_stage(run_dir / stage, count)
    (run_dir / "scores").mkdir()
    for scores in test_sets if test_sets is not None else [score_file()]:
        write_json(run_dir / "scores" / f"{scores['name']}.json", scores)
        write_example(run_dir / "scores" / f"{scores['name']}.example.npz", scores)
    return run_dir


def score_file(
    *,
    name: str = "test",
    mean_csi: Mapping[str, Sequence[float | None]] | None = None,
    thresholds: Mapping[str, float] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Return the score file of one test set; ``changes`` replace top-level keys."""
    mean_csi = MEAN_CSI if mean_csi is None else mean_csi
    labels = list(CODES if thresholds is None else thresholds)
    frames_out = len(next(iter(mean_csi.values())))
    found = {entry: _scores(leads, labels) for entry, leads in mean_csi.items()}
    if ENSEMBLE in found:
        found[ENSEMBLE] |= fake_diagrams.SCORES
        found[ENSEMBLE] |= {
            f"{key}/lead/{lead}": value * (1 + lead / 10)
            for key, value in fake_diagrams.SCORES.items()
            for lead in range(1, frames_out + 1)
        }
    protocols = {
        f"{name}-{kind}": {
            "hash": digest,
            "labels": labels,
            "aggregation": kind,
            "source": "thresholds of the data set",
        }
        for kind, digest in (("global", "1a2b3c4d5e6f"), ("lead-mean", "6f5e4d3c2b1a"))
    }
    return {
        "name": name,
        "title": "synthetic storms in SEVIR's layout",
        "dataset": "synthetic",
        "quantity": "vertically integrated liquid (simulated)",
        "unit": "code",
        "license": "Apache-2.0",
        "citation": "SimCast-HPC",
        "split": "test",
        "windows": 144,
        "events": 48,
        "dates": ["2019-06-02", "2019-06-03"],
        "step_minutes": 5.0,
        "frames_in": 6,
        "frames_out": frames_out,
        "fingerprint": "0123456789abcdef",
        "observed": {
            label: {"pixels": 87 if label == labels[-1] else 90000 // 3**k, "events": 48 - 7 * k}
            for k, label in enumerate(labels)
        },
        "supported_thresholds": labels[:-1],
        "min_observed_pixels": 1000,
        "min_observed_events": 5,
        "protocols": protocols,
        "entries": [_entry(entry) for entry in mean_csi],
        "grid": [48, 48],
        "spacing_km": 8.0,
        "scores": {entry: dict.fromkeys(protocols, scores) for entry, scores in found.items()},
        "intervals": {
            entry: dict.fromkeys(protocols, fake_diagrams.intervals(scores)) for entry, scores in found.items()
        },
        "differences": [
            {"first": second, "second": first, "protocol": protocol, "key": "crps", "value": -0.01, "low": -0.012}
            | {"high": -0.008, "above_zero": 0.0}
            for protocol in protocols
            for first, second in itertools.combinations(mean_csi, 2)
        ],
        "diagrams": {
            entry: fake_diagrams.diagrams(labels, frames_out=frames_out, windows=144, ensemble=entry == ENSEMBLE)
            for entry in mean_csi
        },
        "mean_csi_by_lead": {entry: list(leads) for entry, leads in mean_csi.items()},
        **changes,
    }


def radar_file(name: str = "mch", **changes: Any) -> dict[str, Any]:
    """Return the scores of a rain-rate test set: thresholds in mm/h, few dates."""
    real = {
        "title": "MeteoSwiss 5-minute accumulations",
        "dataset": "mch",
        "quantity": "rain rate",
        "unit": "mm/h",
        "license": "terms not verified",
        "citation": "MeteoSwiss",
        "dates": ["2015-05-15", "2017-01-31", "2015-05-15"],
        "events": 7,
    }
    return score_file(name=name, thresholds=RATES, **{**real, **changes})


def moving_storm(count: int, *, first: int, size: int = 48) -> np.ndarray:
    """Return uint8 ``[count, size, size]``: two moving convective cells in stratiform rain."""
    y, x = np.mgrid[:size, :size]
    frames = []
    for t in range(first, first + count):
        shield = 95 * np.exp(-(((y - 26) / 15) ** 2 + ((x - 14 - t) / 13) ** 2))
        first_cell = 150 * np.exp(-(((y - 20) / 4) ** 2 + ((x - 8 - 1.5 * t) / 3) ** 2))
        second_cell = 135 * np.exp(-(((y - 33) / 3) ** 2 + ((x - 14 - 1.5 * t) / 5) ** 2))
        frames.append(np.clip(shield + first_cell + second_cell, 0, 254))
    return np.stack(frames).astype(np.uint8)


def write_example(path: Path, scores: dict[str, Any]) -> None:
    """Write an example window with a missing corner and the forecasts of all entries."""
    inputs = moving_storm(scores["frames_in"], first=0)
    observed = moving_storm(scores["frames_out"], first=scores["frames_in"])
    for frames in (inputs, observed):
        frames[:, -9:, -14:] = 255
    persistence = np.repeat(moving_storm(1, first=scores["frames_in"] - 1), scores["frames_out"], axis=0)
    truth = moving_storm(scores["frames_out"], first=scores["frames_in"])
    forecasts = {
        entry["name"]: persistence if entry["kind"] == "baseline" else truth // 2 + persistence // 2
        for entry in scores["entries"]
    }
    known = {**CODES, **RATES}
    labels = next(iter(scores["protocols"].values()))["labels"]
    thresholds = [known[label] for label in labels]
    more = fake_diagrams.products(ENSEMBLE, observed, thresholds) if ENSEMBLE in forecasts else {}
    np.savez(
        path,
        event=np.array("S0001"),
        inputs=inputs,
        observed=observed,
        thresholds=np.array(thresholds),
        **more,
        **{f"forecast/{name}": (frames / 255).astype(np.float32) for name, frames in forecasts.items()},
    )


def write_json(path: Path, data: Any) -> None:
    """Write JSON."""
    path.write_text(json.dumps(data), encoding="utf-8")


def _entry(name: str) -> dict[str, Any]:
    is_baseline = name in ("persistence", "extrapolation")
    return {
        "name": name,
        "kind": "baseline" if is_baseline else "model",
        "steps": None if is_baseline else STEPS.get(name, 100),
        "parameters": None if is_baseline else 212233,
        "note": _NOTES.get(name, ""),
    }


def _scores(mean_csi: Sequence[float | None], labels: Sequence[str]) -> dict[str, float | None]:
    """Return scores that decrease with threshold and follow ``mean_csi`` over lead times; undefined where it is."""
    found: dict[str, float | None] = {"mse": 0.00638, "mae": 0.0321, "crps": 0.0321, "csi/mean": 0.41}
    found |= {f"crps/lead/{lead}": 0.01 + 0.006 * lead for lead in range(1, len(mean_csi) + 1)}
    for k, label in enumerate(labels):
        share = 1.6 - 0.24 * k
        leads = [None if value is None else round(min(0.99, value * share), 4) for value in mean_csi]
        known = [value for value in leads if value is not None]
        csi = sum(known) / len(known) if known else None
        found |= {f"csi/{label}/lead/{lead}": value for lead, value in enumerate(leads, start=1)}
        found |= {f"frequency_bias/{label}/lead/{lead}": 1 - 0.08 * lead for lead in range(1, len(leads) + 1)}
        found |= {f"csi/{label}": csi, f"pod/{label}": csi and csi + 0.005, f"far/{label}": csi and 0.9 - 0.8 * csi}
        found[f"frequency_bias/{label}"] = 0.97
    return found


def _write_stage(folder: Path, steps: int) -> None:
    folder.mkdir()
    marks = range(20, steps + 1, 20)
    lines = [
        {
            "step": step,
            "loss": 0.003 + 0.02 * 0.5 ** (step / 150) * (1 + 0.1 * (-1) ** (step // 20)),
            "learning_rate": 0.004,
            "throughput/samples_per_second": 66.7,
            "time/seconds_per_step": 0.12,
        }
        for step in marks
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    inputs = {"seed": 0, "data fingerprint": "fedcba9876543210"}
    write_json(folder / "DONE.json", {"inputs": inputs, "steps": steps, "weights": "ab" * 32})
