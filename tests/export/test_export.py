"""Exported runs: a process with only torch computes the network's outputs; the model card has their provenance."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from simcast_hpc.config import ConfigError
from simcast_hpc.export import export_folder as folder
from simcast_hpc.export import export_run
from simcast_hpc.export import onnx_export as onnx
from simcast_hpc.export.exported_modules import _codes
from simcast_hpc.export.torch_export import capture, foreign_operators, largest_difference
from simcast_hpc.inference.noise_ensemble import load_noise_ensemble
from simcast_hpc.inference.trained_model import load_trained
from simcast_hpc.models import build_model
from simcast_hpc.models.optical_flow import estimate_motion
from simcast_hpc.storage.run_directory import file_hash
from simcast_kernels import weighted_mse
from tests.archives import make_archive, random_codes, tiny_config, write_trained
from tests.generative_runs import make_runs, randomize, write_finished, write_noise_run

# -I excludes PYTHONPATH and the current directory; the finder hides packages of an editable installation.
_CHECK_PROGRAM = """
import sys
class Reject:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("simcast", "deepspeed", "triton")):
            raise ImportError(name)
sys.meta_path.insert(0, Reject())
import torch
model = torch.export.load(sys.argv[1]).module()
for inputs, expected in torch.load(sys.argv[2], weights_only=True):
    print((model(inputs) - expected).abs().max().item())
