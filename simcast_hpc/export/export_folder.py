"""The exported folder, whole by one rename: programs, weights, configuration, and a card that says what they are."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from simcast_hpc.config import FORECASTING, ConfigError, SimcastError, to_yaml
from simcast_hpc.data.open_windows import frame_grid
from simcast_hpc.inference.ensemble import TrainedAutoencoder, load_autoencoder
from simcast_hpc.inference.load import TrainedModel, config_of_run, load_trained
from simcast_hpc.models import grid_of
from simcast_hpc.storage.atomic_files import atomic_directory, sweep, write_json, write_text
from simcast_hpc.storage.run_directory import RunDirectory, file_hash, versions

from .model_card import Facts, find_scores, write_card
from .onnx_export import OnnxError, require_onnx, write_onnx
from .programs import TOLERANCE, Program, programs_of_autoencoder, programs_of_model
from .torch_export import capture, largest_difference, save_program

_CARD, _FACTS, _CONFIG, _WEIGHTS = "README.md", "export.json", "config.yaml", "model.safetensors"


class ExportError(SimcastError, RuntimeError):
    """What was exported does not give the network's own numbers; nothing is left of it."""


@dataclass(frozen=True)
class Exported:
    """What stands in the folder: the difference of each program from the network, and what ONNX did not carry."""

    differences: dict[str, float]
    not_carried: list[str]


def export_run(
    run_dir: Path,
    out: Path,
    *,
    grid: tuple[int, int] | None = None,
    scores: Sequence[str] = (),
    onnx: bool = False,
) -> Exported:
    """Export a finished run into ``out``.

    Args:
        run_dir: a finished run of a forecasting stage or of the stage ``autoencoder``; or converted weights.
        out: a folder that does not exist yet.
        grid: pixels (H, W) of the frames; by default the model's own, else those of its data's description.
        scores: files of ``simcast evaluate`` for the card, each ``FILE`` or ``ROW=FILE``.
        onnx: write ONNX besides, where it carries the program.

    Raises:
        ConfigError: there is nothing of the kind in ``run_dir``, it cannot be exported, or ``out`` is there.
        ExportError: a program gives other numbers than the network.
        OSError: ``out`` cannot be written; nothing is left of it.
    """
    if out.exists():
        raise ConfigError(f"{out} is there already; name a folder that is not, or remove it")
    if onnx:
        require_onnx()
    trained = _load(run_dir)
    rows = find_scores(run_dir, scores, weights_hash=trained.weights_hash)
    config = trained.config
    chosen = grid or (grid_of(config.model) if config.stage in FORECASTING else None) or frame_grid(config.data)
    programs = (
        programs_of_model(trained, chosen)
        if isinstance(trained, TrainedModel)
        else programs_of_autoencoder(trained, chosen)
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    sweep(out.parent, out.name)
    with atomic_directory(out) as partial:
        exported = Exported({}, [])
        files = {name: words for one in programs for name, words in _write_program(one, partial, exported, onnx=onnx)}
        _write_beside(partial, run_dir, trained, files, exported)
        facts = _facts(run_dir, trained, files, exported)
        write_text(partial / _CARD, write_card(config, facts, rows))
    return exported


def _load(run_dir: Path) -> TrainedModel | TrainedAutoencoder:
    path = RunDirectory(run_dir).config
    if path.is_file():
        config = config_of_run(run_dir)
        if config.stage == "autoencoder":
            return load_autoencoder(run_dir)
        if config.stage == "diffusion":
            chosen = config.diffusion
            raise ConfigError(
                f"{run_dir} holds the stage diffusion, which is no one program: its sampler is a loop around the "
                f"network, with noise from counters. Its parts are exported one by one (simcast export "
                f"{chosen.student} and {chosen.autoencoder}); for ensembles use simcast sample or simcast predict"
            )
    return load_trained(run_dir)


def _write_program(program: Program, folder: Path, exported: Exported, *, onnx: bool) -> list[tuple[str, str]]:
    """Write one program and compare what is read back with the network; return its files and what they are."""
    module, inputs = program.module.eval(), program.inputs()
    captured = capture(module, inputs[-1])
    path = folder / f"{program.name}.pt2"
    try:
        save_program(captured, path)
    except RuntimeError as error:  # what torch's writer makes of a full disk
        raise ExportError(f"{path} cannot be written: {str(error).splitlines()[0]}") from error
    found = largest_difference(torch.export.load(path).module(), module, inputs)
    if not found <= TOLERANCE:  # NaN too
        raise ExportError(f"{path.name} differs from the network by {found:.1e}; at most {TOLERANCE:g} is allowed")
    exported.differences[path.name] = found
    words = f"{program.takes}. Out: {program.gives}"
    files = [(path.name, f"`torch.export` program. In: {words}")]
    if onnx:
        other = folder / f"{program.name}.onnx"
        try:
            exported.differences[other.name] = write_onnx(captured, module, inputs, other)
            files.append((other.name, "the same as ONNX"))
        except OnnxError as error:
            exported.not_carried.append(str(error))
    return files


def _write_beside(
    folder: Path, run_dir: Path, trained: TrainedModel | TrainedAutoencoder, files: dict[str, str], exported: Exported
) -> None:
    shutil.copyfile(RunDirectory(run_dir).weights, folder / _WEIGHTS)
    write_text(folder / _CONFIG, to_yaml(trained.config))
    told = {
        "weights_sha256": trained.weights_hash,
        "files": {name: file_hash(folder / name) for name in [*files, _WEIGHTS, _CONFIG]},
        "programs": files,
        "largest_difference": exported.differences,
        "not_carried_by_onnx": exported.not_carried,
        "versions": versions(),
    }
    if isinstance(trained, TrainedAutoencoder):
        told["scale_factor"] = trained.scale
    write_json(folder / _FACTS, told)


def _facts(
    run_dir: Path, trained: TrainedModel | TrainedAutoencoder, files: dict[str, str], exported: Exported
) -> Facts:
    marker = RunDirectory(run_dir).marker() or {"inputs": {}}
    more = {}
    if isinstance(trained, TrainedAutoencoder):
        more["scale_factor"] = f"{trained.scale:.9g}, one over the deviation of the training split's latents"
    beside = {
        _WEIGHTS: "the weights, fp32 by name (safetensors)",
        _CONFIG: "the run's resolved configuration",
        _FACTS: "hashes of these files, differences, versions",
    }
    return Facts(
        title="Autoencoder" if isinstance(trained, TrainedAutoencoder) else trained.config.model.title,
        parameters=sum(one.numel() for one in trained.network.parameters()),
        weights_hash=trained.weights_hash,
        steps=marker.get("steps"),
        versions=versions(),
        trained_by=_trained_by(RunDirectory(run_dir).versions),
        inputs=marker["inputs"],
        files=files | beside,
        checks={name: f"{value:.1e}" for name, value in exported.differences.items()},
        more=more,
    )


def _trained_by(path: Path) -> dict[str, str]:
    """Return the versions that a run kept; none of converted weights, or where they cannot be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
