"""Published weights as a run folder: from a public project's file to what evaluation and forecasts begin from."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from simcast_hpc.config import ConfigError, TrainConfig, from_mapping, to_yaml
from simcast_hpc.models.published_weights import ForecasterSpec, forecaster_spec, load_public
from simcast_hpc.storage.atomic_files import atomic_directory, sweep, write_json, write_tensors, write_text
from simcast_hpc.storage.run_directory import RunDirectory, file_hash


def convert(
    architecture: str, file: Path, out: Path, *, config: Mapping[str, Any], dataset: str, prefix: str = ""
) -> TrainConfig:
    """Write published weights as our safetensors, with the configuration beside them; return the latter.

    ``out`` becomes a run folder that :func:`.load_trained` takes, whole by one rename.

    Args:
        architecture: ``earthformer`` or ``simvp``.
        file: ``.safetensors``, or what ``torch.load(weights_only=True)`` reads: a state dict, or one under
            ``state_dict`` in a trainer's checkpoint.
        out: a folder that does not exist yet.
        config: the public project's configuration of these weights.
        dataset: the data that they forecast: a built-in description, or the path of one.
        prefix: take the keys that begin so, without it; others are left out.

    Raises:
        ConfigError: the file holds no weights that can be read, they do not fit ``config``, or ``out`` is there.
        OSError: ``out`` cannot be written; nothing is left of it.
    """
    if out.exists():
        raise ConfigError(f"{out} is there already; name a folder that is not, or remove it")
    state = read_state_dict(file, prefix=prefix)
    try:
        form = forecaster_spec(architecture, config)
        model = load_public(architecture, config, state)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{file}: {error}") from error
    ours = _as_run(form, out, dataset=dataset)
    out.parent.mkdir(parents=True, exist_ok=True)
    sweep(out.parent, out.name)
    with atomic_directory(out) as partial:
        _write(RunDirectory(partial), model.state_dict(), ours)
        origin = {"architecture": architecture, "file": file.name, "sha256": file_hash(file), "config": dict(config)}
        write_json(partial / "published.json", origin)
    return ours


def read_state_dict(file: Path, *, prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors of a file by key, without executing anything that it holds.

    Raises:
        ConfigError: it is damaged, holds more than tensors, or no key begins with ``prefix``.
        OSError: it cannot be opened.
    """
    try:
        with file.open("rb"):
            pass
        held: Any = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ConfigError(f"{file} cannot be read as weights: {error}") from error
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{file} holds more than tensors, or is damaged, and is not opened: {str(error).splitlines()[0]} "
            "Save its state dict alone, by the project that made it"
        ) from error
    if isinstance(held, Mapping) and isinstance(held.get("state_dict"), Mapping):
        held = held["state_dict"]
    if not isinstance(held, Mapping):
        raise ConfigError(f"{file} holds a {type(held).__name__}; a state dict maps names to tensors")
    strange = [key for key, value in held.items() if not isinstance(value, Tensor)]
    if strange:
        what = type(held[strange[0]]).__name__
        raise ConfigError(f"{file}: {strange[0]!r} is a {what}; a state dict maps names to tensors alone")
    found = {key.removeprefix(prefix): value for key, value in held.items() if key.startswith(prefix)}
    if not found:
        raise ConfigError(f"{file}: no key begins with {prefix!r}; the first is {next(iter(held), None)!r}")
    return found


def _as_run(form: ForecasterSpec, out: Path, *, dataset: str) -> TrainConfig:
    if form.channels != 1:
        raise ConfigError(f"these weights take {form.channels} channels; forecasts here are of one")
    frames = {"frames_in": form.frames_in, "frames_out": form.frames_out, "teacher_frames_out": form.frames_out}
    return from_mapping(
        TrainConfig,
        {
            "name": out.name,
            "run_dir": str(out),
            "stage": "direct",
            "data": {"dataset": dataset},
            "sequence": frames,
            "model": json.loads(form.model.model_dump_json()),
        },
        where=f"the configuration of {out.name}",
    )


def _write(folder: RunDirectory, state: Mapping[str, Tensor], config: TrainConfig) -> None:
    folder.weights.parent.mkdir(parents=True)
    write_tensors(folder.weights, state)
    write_text(folder.config, to_yaml(config))
    folder.finish(config.science(), steps=None, weights=file_hash(folder.weights))