"""
_EARTHFORMER = {
    "kind": "earthformer", "grid": [16, 16], "width": 8, "heads": 2, "encoder_depth": [1], "decoder_depth": [1],
    "stem": {"kind": "none"},
}  # fmt: skip
_SCORES = {
    "title": "storms", "split": "test", "windows": 7, "events": 3, "supported_thresholds": ["16", "74"],
    "protocols": {"synthetic-global": {"hash": "0123456789ab"}},
    "scores": {"teacher": {"synthetic-global": {"csi/mean": 0.25, "crps": None}}},
    "intervals": {"teacher": {"synthetic-global": {"csi/mean": [0.2, 0.3]}}},
}  # fmt: skip


@pytest.fixture(autouse=True)
def single_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_exported_folder_works_without_this_project(tmp_path):
    torch.manual_seed(0)
    run = write_trained(tiny_config(tmp_path / "teacher", stage="teacher", data={"dataset": "synthetic"}))
    (tmp_path / "scores.json").write_text(json.dumps(_SCORES))
    selection = {"score": "csi/mean", "best_step": 3, "best_value": 0.4125, "export": "best", "exported_step": 3}
    marker = json.loads((run / "DONE.json").read_text())
    (run / "DONE.json").write_text(json.dumps(marker | {"validation": selection}))
    out = tmp_path / "exported" / "teacher"
    result = export_run(run, out, grid=(16, 24), scores=[str(tmp_path / "scores.json")])

    trained = load_trained(run)
    pairs = []
    for batch in (1, 2, 5):
        codes = torch.from_numpy(random_codes(batch, 3, size=24, missing=0.1))[:, :, :16]
        pairs.append((codes, trained.forecast(codes, frames_out=4)))
    torch.save(pairs, tmp_path / "pairs.pt")
    command = [sys.executable, "-I", "-c", _CHECK_PROGRAM, str(out / "model.pt2"), str(tmp_path / "pairs.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [float(line) <= 1e-5 for line in done.stdout.split()] == [True] * 3, "rolled out, for every batch size"

    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "SHA256SUMS", "config.yaml", "export.json", "model.pt2", "model.safetensors",
    ]  # fmt: skip
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=out, check=True)
    assert (out / "SHA256SUMS").read_text().count("\n") == 5
    assert list(out.parent.iterdir()) == [out] and result.differences["model.pt2"] <= 1e-5
    assert load_file(out / "model.safetensors").keys() == trained.network.state_dict().keys()
    metadata = json.loads((out / "export.json").read_text())
    assert metadata["weights_sha256"] == file_hash(out / "model.safetensors") == trained.weights_hash
    assert metadata["files"]["model.pt2"] == file_hash(out / "model.pt2")
    card = (out / "README.md").read_text()
    for text in (
        "Optimizer steps: 4; global batch 4; seed 5",
        "The weights are those of step 3; best validation score: `csi/mean` 0.4125 at step 3\n",
        trained.weights_hash, "[batch, 3, 16, 24]",
        "| synthetic-global | `0123456789ab` | 0.2500 [0.2000, 0.3000] |", "License of the data: Apache-2.0",
        "Attribution: SimCast-HPC.",
        "not for real weather", torch.__version__, "Loading a `.pt2` file runs code that it contains",
    ):  # fmt: skip
        assert text in card, card


class Loss(nn.Module):
    """A module with an operator that is not exported."""

    def forward(self, frames):
        return weighted_mse(frames, torch.zeros_like(frames), thresholds=(), weights=(1.0,))


def test_exports_only_pytorch_operators():
    config = tiny_config("run", model=_EARTHFORMER)
    torch.manual_seed(0)
    network = build_model(config.model, frames_in=3, frames_out=4).eval()
    frames = torch.rand(2, 3, 1, 16, 16)
    program = capture(network, frames)
    assert foreign_operators(program) == []
    assert largest_difference(program.module(), network, [frames[:1], torch.rand(3, 3, 1, 16, 16)]) <= 1e-5
    with pytest.raises(ValueError, match=r"calls simcast_kernels\.weighted_mse"):
        capture(Loss(), frames)


@pytest.mark.parametrize("base", ["none", "extrapolation"])
def test_exports_members_with_noise_as_an_input(tmp_path, base):
    run = write_noise_run(tmp_path / "direct", tmp_path, base=base)
    result = export_run(run, tmp_path / "out", grid=(16, 16))
    assert result.differences["model.pt2"] <= 1e-5
    ensemble = load_noise_ensemble(run)
    codes = torch.from_numpy(random_codes(1, 3, missing=0.1))
    noise = ensemble.noise_of_domain(codes[0], range(5), grid=(16, 16))
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    members = program(codes.expand(5, -1, -1, -1), noise)
    torch.testing.assert_close(members, ensemble.members(codes, range(5))[0], atol=1e-5, rtol=0)
    card = (tmp_path / "out" / "README.md").read_text()
    for text in ("noise: float32 [batch, 4, 2, 16, 16]", "model(codes, noise)", "each row of noise gives one member"):
        assert text in card, card
    assert "A deterministic forecast" not in card


def test_exports_autoencoder_as_two_programs(tmp_path):
    runs = make_runs(tmp_path / "runs", make_archive(tmp_path / "archive", random_codes(2, 7)))
    result = export_run(runs / "autoencoder", tmp_path / "out", grid=(16, 16))
    assert set(result.differences) == {"encoder.pt2", "decoder.pt2"} and max(result.differences.values()) <= 1e-5
    mean, log_variance = torch.export.load(tmp_path / "out" / "encoder.pt2").module()(torch.rand(4, 1, 16, 16))
    assert mean.shape == log_variance.shape == (4, 2, 8, 8)
    assert torch.export.load(tmp_path / "out" / "decoder.pt2").module()(mean).shape == (4, 1, 16, 16)
    assert json.loads((tmp_path / "out" / "export.json").read_text())["scale_factor"] == 1.25
    with pytest.raises(
        ConfigError, match=r"not a single program.*student and .*autoencoder\); for ensembles use simcast s"
    ):
        export_run(runs / "diffusion", tmp_path / "ensemble")


def test_rejected_export_leaves_no_files(tmp_path, monkeypatch):
    run = write_trained(tiny_config(tmp_path / "direct", data={"dataset": "synthetic"}))
    (tmp_path / "existing").mkdir()
    (tmp_path / "scores.json").write_text(json.dumps(_SCORES))
    for options, message in (
        ({"out": tmp_path / "existing"}, "exists; give a folder that does not exist"),
        ({"grid": (15, 16)}, "multiples of 2, got 15 x 16"),
        ({"scores": [str(tmp_path / "absent.json")]}, "is not a score file of `simcast evaluate`"),
        ({"scores": [str(tmp_path / "scores.json")]}, "has no row 'direct'; it has teacher: --scores ROW="),
    ):
        with pytest.raises(ConfigError, match=message):
            export_run(run, **{"out": tmp_path / "new" / "out", **options})
    with pytest.raises(ConfigError, match="is not a finished training run"):
        export_run(tmp_path, tmp_path / "new" / "out")
    monkeypatch.setattr(folder, "TOLERANCE", -1.0)
    with pytest.raises(folder.ExportError, match=r"model.pt2 differs from the network by"):
        export_run(run, tmp_path / "new" / "out", grid=(16, 16))
    assert not (tmp_path / "new").exists(), "no program that differs from the network is left"


def _run_with_base(run_dir, base, **sections):
    """Return a finished run with random weights, also in the output layer."""
    model = tiny_config(run_dir).model.model_dump(mode="json") | {"base": base}
    config = tiny_config(run_dir, data={"dataset": "synthetic"}, model=model, **sections)
    torch.manual_seed(0)
    network = build_model(config.model, frames_in=3, frames_out=config.frames_out)
    return write_finished(config, randomize(network, seed=1), {})


def test_exports_a_model_with_a_base_forecast(tmp_path):
    result = export_run(_run_with_base(tmp_path / "run", "persistence"), tmp_path / "out", grid=(16, 16))
    assert result.differences["model.pt2"] <= 1e-5
    card = (tmp_path / "out" / "README.md").read_text()
    assert "SimVP + persistence, stage `direct`" in card
    assert "the output of the network is added to the base forecast (persistence of the input frames)" in card


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["direct", "teacher"])
def test_exported_extrapolation_equals_the_network(tmp_path, stage):
    """Of one pass and of a rollout; the optical flow is part of the program."""
    onnx_packages = all(importlib.util.find_spec(name) for name in ("onnxscript", "onnxruntime"))
    run = _run_with_base(tmp_path / "run", "extrapolation", stage=stage)
    result = export_run(run, tmp_path / "out", grid=(16, 16), onnx=onnx_packages)
    assert result.differences["model.pt2"] <= 1e-5
    assert result.onnx_failures == [] and result.differences.get("model.onnx", 0.0) <= 1e-4
    codes = torch.from_numpy(random_codes(2, 3, size=16, missing=0.1))
    forecast = torch.export.load(tmp_path / "out" / "model.pt2").module()(codes)
    torch.testing.assert_close(forecast, load_trained(run).forecast(codes, frames_out=4), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("grid", [(16, 16), (48, 48)])
def test_onnx_of_noise_and_extrapolation_equals_the_network(tmp_path, grid):
    """On moving echoes; without common motion the optical flow amplifies the rounding of any other order of sums."""
    pytest.importorskip("onnxscript", reason="the extra [onnx] is not installed")
    pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    run = write_noise_run(tmp_path / "run", tmp_path)
    result = export_run(run, tmp_path / "out", grid=grid, onnx=True)
    assert result.onnx_failures == [] and result.differences["model.onnx"] <= 1e-4


def test_checked_codes_move_and_have_missing_pixels():
    codes = _codes((2, 4, 24, 32))
    assert torch.equal(codes, _codes((2, 4, 24, 32))) and not torch.equal(codes[0], codes[1])
    assert (codes[..., :3, :4] == 255).all() and (codes[..., 3:, :] < 255).all()
    motion = estimate_motion(codes.float() / 255, codes != 255)
    torch.testing.assert_close(motion.mean(dim=(0, 2, 3)), torch.tensor([1.0, 2.0]), rtol=0, atol=0.25)
    assert _codes((1, 1, 8, 8)).shape == (1, 1, 8, 8)


@pytest.mark.slow
def test_onnx_equals_the_network(tmp_path):
    pytest.importorskip("onnxscript", reason="the extra [onnx] is not installed")
    pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    two_levels = {**_EARTHFORMER, "encoder_depth": [1, 1], "decoder_depth": [1, 1]}
    for name, overrides in (("simvp", {}), ("earthformer", {"model": two_levels})):
        run = write_trained(tiny_config(tmp_path / name, data={"dataset": "synthetic"}, **overrides))
        result = export_run(run, tmp_path / "out" / name, grid=(16, 16), onnx=True)
        assert result.onnx_failures == [] and result.differences["model.onnx"] <= 1e-4
        assert (tmp_path / "out" / name / "model.onnx").is_file()


def test_does_not_write_onnx_that_differs(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript", reason="the extra [onnx] is not installed")
    pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    monkeypatch.setattr(onnx, "ONNX_TOLERANCE", -1.0)
    shift = torch.nn.Linear(2, 2)
    with pytest.raises(onnx.OnnxError, match="ONNX export of shift failed: its output differs by"):
        onnx.write_onnx(capture(shift, torch.rand(3, 2)), shift, [torch.rand(3, 2)], tmp_path / "shift.onnx")
    assert list(tmp_path.iterdir()) == []
