"""Convert published weights into a finished run directory that can be evaluated and forecast with."""

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from simcast_hpc.config import ConfigError, TrainConfig, from_mapping, to_yaml
from simcast_hpc.config.names import file_stem
from simcast_hpc.models.published_weights import ForecasterSpec, forecaster_spec, load_public
from simcast_hpc.storage.atomic_files import atomic_directory, sweep, write_json, write_tensors, write_text
from simcast_hpc.storage.directory_lock import hold_directory
from simcast_hpc.storage.run_directory import RunDirectory, file_hash

from .torch_file import OtherObjectsError, StoredTensor, TorchFile


def convert_weights(
    architecture: str, file: Path, out: Path, *, config: Mapping[str, Any], dataset: str, prefix: str = ""
) -> TrainConfig:
    """Write published weights and their configuration as a finished run, and return the configuration.

    The run directory ``out`` is written atomically; :func:`.load_trained` reads it.

    Args:
        architecture: ``earthformer`` or ``simvp``.
        file: ``.safetensors``, or a file of ``torch.save`` (PyTorch >= 1.6): a state dict, or a checkpoint with a state
            dict under the key ``state_dict``.
        out: a directory that does not exist.
        config: the public project's configuration of these weights.
        dataset: name of the built-in description of the data that the model forecasts, or path of a description.
        prefix: prefix to strip from the keys of the state dict; keys without it are skipped.

    Raises:
        ConfigError: the file is not a readable state dict, the weights do not fit ``config``, or ``out`` exists.
        OSError: ``out`` cannot be written; no partial directory remains.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; give a directory that does not exist, or remove this one")
    state = read_state_dict(file, prefix=prefix)
    try:
        spec = forecaster_spec(architecture, config)
        model = load_public(architecture, config, state)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{file}: {error}") from error
    run_config = _run_config(spec, out, dataset=dataset)
    with hold_directory(out.parent, "a conversion", field="OUT", name=out.name):
        sweep(out.parent, out.name)
        with atomic_directory(out) as partial:
            _write(RunDirectory(partial), model.state_dict(), run_config)
            origin = {
                "architecture": architecture,
                "file": file.name,
                "sha256": file_hash(file),
                "config": dict(config),
            }
            write_json(partial / "published.json", origin)
    return run_config


def read_state_dict(file: Path, *, prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors of a file by key, without executing code from the file.

    Raises:
        ConfigError: the file is damaged or contains other objects than tensors, or no key begins with ``prefix``.
        OSError: the file cannot be opened.
    """
    try:
        with file.open("rb"):
            pass
        content = load_file(file) if file.suffix == ".safetensors" else _torch_file(file)
    except (OSError, ConfigError):
        raise
    except OtherObjectsError as error:
        raise ConfigError(
            f"{file} contains other objects than tensors ({error}), which could run code and are not loaded; ask for "
            "the weights as safetensors or as a plain state dict"
        ) from error
    except Exception as error:  # a damaged file fails anywhere in zipfile, torch or safetensors
        text = str(error).split("\n")[0]
        raise ConfigError(
            f"{file} is damaged or not a file of weights ({type(error).__name__}: {text[:200]})"
        ) from error
    state = {key.removeprefix(prefix): value for key, value in content.items() if key.startswith(prefix)}
    if not state:
        raise ConfigError(f"{file}: no key begins with {prefix!r}; the first key is {next(iter(content), None)!r}")
    return state


def _torch_file(file: Path) -> dict[str, Tensor]:
    """Return the state dict of a file of ``torch.save``; other parts of a checkpoint are not loaded."""
    with closing(TorchFile(file)) as stored:
        content = stored.content
        if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
            content = content["state_dict"]
        if not isinstance(content, Mapping):
            raise ConfigError(f"{file} contains an object of type {type(content).__name__} instead of a state dict")
        for key, value in content.items():
            if not (isinstance(key, str) and isinstance(value, StoredTensor)):
                raise ConfigError(
                    f"{file}: {key!r} has type {type(value).__name__}; a state dict maps names to tensors"
                )
        return {key: stored.load(value) for key, value in content.items()}


def _run_config(spec: ForecasterSpec, out: Path, *, dataset: str) -> TrainConfig:
    if spec.channels != 1:
        raise ConfigError(f"the weights are for {spec.channels} channels; only models of 1 channel can be converted")
    frames = {"frames_in": spec.frames_in, "frames_out": spec.frames_out, "teacher_frames_out": spec.frames_out}
    return from_mapping(
        TrainConfig,
        {
            "name": file_stem(out.name),
            "run_dir": str(out),
            "stage": "direct",
            "data": {"dataset": dataset},
            "sequence": frames,
            "model": json.loads(spec.model.model_dump_json()),
        },
        where=f"the configuration of {out.name}",
    )


def _write(run: RunDirectory, state: Mapping[str, Tensor], config: TrainConfig) -> None:
    run.weights.parent.mkdir(parents=True)
    write_tensors(run.weights, state)
    write_text(run.config, to_yaml(config))
    run.finish(config.science(), steps=None, weights=file_hash(run.weights))
