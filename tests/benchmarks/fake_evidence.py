"""Synthetic packed results: arms with a given skill, noise of seeds and blocks."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks.evidence.arms import BASELINES, arms_of
from benchmarks.evidence.block_sums import Sums
from benchmarks.evidence.study import Study
from benchmarks.evidence.unit_results import Result, pack, packed_path

RECORD = {
    "train_loss": [[1, 0.02], [2, 0.01]],
    "val_loss": [[1, 0.03], [2, 0.02], [3, 0.015], [4, 0.014]],
    "selected_step": 3,
    "train_cpu_seconds": 2.0,
    "cpu_seconds": 3.0,
    "threads": 1,
    "processor": "none",
    "commit": "fake",
    "device": "cpu",
    "torch": "none",
    "python": "none",
}
_SHARES = (0.3, 0.12, 0.04, 0.02, 0.01, 0.002)


def write_results(
    folder: Path,
    study: Study,
    *,
    seeds: int,
    skill: Mapping[str, float] | None = None,
    noise: float = 0.005,
    without: tuple[str, ...] = (),
) -> None:
    """Write results of every arm but ``without``.

    Args:
        folder: folder to write to.
        study: the study, which names the arms.
        seeds: number of seeds.
        skill: skill by arm, added to 0.5: the probability of detection and the success ratio.
        noise: standard deviation of the skill over seeds.
        without: arms to omit.
    """
    random = np.random.default_rng(11)
    blocks, leads = study.archive.events["test"] // study.scoring.events_per_block, study.sequence.frames_out
    pixels = np.full((blocks, leads), 100_000)
    wet = random.gamma(4, 0.25, (blocks, 1, 1))
    observed = random.binomial(100_000, np.clip(wet * np.array(_SHARES)[:, None], 0, 1) + np.zeros(leads))
    skill = skill or {}
    for seed in (None, *range(seeds)):
        names = list(BASELINES) if seed is None else [arm.name for arm in arms_of(study) if arm.name not in without]
        found = {}
        for name in names:
            own = 0.5 + skill.get(name, 0.0) + (0 if seed is None else random.normal(0, noise))
            found[name] = Result(_sums(random, own, observed, pixels, study), RECORD)
        pack(packed_path(folder, seed), study, found)


def _sums(random: np.random.Generator, skill: float, observed: np.ndarray, pixels: np.ndarray, study: Study) -> Sums:
    hits = random.binomial(observed, np.clip(skill - 0.03 * np.arange(observed.shape[-1]), 0.01, 0.99))
    forecast = hits + random.poisson(observed * (1 - skill))
    rows = slice(0, len(study.scoring.fss_thresholds))
    return Sums(
        hits=hits,
        forecast=forecast,
        observed=observed,
        fss_difference=(forecast + observed - 2 * hits)[:, rows],
        fss_forecast=forecast[:, rows],
        fss_observed=observed[:, rows],
        absolute_error=(pixels * 5 * (1.5 - skill)).astype(np.int64),
        squared_error=(pixels * 90 * (1.5 - skill)).astype(np.int64),
        pixels=pixels,
    )
