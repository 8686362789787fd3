"""CasCast's three files become runs by commands, which are sampled and evaluated; wrong files are explained."""

import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from torch import Tensor

from simcast_hpc.inference.trained_ensemble import load_autoencoder, load_ensemble
from tests.archives import make_archive, random_codes
from tests.commands.cascast_files import (
    AUTOENCODER,
    CASFORMER,
    EARTHFORMER,
    write_files,
    write_small_files,
    yaml_file,
)
from tests.commands.test_convert import simcast
from tests.models.public_earthformer import public_weights
from tests.shared_data import shared

TOLERANCE = 1e-4
TOLERANCE_AFTER_20_STEPS = 1e-3


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder with the three published files, and the runs ``autoencoder``, ``earthformer``, ``casformer``."""
    folder = tmp_path_factory.mktemp("cascast")
    files = write_small_files(folder)
    given = {
        "autoencoder": [folder / "cascast_diffusion.yaml", "--scale-factor", 0.7, "--dataset", "synthetic"],
        "earthformer": [folder / "earthformer.yaml", "--dataset", "synthetic"],
        "casformer": [
            folder / "cascast_diffusion.yaml", "--autoencoder", folder / "autoencoder", "--student",
            folder / "earthformer",
        ],
    }  # fmt: skip
    for name, words in given.items():
        assert simcast("convert", name, files[name], folder / name, "--config", *words) == 0
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    return make_archive(tmp_path_factory.mktemp("archive"), random_codes(2, 5, size=32))


def error_of(capsys, *words: object) -> str:
    capsys.readouterr()
    assert simcast("convert", *words) == 2
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


def test_converted_files_are_sampled_and_evaluated(folder, archive, tmp_path):
    run, scores = folder / "casformer", tmp_path / "scores"
    file = tmp_path / "ensemble.h5"
    assert simcast("sample", run, "--root", archive, "--split", "train", "--out", file, "--single") == 0
    with h5py.File(file) as stored:
        forecast = stored["forecast"]
        assert isinstance(forecast, h5py.Dataset) and forecast.shape == (2, 10, 2, 32, 32)
        assert np.unique(forecast[:, :, 0, 16, 16]).size == 20, "every member differs"
    runs = [folder / "earthformer", run, f"sampled={file}"]
    words = ["--root", archive, "--split", "train", "--out", scores]
    assert simcast("evaluate", *runs, *words) == 0
    result = json.loads((scores / "train.json").read_text(encoding="utf-8"))
    notes = {entry["name"]: entry["note"] for entry in result["entries"]}
    assert notes["earthformer"] == "published weights, one pass; Earthformer"
    assert notes["casformer"] == "10 members of diffusion, ddim in 20 steps, guidance 2"
    run_scores, file_scores = (next(iter(result["scores"][name].values())) for name in ("casformer", "sampled"))
    assert run_scores["crps"] > 0
    assert run_scores["crps"] == pytest.approx(file_scores["crps"], abs=1e-6)


def test_runs_contain_the_published_settings(folder):
    ensemble = load_ensemble(folder / "casformer")
    section, sampling = ensemble.config.diffusion, ensemble.config.sampling
    assert (section.schedule, section.timesteps, section.prediction) == ("linear", 1000, "epsilon")
    assert (section.beta_start, section.beta_end, section.condition_dropout) == (1e-4, 0.02, 0.1)
    assert (sampling.sampler, sampling.steps, sampling.spacing) == ("ddim", 20, "leading")
    assert (sampling.eta, sampling.clip, sampling.guidance) == (0.0, 13.0, 2.0)
    assert ensemble.config.ema.decay is None and ensemble.steps is None
    assert ensemble.autoencoder.scale == 0.7
    origin = json.loads((folder / "casformer/published.json").read_text(encoding="utf-8"))
    assert (origin["file"], origin["key"], origin["prefix"]) == ("checkpoint_best.pth", "model.casformer", "")


def test_says_where_it_found_the_weights(folder, tmp_path, capsys):
    files = {"earthformer": folder / "ckpts/earthformer/ckpt.pth", "casformer": folder / "checkpoint_best.pth"}
    words = ["--config", folder / "earthformer.yaml"]
    assert simcast("convert", "earthformer", files["earthformer"], tmp_path / "a", *words) == 0
    assert "found the weights with --key model.EarthFormer_xy --prefix net.\n" in capsys.readouterr().out
    words += ["--key", "model.EarthFormer_xy", "--prefix", "net."]
    assert simcast("convert", "earthformer", files["earthformer"], tmp_path / "b", *words) == 0
    assert "found the weights" not in capsys.readouterr().out
    # The file of the diffusion also contains the autoencoder.
    words = ["--config", folder / "cascast_diffusion.yaml", "--scale-factor", "1"]
    assert simcast("convert", "autoencoder", files["casformer"], tmp_path / "c", *words) == 0
    assert "--key model.autoencoder_kl" in capsys.readouterr().out


def test_autoencoder_without_wrapper_loads_as_that_of_prediff(folder, tmp_path):
    """PreDiff's files have the keys of CasCast's autoencoder without ``net.``; its YAML has them under ``model``."""
    config = AUTOENCODER | {"act_fn": "silu", "data_channels": 1, "loss": {"disc_start": 50001}}
    (tmp_path / "vae.yaml").write_text(yaml.safe_dump({"layout": {}, "model": config}), encoding="utf-8")
    weights = torch.load(folder / "ckpts/autoencoder/ckpt.pth", weights_only=False)["model"]["autoencoder_kl"]
    torch.save({key.removeprefix("net."): tensor for key, tensor in weights.items()}, tmp_path / "vae.pt")
    words = ["--config", tmp_path / "vae.yaml", "--scale-factor", "1", "--dataset", "sevir-lr"]
    assert simcast("convert", "autoencoder", tmp_path / "vae.pt", tmp_path / "out", *words) == 0
    own, of_cascast = load_autoencoder(tmp_path / "out"), load_autoencoder(folder / "autoencoder")
    assert own.scale == 1 and own.config.data.dataset == "sevir-lr"
    for key, tensor in own.network.state_dict().items():
        assert torch.equal(tensor, of_cascast.network.state_dict()[key])


C = "checkpoint_best.pth"
SHORT = {
    "AE": "{folder}/ckpts/autoencoder/ckpt.pth",
    "EF": "{folder}/ckpts/earthformer/ckpt.pth",
    "CF": "{folder}/checkpoint_best.pth",
    "CONFIG": "--config {folder}/earthformer.yaml",
    "CASCAST": "--config {folder}/cascast_diffusion.yaml",
    "RUNS": "--autoencoder {folder}/autoencoder --student {folder}/earthformer",
    "OUT": "{out}",
}


def words_of(command: str, folder: Path, out: Path) -> list[str]:
    """Return the words of a command in which the names of ``SHORT`` are replaced."""
    text = " ".join(SHORT.get(word, word) for word in command.split())
    return [word.format(folder=folder, out=out).replace("NONE", "") for word in text.split()]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("earthformer EF OUT CONFIG --prefix model.",
         r"no key begins with 'model\.'; .*--key model\.EarthFormer_xy \(249 tensors\), 249 .* with --prefix net\."),
        ("earthformer EF OUT CONFIG --prefix NONE", r"none of the keys of this network.*with --prefix net\."),
        ("earthformer EF OUT CONFIG --key model.EarthFormer",
         r"no mapping 'model\.EarthFormer' contains tensors; tensors are in --key model\.EarthFormer_xy"),
        ("earthformer EF OUT", r"read with --key model\.EarthFormer_xy --prefix net\..*base_units=128 in the config"),
        ("simvp EF OUT", "none of the keys.*these are weights of earthformer: use `simcast convert earthformer`"),
        ("earthformer CF OUT CONFIG", "weights of autoencoder and casformer: use .* or `simcast convert casformer`"),
        ("earthformer EF OUT CASCAST", "no sub-model 'EarthFormer_xy'; its sub-models are autoencoder_kl, casformer"),
        ("autoencoder AE OUT CASCAST", "--scale-factor is required"),
        ("autoencoder AE OUT CASCAST --scale-factor -1", "--scale-factor -1 must be positive and finite"),
        ("earthformer EF OUT CONFIG --scale-factor 1", "--scale-factor 1.0 has no effect on earthformer"),
        ("earthformer EF OUT CONFIG --student RUN", "--student RUN has no effect on earthformer"),
        ("casformer CF OUT CASCAST", "requires --autoencoder and --student: run directories"),
        ("casformer CF OUT CASCAST --autoencoder {folder}/autoencoder", "requires --student: run directories"),
        ("casformer CF OUT CASCAST --autoencoder {folder}/earthformer --student {folder}/autoencoder",
         "is a run of stage direct; a finished autoencoder is needed"),
        ("casformer CF OUT RUNS", "needs 12 forecast frames, but .*earthformer has 2"),
        ("casformer CF OUT CASCAST RUNS --dataset sevir", "was trained on synthetic .* this run reads sevir"),
        ("resnet EF OUT", "'resnet' is unknown; choose earthformer, simvp, autoencoder, casformer"),
    ],
)  # fmt: skip
def test_wrong_options_are_explained(folder, tmp_path, capsys, command, says):
    text = error_of(capsys, *words_of(command, folder, tmp_path / "out"))
    assert re.search(says, text, re.DOTALL), text
    assert not list(tmp_path.iterdir())


def change_weights(case: str, models: dict[str, Any]) -> None:
    weights = models["casformer"]
    key = "model.enc2hidden_linear.weight"
    changes: dict[str, Any] = {
        "integer": lambda: weights.update({key: weights[key].int()}),
        "complex": lambda: weights.update({key: weights[key].to(torch.complex64)}),
        "nan": lambda: weights[key].view(-1)[3:4].fill_(float("nan")),
        "overflow": lambda: weights.update({key: weights[key].double() * 1e300}),
        "shape": lambda: weights.update({key: weights[key].T.contiguous()}),
        "missing": lambda: weights.pop(key),
        "extra": lambda: weights.update({"model.extra.weight": torch.zeros(2)}),
        "number": lambda: weights.update({"model.extra": 3}),
        "object": lambda: weights.update({"model.extra": Path("a")}),
        "table": lambda: weights["model.pos_embed"].add_(0.1),
        "twice": lambda: models.update({"casformer_ema": {k: v + 0 for k, v in weights.items()}}),
        "half": lambda: weights.update({k: v.half() for k, v in weights.items()}),
    }
    changes[case]()


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("integer", r"best\.pth.*model\.enc2hidden_linear\.weight .* has dtype torch\.int32; weights must be"),
        ("complex", r"model\.enc2hidden_linear\.weight of the state dict has dtype torch\.complex64"),
        ("nan", r"model\.enc2hidden_linear\.weight of the state dict has values that are NaN or infinite"),
        ("overflow", r"model\.enc2hidden_linear\.weight of the state dict has values that are NaN or infinite in fp32"),
        ("shape", r"enc2hidden_linear\.weight: \[16, 32\] in the configuration, \[32, 16\] in the state dict"),
        ("missing", r"1 missing, first model\.enc2hidden_linear\.weight \[16, 32\]"),
        ("extra", r"1 unexpected, first model\.extra\.weight \[2\]"),
        ("number", r"'model\.extra' has type int; a state dict maps names to tensors"),
        ("object", r"contains other objects than tensors \(pathlib"),
        ("table", r"model\.pos_embed of the state dict differs"),
        ("twice", r"2 state dicts of this network; choose --key model\.casformer --prefix ''; or --key .*_ema"),
    ],
)  # fmt: skip
def test_changed_weights_are_explained(folder, tmp_path, capsys, case, says):
    content = torch.load(folder / C, weights_only=False)
    change_weights(case, content["model"])
    file = tmp_path / "checkpoint_best.pth"
    torch.save(content, file)
    words = words_of("CASCAST RUNS", folder, tmp_path)
    text = error_of(capsys, "casformer", file, tmp_path / "out", *words)
    assert re.search(says, text, re.DOTALL), text
    if case == "twice":
        words += ["--key", "model.casformer_ema"]
        assert simcast("convert", "casformer", file, tmp_path / "out", *words) == 0


def test_half_precision_weights_become_fp32(folder, tmp_path):
    content = torch.load(folder / C, weights_only=False)
    change_weights("half", content["model"])
    torch.save(content, tmp_path / "a.pth")
    words = words_of("CASCAST RUNS", folder, tmp_path)
    assert simcast("convert", "casformer", tmp_path / "a.pth", tmp_path / "out", *words) == 0
    assert {p.dtype for p in load_ensemble(tmp_path / "out").network.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("scheduler", "says"),
    [
        ({"beta_schedule": "sigmoid"}, r"beta_schedule='sigmoid' is not supported; choose linear"),
        ({"prediction_type": "flow"}, r"prediction_type='flow' is not supported; choose epsilon"),
        ({"thresholding": True}, r"thresholding=True is not supported; only False is"),
        ({"beta_stop": 0.1}, r"beta_stop=0\.1 is an unknown option"),
        ({"num_train_timesteps": "many"}, r"diffusion\.timesteps: .*got 'many'"),
        ({"timestep_spacing": "random"}, r"sampling\.spacing"),
    ],
)  # fmt: skip
def test_unsupported_noise_schedulers_are_explained(folder, tmp_path, capsys, scheduler, says):
    path = yaml_file(tmp_path / "a.yaml", CASFORMER, AUTOENCODER, **scheduler)
    words = words_of("RUNS", folder, tmp_path)
    text = error_of(capsys, "casformer", folder / C, tmp_path / "out", "--config", path, *words)
    assert re.search(says, text), text


def golden(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(shared(f"golden/cascast/{name}_small.safetensors"), framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, {key: json.loads(value) for key, value in file.metadata().items()}


def relative_error(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return ((got - want).abs().max() / want.abs().max()).item()


def test_converted_golden_weights_sample_like_cascast(tmp_path):
    """The runs of the golden weights give the golden latents, reconstruction and guided samples."""
    (frames, frames_meta), (latents, latents_meta) = golden("autoencoder"), golden("casformer")
    settings, size = latents_meta["sampler"], 8 * latents_meta["config"]["input_size"]
    count = latents_meta["config"]["split_num"]
    earthformer = {**EARTHFORMER, "input_shape": [3, size, size, 1], "target_shape": [count, size, size, 1]}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(earthformer), encoding="utf-8")
    config = yaml_file(tmp_path / "c.yaml", latents_meta["config"], frames_meta["config"])
    for name, content in (
        ("autoencoder", {"model": {"autoencoder_kl": frames}}),
        ("casformer", {"model": {"casformer": latents}}),
        ("earthformer", {"model": {"EarthFormer_xy": public_weights(earthformer)}}),
    ):
        torch.save(content, tmp_path / f"{name}.pth")
    out, state = {name: tmp_path / name for name in ("autoencoder", "earthformer", "casformer")}, ["--prefix", "state/"]
    words = ["--config", config, "--scale-factor", "1", *state]
    assert simcast("convert", "autoencoder", tmp_path / "autoencoder.pth", out["autoencoder"], *words) == 0
    words = ["--config", tmp_path / "e.yaml"]
    assert simcast("convert", "earthformer", tmp_path / "earthformer.pth", out["earthformer"], *words) == 0
    words = ["--config", config, "--autoencoder", out["autoencoder"], "--student", out["earthformer"], *state]
    assert simcast("convert", "casformer", tmp_path / "casformer.pth", out["casformer"], *words) == 0

    ensemble = load_ensemble(
        out["casformer"], change_sampling=lambda own: own.model_copy(update={"guidance": settings["guidance"]})
    )
    mean, log_variance = ensemble.autoencoder.moments(frames["input"].transpose(0, 1))
    assert relative_error(mean[0], frames["posterior_mean"]) < TOLERANCE
    assert relative_error(log_variance[0], frames["posterior_logvar"]) < TOLERANCE
    reconstruction = ensemble.autoencoder.decode(frames["latent"][None])[0][:, None]
    assert relative_error(reconstruction, frames["reconstruction"].clamp(0, 1)) < TOLERANCE
    rows = ensemble.noise_rows(torch.zeros(2, dtype=torch.int64), torch.arange(2))
    with torch.no_grad():
        sampled = ensemble._sample(rows, latents["sample/initial"], latents["condition"], None)
    assert relative_error(sampled.latents, latents["sample/final"]) < TOLERANCE_AFTER_20_STEPS


@pytest.mark.slow  # 1.9 GB of files
def test_files_of_the_published_size_are_converted_without_configuration(tmp_path):
    """The key lists are those of the published networks; no configuration is given, as in the guide.

    Forecasts of 384 x 384 pixels take too long on a CPU: the denoiser and the decoder run on a part of the grid.
    """
    listed = json.loads(shared("golden/cascast/sevir_state_dicts.json").read_text())
    shapes = {name: {key: tuple(shape) for key, shape in one["state_dict"].items()} for name, one in listed.items()}
    released = json.loads(shared("golden/earthformer/sevir_v1_state_dict.json").read_text())["state_dict"]
    shapes["earthformer"] = {key: tuple(shape) for key, (shape, _) in released.items()}
    files = write_files(tmp_path, shapes)
    out = {name: tmp_path / "runs" / name for name in files}
    for name in ("autoencoder", "earthformer"):
        assert simcast("convert", name, files[name], out[name]) == 0
    words = ["--autoencoder", out["autoencoder"], "--student", out["earthformer"]]
    assert simcast("convert", "casformer", files["casformer"], out["casformer"], *words) == 0

    sampling = {"steps": 1, "guidance": 1.0}
    ensemble = load_ensemble(out["casformer"], change_sampling=lambda own: own.model_copy(update=sampling))
    assert ensemble.autoencoder.scale == 0.6786020398139954
    assert (ensemble.config.data.dataset, ensemble.student.config.model.title) == ("sevir", "Earthformer")
    assert sum(parameter.numel() for parameter in ensemble.network.parameters()) == 309_246_016
    rows = ensemble.noise_rows(torch.zeros(1, dtype=torch.int64), torch.arange(1))
    start = rows.initial((12, 4, 4, 4))
    with torch.no_grad():
        sampled = ensemble._sample(rows, start, torch.zeros_like(start), None)
    members = ensemble.autoencoder.decode(sampled.latents)
    assert members.shape == (1, 12, 32, 32) and torch.isfinite(members).all()
