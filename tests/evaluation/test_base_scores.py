"""Scores of untrained models with a base forecast: equal to the baseline in one pass, close to it when rolled out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from simcast_hpc.config import DataConfig
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.evaluation import baseline_entry, protocols_of
from simcast_hpc.evaluation.count_entries import count_entries
from simcast_hpc.evaluation.entries import model_entry
from simcast_hpc.inference.trained_model import TrainedModel, load_trained
from tests.archives import make_archive, tiny_config, write_trained

FRAMES_IN, FRAMES = 3, 8
EARTHFORMER = {
    "kind": "earthformer", "grid": [16, 16], "width": 8, "heads": 1,
    "stem": {"widths": [4, 8], "scales": [2, 2], "convolutions": [1, 1]},
}  # fmt: skip
SIMVP = {"hidden_spatial": 4, "hidden_temporal": 8, "temporal_blocks": 2, "inception_kernels": [3, 5], "groups": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    """Cells that move one pixel per frame, with missing pixels."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(3, 1, 10, 10, generator=generator).square() * 330 - 90
    field = interpolate(coarse, size=(40, 40), mode="bilinear")[:, 0].clamp(0, 254)
    codes = torch.stack([field[:, 8:24, 16 - t : 32 - t] for t in range(FRAMES)], dim=1).round().to(torch.uint8)
    codes[torch.rand(codes.shape, generator=generator) < 0.01] = 255
    root = make_archive(tmp_path_factory.mktemp("moving"), codes.numpy())
    return DataConfig(dataset="synthetic", root=root, window_stride=1, max_percent_missing=None)


def _model(folder: Path, *, kind: str, base: str, stage: str, frames_out: int, teacher_frames_out: int) -> TrainedModel:
    torch.manual_seed(1)
    sections: dict[str, Any] = {"student": {"extension": "none"}} if stage == "student" else {}
    config = tiny_config(
        folder / "run",
        stage=stage,
        model={**(EARTHFORMER if kind == "earthformer" else SIMVP), "base": base},
        sequence={"frames_in": FRAMES_IN, "frames_out": frames_out, "teacher_frames_out": teacher_frames_out},
        **sections,
    )
    return load_trained(write_trained(config))


def _sums(data: DataConfig, model: TrainedModel, baseline: str, folder: Path) -> list[dict[str, bytes]]:
    """Return the sufficient statistics of the model and of the baseline, as bytes by name."""
    frames_out = model.config.sequence.frames_out
    source = open_windows(data, split="train", frames=FRAMES_IN + frames_out)
    protocols = protocols_of(read_spec("synthetic"), ("global", "sevir-global-released"))
    entries = [model_entry("model", model), baseline_entry(baseline, data)]
    counted, _ = count_entries(source, entries, protocols, frames_in=FRAMES_IN, batch_size=4, heavy=181)
    sums: list[dict[str, bytes]] = []
    for entry in entries:
        sums.append({})
        for counting_hash, statistics in counted[entry.name].items():
            path = folder / f"{entry.name}.{counting_hash}.npz"
            statistics.save(path)
            with np.load(path) as arrays:
                sums[-1] |= {f"{counting_hash}/{name}": arrays[name].tobytes() for name in arrays.files}
    return sums


CASES = [
    *(("simvp", base, stage, frames_out) for base in ("persistence", "extrapolation")
      for stage, frames_out in (("direct", 2), ("direct", 3), ("student", 5), ("teacher", 2))),
    *(("earthformer", "extrapolation", stage, frames_out) for stage, frames_out in (("direct", 3), ("student", 5))),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "base", "stage", "frames_out"), CASES)
def test_untrained_model_scores_exactly_as_its_baseline(tmp_path, data, kind, base, stage, frames_out):
    model = _model(tmp_path, kind=kind, base=base, stage=stage, frames_out=frames_out, teacher_frames_out=2)
    of_model, of_baseline = _sums(data, model, base, tmp_path)
    assert of_model.keys() == of_baseline.keys() and len(of_model) > 10
    assert of_model == of_baseline


def test_rolled_out_extrapolation_is_close_to_the_baseline(tmp_path, data):
    """Each pass estimates the motion again from fed-back frames and interpolates the forecast once more."""
    model = _model(tmp_path, kind="simvp", base="extrapolation", stage="teacher", frames_out=5, teacher_frames_out=2)
    source = open_windows(data, split="train", frames=FRAMES_IN + 5)
    past = torch.from_numpy(np.stack([source.read(index) for index in range(len(source))]))[:, :FRAMES_IN]
    baseline = baseline_entry("extrapolation", data)
    difference = model.forecast(past, frames_out=5) - baseline.forecast_windows([], past, frames_out=5)
    by_lead_time = difference.abs().mean(dim=(0, 2, 3))
    assert torch.equal(by_lead_time[:2], torch.zeros(2)), "the first pass"
    assert by_lead_time[2:].min() > 0 and by_lead_time.max() < 0.02
