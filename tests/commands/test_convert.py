"""``simcast convert``: published files become a run directory that evaluation reads, or no output at all."""

import errno
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from simcast_hpc import cli
from simcast_hpc.inference import convert_weights as conversion
from simcast_hpc.inference.trained_model import load_trained
from simcast_hpc.models.published_weights import load_public, public_keys
from tests.archives import make_archive, random_codes
from tests.models.public_earthformer import PUBLIC, public_weights

SQUARE = {**PUBLIC, "input_shape": [3, 16, 16, 1], "target_shape": [2, 16, 16, 1]}
SIMVP = {"in_shape": [3, 1, 16, 16], "hid_S": 8, "hid_T": 16, "N_S": 2, "N_T": 2, "model_type": "IncepU"}


def simcast(*arguments: object) -> int:
    """Run the program in this process and return its status."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr("sys.argv", ["simcast", *map(str, arguments)])
        cli.main()
    return ended.value.code if isinstance(ended.value.code, int) else 0


def write_yaml(path: Path, data: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


@pytest.fixture
def config(tmp_path) -> Path:
    return write_yaml(tmp_path / "public.yaml", {"optim": {"lr": 1e-3}, "model": SQUARE})


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "earthformer.pt"
    torch.save(public_weights(SQUARE), path)
    return path


def test_converted_weights_forecast_like_the_public_ones(tmp_path, config, file, capsys):
    out = tmp_path / "out"
    assert simcast("convert", "earthformer", file, out, "--config", config, "--dataset", "synthetic") == 0
    assert "Earthformer, 3 -> 2 frames" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["DONE.json", "config.yaml", "published.json", "weights"]
    assert json.loads((out / "published.json").read_text(encoding="utf-8"))["file"] == "earthformer.pt"
    codes = torch.from_numpy(random_codes(1, 3))
    public = load_public("earthformer", SQUARE, public_weights(SQUARE)).eval()
    with torch.no_grad():
        frames = public(codes[:, :, None].float() / 255)[:, :, 0]
    forecast = load_trained(out).forecast(codes, frames_out=2)
    torch.testing.assert_close(forecast, frames.clamp(0, 1), rtol=0, atol=1e-6)


def test_converted_weights_are_evaluated(tmp_path, config, file, capsys):
    root = make_archive(tmp_path / "archive", random_codes(2, 7))
    simcast("convert", "earthformer", file, tmp_path / "out", "--config", config, "--dataset", "synthetic")
    scores = tmp_path / "scores"
    assert simcast("evaluate", tmp_path / "out", "--root", root, "--split", "train", "--out", scores) == 0
    (_, entry) = json.loads((scores / "train.json").read_text(encoding="utf-8"))["entries"]
    assert (entry["note"], entry["steps"]) == ("published weights, one pass; Earthformer", None)


@pytest.mark.parametrize("kind", ["safetensors", "checkpoint"])
def test_converts_safetensors_and_training_checkpoints(tmp_path, kind):
    generator = torch.Generator().manual_seed(5)
    shapes = public_keys("simvp", SIMVP)
    weights = {f"model.{key}": torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    path = tmp_path / f"simvp.{'safetensors' if kind == 'safetensors' else 'ckpt'}"
    if kind == "safetensors":
        save_file({**weights, "loss.weight": torch.zeros(1)}, path)
    else:
        torch.save({"epoch": 3, "state_dict": weights}, path)
    config = write_yaml(tmp_path / "public.yaml", SIMVP)
    words = ["--config", config, "--dataset", "synthetic", "--prefix", "model."]
    assert simcast("convert", "simvp", path, tmp_path / "out", *words) == 0
    trained = load_trained(tmp_path / "out")
    assert torch.equal(trained.network.get_parameter("head.weight"), weights["model.dec.readout.weight"])


class Dangerous:
    """An object whose unpickling creates a folder."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return (Path.mkdir, (self.place,))


