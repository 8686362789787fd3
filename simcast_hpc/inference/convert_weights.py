"""Convert published weights into a finished run directory that can be evaluated, sampled and forecast with."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from torch import nn

from simcast_hpc.config import ConfigError, TrainConfig, from_mapping, to_yaml
from simcast_hpc.config.names import file_stem
from simcast_hpc.data.open_windows import require_same_dataset
from simcast_hpc.models.published_weights import (
    ForecasterSpec,
    load_public,
    model_spec,
    public_keys,
    recognize,
    released_config,
    wrapper_of,
)
from simcast_hpc.models.published_weights.cascast_weights import AutoencoderSpec, CasFormerSpec
from simcast_hpc.models.published_weights.cascast_yaml import RELEASED_SCALE_FACTOR, DiffusionSettings
from simcast_hpc.storage.atomic_files import atomic_directory, sweep, write_json, write_tensors, write_text
from simcast_hpc.storage.directory_lock import hold_directory
from simcast_hpc.storage.run_directory import RunDirectory, file_hash

from .published_file import Match, PublishedFile, open_file
from .trained_ensemble import SCALE, load_autoencoder
from .trained_model import load_trained

_TRAINING_ONLY = ("workers", "augment", "crop", "sampling", "stage_to", "hold_out")


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What to convert, and how the network is used.

    Attributes:
        architecture: ``earthformer``, ``simvp``, ``autoencoder`` or ``casformer``.
        file: ``.safetensors``, or a file of ``torch.save`` (PyTorch >= 1.6), with a state dict, possibly within other
            mappings.
        config: the public project's configuration of the network.
        dataset: name of the built-in description of the data that the network was trained on, or path of a description;
            None for that of the student (casformer) or SEVIR (others).
        key: keys of the mapping that contains the state dict, joined by dots; None to search.
        prefix: prefix to strip from the keys of the state dict; keys without it are skipped. None to search.
        scale_factor: factor that scales the latents of an autoencoder to unit variance; None for that of CasCast's
            release for SEVIR.
        autoencoder: run directory of the autoencoder of a casformer.
        student: run directory of the model whose forecast is the condition of a casformer.
        diffusion: noise schedule and sampler of a casformer.
    """

    architecture: str
    file: Path
    config: Mapping[str, Any]
    dataset: str | None = None
    key: str | None = None
    prefix: str | None = None
    scale_factor: float | None = None
    autoencoder: Path | None = None
    student: Path | None = None
    diffusion: DiffusionSettings = field(default_factory=DiffusionSettings)


@dataclass(frozen=True)
class ConvertedRun:
    """The configuration of a written run, the metadata of its weights, and where its state dict was in the file."""

    config: TrainConfig
    metadata: Mapping[str, str]
    found: Match


@dataclass(frozen=True)
class _Run:
    """A run to write: its configuration, the metadata of its weights, and the hashes of the runs that it reads."""

    config: TrainConfig
    metadata: Mapping[str, str]
    inputs: Mapping[str, str]


