"""A pipeline with autoencoder and diffusion: the runs that a diffusion uses, and an ensemble in scores and report."""

import json
from pathlib import Path

import pytest

from simcast_hpc.config import ConfigError, PipelineConfig, from_mapping, read_config
from simcast_hpc.inference.trained_ensemble import load_ensemble
from simcast_hpc.inference.trained_model import load_trained
from tests.forked_stages import run_pipeline_forked

pytestmark = pytest.mark.multi


def five_stages(run_dir: Path, **changes: object) -> PipelineConfig:
    settings = {
        "name": "tiny",
        "run_dir": str(run_dir),
        "data": {"dataset": "synthetic", "root": str(run_dir / "archive"), "window_stride": 4},
        "synthesis": {"seed": 2, "size": 16, "frames_per_event": 12, "train_events": 6, "test_events": 3},
        "sequence": {"frames_in": 4, "frames_out": 4, "teacher_frames_out": 2},
        "model": {"hidden_spatial": 4, "hidden_temporal": 16, "temporal_blocks": 2, "groups": 2},
        "batch": {"global_size": 4, "micro_size": 4},
        "engine": {"precision": "fp32"},
        "log": {"every_steps": 2},
        "autoencoder": {
            "model": {"widths": [4, 8], "blocks": 1, "latent_channels": 2, "groups": 2},
            "adversarial_start": 2,
            "discriminator": {"layers": 2, "width": 4, "groups": 2},
        },
        "diffusion": {
            "casformer": {
                "frame_width": 8, "frame_depth": 1, "frame_heads": 2, "width": 12, "depth": 1, "heads": 2,
            },
            "prediction": "sample", "zero_terminal_snr": True,
        },
        "sampling": {"sampler": "dpm_solver_sde", "spacing": "trailing", "steps": 3, "members": 3, "guidance": 1.5},
        "stages": {name: {"max_steps": 4} for name in ("teacher", "student", "autoencoder", "diffusion")},
        "evaluation": {"min_observed_pixels": 20, "min_observed_events": 2},
    }  # fmt: skip
    return from_mapping(PipelineConfig, settings | changes)


def test_diffusion_uses_the_runs_of_the_pipeline_by_default(tmp_path):
    config = five_stages(tmp_path)
    diffusion = config.train_config("diffusion").diffusion
    assert (diffusion.autoencoder, diffusion.student) == (tmp_path / "autoencoder", tmp_path / "student")
    other = five_stages(tmp_path, diffusion={"student": "elsewhere"})
    assert other.train_config("diffusion").diffusion.student == Path("elsewhere")


@pytest.mark.slow
def test_student_with_noise_inputs_is_an_ensemble_in_scores_and_report(tmp_path):
    run_dir = tmp_path / "run"
    noise = {
        "stage": "student", "model": {"noise_channels": 2, "base": "extrapolation"},
        "loss": {"mse_weight": 0.0, "crps_weight": 1.0}, "sampling": {"members": 4},
    }  # fmt: skip
    stages = {"teacher": {"max_steps": 10}, "noisy": {"max_steps": 10, **noise}}
    run_pipeline_forked(five_stages(run_dir, stages=stages, autoencoder={}, diffusion={}, sampling={}))
    scores = json.loads((run_dir / "scores" / "test.json").read_text(encoding="utf-8"))
    entry = next(entry for entry in scores["entries"] if entry["name"] == "noisy")
    assert entry["note"] == "4 members of student, one pass per member; SimVP + extrapolation with noise"
    values = next(iter(scores["scores"]["noisy"].values()))
    assert values["crps"] <= values["crps_standard"] and "spread_skill" in values
    page = (run_dir / "report" / "index.html").read_text(encoding="utf-8")
    assert "2 SimVP and SimVP + extrapolation models (1 with noise inputs, for ensembles) were trained" in page
    for shown in ("noisy, members", "Rank histogram", "Reliability", "member 4"):
        assert shown in page, shown


@pytest.mark.slow
def test_trains_all_stages_and_scores_the_ensemble(tmp_path):
    run_dir = tmp_path / "run"
    stages: dict[str, dict] = {name: {"max_steps": 30} for name in ("teacher", "student", "autoencoder", "diffusion")}
    stages["autoencoder"]["autoencoder"] = {"adversarial_start": 15}
    for fold in range(2):
        hold_out = {"data": {"hold_out": {"folds": 2, "fold": fold}}}
        stages |= {f"student-fold-{fold}": {"stage": "direct", "max_steps": 20, **hold_out}}
    stages["diffusion"] = stages.pop("diffusion")  # the last
    budget = {"stages": stages, "time_budget_minutes": 0.001}
    run_pipeline_forked(five_stages(run_dir, **budget))
    fitted = read_config(PipelineConfig, run_dir / "config.yaml").train_config("autoencoder")
    assert (fitted.max_steps, fitted.autoencoder.adversarial_start) == (20, 10)
    scores = json.loads((run_dir / "scores" / "test.json").read_text(encoding="utf-8"))
    assert [entry["name"] for entry in scores["entries"]] == [
        "persistence",
        "extrapolation",
        "teacher",
        "student",
        "diffusion",
    ]
    values = next(iter(scores["scores"]["diffusion"].values()))
    assert values["crps"] <= values["crps_standard"] and "spread_skill" in values
    inputs = json.loads((run_dir / "diffusion" / "DONE.json").read_text(encoding="utf-8"))["inputs"]
    folds = [load_trained(run_dir / f"student-fold-{fold}").weights_hash for fold in range(2)]
    assert [inputs[f"student without fold {fold}"] for fold in range(2)] == folds
    ensemble = load_ensemble(run_dir / "diffusion")
    assert ensemble.sampling.members == 3 and ensemble.autoencoder.scale > 0
    page = (run_dir / "report" / "index.html").read_text(encoding="utf-8")
    assert "a latent diffusion model for ensembles" in page and "Spread / error" in page
    for shown in ("diffusion, members", "Rank histogram", "Reliability", "probability-matched mean", "member 3"):
        assert shown in page, shown
    run_pipeline_forked(five_stages(run_dir, **budget))
    with pytest.raises(ConfigError, match=r"autoencoder: autoencoder\.divergence_weight"):
        changed = five_stages(run_dir, **budget).model_dump(mode="json")
        changed["autoencoder"]["divergence_weight"] = 0.5
        run_pipeline_forked(from_mapping(PipelineConfig, changed))