def break_weights(case: str, file: Path) -> None:
    weights = public_weights(SQUARE)
    if case == "misfit":
        weights["init_global_vectors"] = torch.zeros(4, 16)
        weights["spare.weight"] = weights.pop("dec_final_proj.weight")
        torch.save(weights, file)
    elif case == "prefix":
        torch.save({f"net.{key}": tensor for key, tensor in weights.items() if "dec_final" not in key}, file)
    elif case == "integers":
        torch.save({**weights, "dec_final_proj.weight": torch.zeros(1, 4, dtype=torch.int8)}, file)
    elif case == "objects":
        torch.save({"weights": Dangerous(file.parent / "made")}, file)
    elif case == "pickle":
        with file.open("wb") as stream:
            pickle.dump({"weights": Dangerous(file.parent / "made")}, stream, protocol=2)
    elif case == "list":
        torch.save([1, 2], file)
    elif case == "number":
        torch.save({"epoch": 3}, file)
    elif case == "cut":
        file.write_bytes(file.read_bytes()[:2000])
    elif case == "absent":
        file.unlink()


@pytest.mark.parametrize(
    ("case", "says"),
    [
        (
            "misfit",
            r"1 missing, first dec_final_proj\.weight \[1, 4\].*1 unexpected, first spare\.weight \[1, 4\].*"
            r"first init_global_vectors: \[2, 16\] in the configuration, \[4, 16\] in the state dict.*"
            r"num_global_vectors=2 in the configuration but 4 in the state dict",
        ),
        ("prefix", r"read with --key '' --prefix net\.\).*2 missing, first dec_final_proj\.weight"),
        ("integers", r"dec_final_proj\.weight of the state dict has dtype torch\.int8; weights must"),
        (
            "objects",
            r"earthformer\.pt contains other objects than tensors \(\w+\.getattr\)",
        ),
        ("pickle", r"earthformer\.pt is damaged.*not a zip file as torch\.save has written since PyTorch 1\.6"),
        ("list", r"contains an object of type list instead of a state dict"),
        ("number", r"contains no mapping of names to tensors; its first entry 'epoch' has type int"),
        ("cut", r"earthformer\.pt is damaged or"),
        ("absent", r"No such file.*earthformer\.pt"),
    ],
)
def test_invalid_file_is_one_message_and_leaves_no_output(tmp_path, config, file, capsys, case, says):
    break_weights(case, file)
    status = simcast("convert", "earthformer", file, tmp_path / "out", "--config", config)
    error = capsys.readouterr().err
    assert status == (1 if case == "absent" else 2)
    assert re.search(says, error, re.DOTALL), error
    assert "Traceback" not in error and "weights_only" not in error
    assert not list(tmp_path.glob("out*")) and not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["resnet", "{file}", "{out}"], r"architecture 'resnet' is unknown; choose earthformer, simvp"),
        (["earthformer", "{file}", "{file}"], r"earthformer\.pt exists; give a directory that does not exist"),
        (["earthformer", "{file}", "{out}", "--dataset", "sevri"], r"data\.dataset='sevri'|sevri"),
        (
            ["earthformer", "{file}", "{out}", "--prefix", "x."],
            r"no key begins with 'x\.'; the first key is 'init_global",
        ),
        (["earthformer", "{file}", "{out}", "--config", "{file}"], r"earthformer\.pt is not UTF-8 text"),
        (["earthformer", "{file}", "{out}"], r"input_shape T=13 in the configuration but 3 in the state dict"),
    ],
)
def test_invalid_arguments_are_rejected(tmp_path, file, capsys, words, says):
    places = {"file": file, "out": tmp_path / "out"}
    assert simcast("convert", *(word.format(**places) for word in words)) == 2
    assert re.search(says, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_full_disk_leaves_no_output_and_partial_output_is_removed(tmp_path, config, file, capsys, monkeypatch):
    left = tmp_path / ".out.node7-4711-0.partial" / "weights"
    left.mkdir(parents=True)
    words = ["convert", "earthformer", file, tmp_path / "out", "--config", config]

    def full(*_arguments, **_named):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "write_tensors", full)
        assert simcast(*words) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]
    left.mkdir(parents=True)
    assert simcast(*words) == 0
    assert not list(tmp_path.glob(".*.partial"))
