"""Write an exported folder atomically: programs, weights, configuration and model card."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from simcast_hpc.config import FORECASTING, ConfigError, SimcastError, to_yaml
from simcast_hpc.config.text_files import read_json_file
from simcast_hpc.data.dataset_spec import DATASET_FILE
from simcast_hpc.data.open_windows import sample_grid
from simcast_hpc.inference.trained_ensemble import TrainedAutoencoder, load_autoencoder
from simcast_hpc.inference.trained_model import TrainedModel, config_of_run, load_network
from simcast_hpc.models import grid_of
from simcast_hpc.storage.atomic_files import atomic_directory, sweep, write_json, write_text
from simcast_hpc.storage.directory_lock import hold_directory
from simcast_hpc.storage.run_directory import RunDirectory, file_hash, versions

from .exported_modules import TOLERANCE, Program, programs_of_autoencoder, programs_of_model
from .model_card import CardFacts, find_scores, write_card
from .onnx_export import OnnxError, require_onnx, write_onnx
from .torch_export import capture, largest_difference, save_program

_CARD, _FACTS, _CONFIG, _WEIGHTS = "README.md", "export.json", "config.yaml", "model.safetensors"
_SUMS = "SHA256SUMS"  # in the format of sha256sum


class ExportError(SimcastError, RuntimeError):
    """An exported program differs from the network by more than the tolerance, or cannot be written."""


@dataclass(frozen=True)
class ExportResult:
    """Result of an export: max. relative difference of each program from the network, and failed ONNX conversions."""

    differences: dict[str, float]
    onnx_failures: list[str]


def export_run(
    run_dir: Path,
    out: Path,
    *,
    grid: tuple[int, int] | None = None,
    scores: Sequence[str] = (),
    onnx: bool = False,
) -> ExportResult:
    """Export a finished run into ``out``.

    Args:
        run_dir: a finished run of a forecasting stage or of the stage ``autoencoder``; or converted weights.
        out: a folder that does not exist.
        grid: (H, W) of the frames; by default that of the model, else of its data set.
        scores: score files of ``simcast evaluate`` for the model card, each ``FILE`` or ``ROW=FILE``.
        onnx: also write ONNX where its exporter supports the program.

    Raises:
        ConfigError: ``run_dir`` has no run that can be exported, ``out`` exists, or another process writes it.
        ExportError: a program gives other numbers than the network.
        OSError: ``out`` cannot be written; nothing is left behind.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; give a folder that does not exist, or remove it")
    if onnx:
        require_onnx()
    trained = _load(run_dir)
    rows = find_scores(run_dir, scores, weights_hash=trained.weights_hash)
    config = trained.config
    frame_size = grid or (grid_of(config.model) if config.stage in FORECASTING else None) or sample_grid(config.data)
    programs = (
        programs_of_model(trained, frame_size)
        if isinstance(trained, TrainedModel)
        else programs_of_autoencoder(trained, frame_size)
    )
    files: dict[str, str] = {}
    with hold_directory(out.parent, "an export", field="OUT", name=out.name):
        sweep(out.parent, out.name)
        with atomic_directory(out) as partial:
            exported = ExportResult({}, [])
            for program in programs:
                files |= dict(_write_program(program, partial, exported, onnx=onnx))
            _write_metadata(partial, run_dir, trained, files, exported)
            facts = _facts(run_dir, trained, files, exported)
            write_text(partial / _CARD, write_card(config, facts, rows))
            written = sorted(path.name for path in partial.iterdir())
            write_text(partial / _SUMS, "".join(f"{file_hash(partial / name)}  {name}\n" for name in written))
    return exported


def _load(run_dir: Path) -> TrainedModel | TrainedAutoencoder:
    path = RunDirectory(run_dir).config
    if path.is_file():
        config = config_of_run(run_dir)
        if config.stage == "autoencoder":
            return load_autoencoder(run_dir)
        if config.stage == "diffusion":
            section = config.diffusion
            raise ConfigError(
                f"{run_dir} is a run of stage diffusion, which is not a single program: its sampler is a loop "
                f"around the network. Export its parts separately (simcast export "
                f"{section.student} and {section.autoencoder}); for ensembles use simcast sample or simcast predict"
            )
    return load_network(run_dir)