def convert_weights(conversion: Conversion, out: Path) -> ConvertedRun:
    """Write published weights and their configuration as a finished run ``out``, a directory that does not exist.

    It is written atomically, and read like a run that was trained: a forecasting model as one of stage `direct`, an
    autoencoder as one of stage `autoencoder`, and a casformer as one of stage `diffusion`.

    Raises:
        ConfigError: the file contains no state dict that fits ``config``, the runs that the network needs are missing
            or do not fit it, or ``out`` exists.
        OSError: ``out`` cannot be written; no partial directory remains.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; give a directory that does not exist, or remove this one")
    try:
        spec = model_spec(conversion.architecture, conversion.config)
        # Checks the sizes together, on the meta device.
        keys = list(public_keys(conversion.architecture, conversion.config))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"the public configuration of {conversion.file.name} is invalid: {error}") from error
    run = _plan(conversion, spec, out)
    model, found = _load(conversion, keys)
    with hold_directory(out.parent, "a conversion", field="OUT", name=out.name):
        sweep(out.parent, out.name)
        with atomic_directory(out) as partial:
            _write(RunDirectory(partial), model, run)
            origin = {
                "architecture": conversion.architecture,
                "file": conversion.file.name,
                "sha256": file_hash(conversion.file),
                "key": found.mapping.key,
                "prefix": found.prefix,
                "config": dict(conversion.config),
            }
            write_json(partial / "published.json", origin)
    return ConvertedRun(run.config, run.metadata, found)


def _load(conversion: Conversion, keys: list[str]) -> tuple[nn.Module, Match]:
    """Return the network with the weights of the file, and where they were in it."""
    with open_file(conversion.file) as opened:
        found = _find(opened, conversion, keys)
        state = opened.load(found)
    try:
        return load_public(conversion.architecture, conversion.config, state), found
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{conversion.file} (read with {found.options}): {error}") from error


def _find(opened: PublishedFile, conversion: Conversion, keys: list[str]) -> Match:
    hint = _hint_of_another_model(opened, conversion.architecture)
    try:
        found = opened.select(
            keys, wrapper=wrapper_of(conversion.architecture), key=conversion.key, prefix=conversion.prefix
        )
    except ConfigError as error:
        raise ConfigError(f"{error}{hint}") from None
    if hint and found.count < len(keys):
        raise ConfigError(f"{opened.path} contains {found.count} of the {len(keys)} keys of this network{hint}")
    return found


def _hint_of_another_model(opened: PublishedFile, architecture: str) -> str:
    names = {name for mapping in opened.mappings if (name := recognize(mapping.tensors))}
    if not names or architecture in names:
        return ""
    commands = " or ".join(f"`simcast convert {name}`" for name in sorted(names))
    return f"; these are weights of {' and '.join(sorted(names))}: use {commands}"


def _plan(conversion: Conversion, spec: Any, out: Path) -> _Run:
    """Return the run of a network, after reading the runs that it needs."""
    if isinstance(spec, CasFormerSpec):
        _reject(conversion, "scale_factor", "only autoencoder has latents")
        return _ensemble(conversion, spec, out)
    for name in ("autoencoder", "student"):
        _reject(conversion, name, "only casformer reads other runs")
    if spec.channels != 1:
        raise ConfigError(f"the weights are for {spec.channels} channels; only models of 1 channel can be converted")
    data = {"dataset": conversion.dataset or "sevir"}
    if isinstance(spec, AutoencoderSpec):
        sections = {"stage": "autoencoder", "data": data, "autoencoder": {"model": _plain(spec.config)}}
        return _Run(_config(out, sections), {SCALE: repr(_scale_factor(conversion))}, {})
    assert isinstance(spec, ForecasterSpec)
    _reject(conversion, "scale_factor", "only autoencoder has latents")
    frames = {"frames_in": spec.frames_in, "frames_out": spec.frames_out, "teacher_frames_out": spec.frames_out}
    sections = {"stage": "direct", "data": data, "sequence": frames, "model": _plain(spec.model)}
    return _Run(_config(out, sections), {}, {})


def _reject(conversion: Conversion, name: str, reason: str) -> None:
    if (value := getattr(conversion, name)) is not None:
        option = f"--{name.replace('_', '-')}"
        raise ConfigError(f"{option} {value} has no effect on {conversion.architecture}: {reason}; remove it")


def _scale_factor(conversion: Conversion) -> float:
    scale = conversion.scale_factor
    if scale is None:
        same = model_spec("autoencoder", conversion.config) == model_spec("autoencoder", released_config("autoencoder"))
        if not same or conversion.dataset not in (None, "sevir"):
            raise ConfigError(
                "--scale-factor is required, because this is not the autoencoder of CasCast's release for SEVIR: give "
                "1 / standard deviation of its latents, which CasCast's training of the diffusion logs as `scale "
                "factor`; 1 for an autoencoder of PreDiff"
            )
        return RELEASED_SCALE_FACTOR
    if not 0 < scale < float("inf"):
        raise ConfigError(f"--scale-factor {scale:g} must be positive and finite")
    return scale


def _ensemble(conversion: Conversion, spec: CasFormerSpec, out: Path) -> _Run:
    """Return the run of a denoiser with its autoencoder and the model whose forecast is its condition."""
    if conversion.autoencoder is None or conversion.student is None:
        missing = [f"--{name}" for name in ("autoencoder", "student") if getattr(conversion, name) is None]
        raise ConfigError(
            f"casformer requires {' and '.join(missing)}: run directories of its autoencoder and of the model whose "
            "forecast it refines; convert both first (`simcast convert autoencoder`, `simcast convert earthformer`)"
        )
    # 1. Finished runs
    autoencoder, student = load_autoencoder(conversion.autoencoder), load_trained(conversion.student)
    latents, frames = autoencoder.config.autoencoder.model.latent_channels, student.config.frames_out
    for name, path, value, required in (
        ("latent channels", conversion.autoencoder, latents, spec.channels),
        ("forecast frames", conversion.student, frames, spec.frames),
    ):
        if value != required:
            raise ConfigError(f"casformer of {conversion.file.name} needs {required} {name}, but {path} has {value}")
    # 2. Data: those of the student
    data = student.config.data.model_dump(mode="json", exclude=set(_TRAINING_ONLY))
    if conversion.dataset is not None:
        data["dataset"] = conversion.dataset
    paths = {"autoencoder": str(conversion.autoencoder), "student": str(conversion.student)}
    sequence = student.config.sequence
    sections = {
        "stage": "diffusion",
        "data": data,
        "sequence": {
            "frames_in": sequence.frames_in,
            "frames_out": frames,
            "teacher_frames_out": min(sequence.teacher_frames_out, frames),
        },
        "diffusion": {**paths, "casformer": _plain(spec.config), **conversion.diffusion.diffusion},
        "sampling": dict(conversion.diffusion.sampling),
    }
    config = _config(out, sections)
    for path, other in ((conversion.autoencoder, autoencoder.config), (conversion.student, student.config)):
        require_same_dataset(config.data, other.data, f"the {other.stage} in {path}")
    return _Run(config, {}, {"autoencoder": autoencoder.weights_hash, "student": student.weights_hash})


def _config(out: Path, sections: Mapping[str, Any]) -> TrainConfig:
    own = {"name": file_stem(out.name), "run_dir": str(out)}
    return from_mapping(TrainConfig, own | dict(sections), where=f"the configuration of {out.name}")


def _plain(section: BaseModel) -> dict[str, Any]:
    return json.loads(section.model_dump_json())


def _write(directory: RunDirectory, model: nn.Module, run: _Run) -> None:
    directory.weights.parent.mkdir(parents=True)
    write_tensors(directory.weights, model.state_dict(), run.metadata or None)
    write_text(directory.config, to_yaml(run.config))
    directory.finish({**run.config.science(), **run.inputs}, steps=None, weights=file_hash(directory.weights))