def _write_program(program: Program, folder: Path, exported: ExportResult, *, onnx: bool) -> list[tuple[str, str]]:
    """Write one program and compare the file with the network; return its files and their descriptions."""
    module, inputs = program.module.eval(), program.inputs()
    captured = capture(module, inputs[-1])
    path = folder / f"{program.name}.pt2"
    try:
        save_program(captured, path)
    except RuntimeError as error:  # torch's error for a full disk
        raise ExportError(f"{path} cannot be written: {str(error).splitlines()[0]}") from error
    # Loading a program runs the code in it; this one was written two lines above, into a folder of this process.
    difference = largest_difference(torch.export.load(path).module(), module, inputs)
    if not difference <= TOLERANCE:  # also rejects NaN
        raise ExportError(f"{path.name} differs from the network by {difference:.1e}; at most {TOLERANCE:g} is allowed")
    exported.differences[path.name] = difference
    text = f"{program.input_text}. Out: {program.output_text}"
    files = [(path.name, f"`torch.export` program. In: {text}")]
    if onnx:
        other = folder / f"{program.name}.onnx"
        try:
            exported.differences[other.name] = write_onnx(captured, module, inputs, other)
            files.append((other.name, "the same program as ONNX"))
        except OnnxError as error:
            exported.onnx_failures.append(str(error))
    return files


def _write_metadata(
    folder: Path,
    run_dir: Path,
    trained: TrainedModel | TrainedAutoencoder,
    files: dict[str, str],
    exported: ExportResult,
) -> None:
    shutil.copyfile(RunDirectory(run_dir).weights, folder / _WEIGHTS)
    config = trained.config
    if (dataset := RunDirectory(run_dir).dataset).is_file():
        shutil.copyfile(dataset, folder / DATASET_FILE)
        config = config.model_copy(update={"data": config.data.model_copy(update={"dataset": DATASET_FILE})})
    write_text(folder / _CONFIG, to_yaml(config))
    metadata = {
        "weights_sha256": trained.weights_hash,
        "files": {name: file_hash(folder / name) for name in [*files, _WEIGHTS, _CONFIG]},
        "programs": files,
        "largest_difference": exported.differences,
        "onnx_failures": exported.onnx_failures,
        "versions": versions(),
    }
    if isinstance(trained, TrainedAutoencoder):
        metadata["scale_factor"] = trained.scale
    write_json(folder / _FACTS, metadata)


def _facts(
    run_dir: Path, trained: TrainedModel | TrainedAutoencoder, files: dict[str, str], exported: ExportResult
) -> CardFacts:
    marker = RunDirectory(run_dir).marker() or {"inputs": {}}
    more = {}
    if isinstance(trained, TrainedAutoencoder):
        more["scale_factor"] = f"{trained.scale:.9g}, 1 / standard deviation of the training split's latents"
    metadata = {
        _WEIGHTS: "weights, fp32 by name (safetensors)",
        _CONFIG: "resolved configuration of the run",
        _FACTS: "hashes of these files, differences, versions",
        _SUMS: "SHA-256 of all files: `sha256sum --check SHA256SUMS`",
    }
    return CardFacts(
        title="Autoencoder" if isinstance(trained, TrainedAutoencoder) else trained.config.model.title,
        parameters=sum(tensor.numel() for tensor in trained.network.parameters()),
        weights_hash=trained.weights_hash,
        steps=marker.get("steps"),
        validation=marker.get("validation") or {},
        versions=versions(),
        trained_by=_trained_by(RunDirectory(run_dir).versions),
        inputs=marker["inputs"],
        files=files | metadata,
        checks={name: f"{value:.1e}" for name, value in exported.differences.items()},
        more=more,
    )


def _trained_by(path: Path) -> dict[str, str]:
    """Return the versions stored in a run; empty for converted weights or an unreadable file."""
    try:
        stored = read_json_file(path, error=ConfigError, what="the versions")
    except ConfigError:
        return {}
    return {name: str(version) for name, version in stored.items()} if isinstance(stored, dict) else {}
