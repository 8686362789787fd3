"""The model card: description of the weights, training data, scores and limitations.

Structure after Mitchell et al., Model cards for model reporting (2019).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simcast_hpc.config import ConfigError, TrainConfig, expand_path
from simcast_hpc.config.text_files import read_json_file
from simcast_hpc.data.data_license import share_alike_notice
from simcast_hpc.data.open_windows import source_spec, step_minutes, target_spec
from simcast_hpc.storage.run_directory import RunDirectory

_SHOWN = ("csi/mean", "csi_pool16/mean", "hss/mean", "frequency_bias/mean", "crps", "mae", "ssim")


@dataclass(frozen=True)
class Scores:
    """Scores of this model in one file of ``simcast evaluate``: the row ``entry`` of ``result``."""

    path: Path
    entry: str
    result: Mapping[str, Any]


@dataclass(frozen=True)
class CardFacts:
    """Contents of a card except the configuration; ``files`` maps names to descriptions, ``checks`` to differences."""

    title: str
    parameters: int
    weights_hash: str
    steps: int | None
    validation: Mapping[str, Any]
    versions: Mapping[str, str]
    trained_by: Mapping[str, str]
    inputs: Mapping[str, Any]
    files: Mapping[str, str]
    checks: Mapping[str, str]
    more: Mapping[str, str]


def find_scores(run_dir: Path, given: Sequence[str], *, weights_hash: str) -> list[Scores]:
    """Return the scores of a run: those given, else those of its pipeline if they belong to the same weights.

    Args:
        run_dir: the run.
        given: score files of ``simcast evaluate``, each ``FILE`` or ``ROW=FILE``; by default the row is the run's name.
        weights_hash: of the run's weights.

    Raises:
        ConfigError: a given file is not a score file, or has no such row.
    """
    name = run_dir.resolve().name
    if given:
        return [_read_scores(argument, name) for argument in given]
    pipeline = RunDirectory(run_dir.resolve().parent).marker() or {"inputs": {}}
    if pipeline["inputs"].get("stages", {}).get(name) != weights_hash:
        return []
    files = [_read_scores(str(path), name) for path in sorted((run_dir.resolve().parent / "scores").glob("*.json"))]
    return [scores for scores in files if name in scores.result["scores"]]


def write_card(config: TrainConfig, facts: CardFacts, scores: Sequence[Scores]) -> str:
    """Return the card as Markdown."""
    parts = [
        f"# {config.name}",
        f"{facts.title}, stage `{config.stage}` of SimCast-HPC: radar nowcasting, {_frames(config)}.",
        _files(facts),
        _use(config, facts),
        _data(config, facts),
        _training(config, facts),
        _scores(scores),
        _limits(config),
        _versions(facts),
    ]
    return "\n\n".join(parts) + "\n"


def _read_scores(argument: str, name: str) -> Scores:
    row, separator, file = argument.partition("=")
    path, entry = Path(expand_path(file if separator else argument)), row if separator else name
    try:
        result = read_json_file(path, error=ConfigError, what="the file")
        rows = list(result["scores"])
        if not all(isinstance(scores, dict) for scores in (*result["scores"].values(), *result["protocols"].values())):
            raise TypeError("its scores or protocols are not mappings")
    except (ConfigError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"--scores {path} is not a score file of `simcast evaluate` ({error!r}); give its <split>.json"
        ) from error
    if entry not in rows:
        raise ConfigError(f"--scores {path} has no row {entry!r}; it has {', '.join(rows)}: --scores ROW={path}")
    return Scores(path, entry, result)


def _frames(config: TrainConfig) -> str:
    minutes, sequence = step_minutes(config.data), config.sequence
    if config.stage == "autoencoder":
        return "an autoencoder of single frames"
    text = f"{sequence.frames_in} -> {sequence.frames_out} frames, one every {minutes:g} minutes"
    if config.stage == "teacher":
        text += f"; {config.frames_out} in one pass, rolled out beyond"
    if config.model.base != "none":
        text += f"; the output of the network is added to the base forecast ({config.model.base} of the input frames)"
    return text


def _files(facts: CardFacts) -> str:
    rows = [f"| `{name}` | {text} |" for name, text in facts.files.items()]
    return "\n".join(["| file | content |", "|---|---|", *rows])


def _use(config: TrainConfig, facts: CardFacts) -> str:
    spec = target_spec(config.data)
    first = next(name for name in facts.files if name.endswith(".pt2"))
    lines = [
        "## Use",
        "```python",
        "import torch",
        "",
        f'model = torch.export.load("{first}").module()',
        f"output = model({'codes, noise' if config.model.noise_channels else 'tensor'})"
        "   # inputs and outputs: see the table above",
        "```",
        "**Loading a `.pt2` file runs code that it contains.** Load it only from a source that you trust, after "
        "`sha256sum --check SHA256SUMS` with a copy of that file from its author. `model.safetensors` has no code.",
        "Only torch is needed. The batch size is free, the grid is fixed; the program was captured on a CPU.",
        f"Encoding of {spec.quantity}: `{spec.encoding.model_dump_json()}`.",
        *(f"{key}: {value}." for key, value in facts.more.items()),
        "Compared with the network at export, on batches of 1 and 3: "
        + ", ".join(f"`{name}` max. relative difference {value}" for name, value in facts.checks.items())
        + ".",
    ]
    return "\n".join(lines)


def _data(config: TrainConfig, facts: CardFacts) -> str:
    spec = source_spec(config.data)
    lines = [
        "## Data",
        f"- {spec.title} (`{spec.name}`), {spec.quantity}; one window every {config.data.window_stride} frames, "
        f"one frame every {step_minutes(config.data):g} minutes"
        + (f", {config.data.block_mean} x {config.data.block_mean} means" if config.data.block_mean > 1 else ""),
        f"- Source: {spec.source}",
        f"- License of the data: {spec.license}. Attribution: {spec.credit}. Cite: {spec.citation}",
    ]
    if notice := share_alike_notice(spec.license):
        lines.append(f"- {notice}")
    if "data fingerprint" in facts.inputs:
        lines.append(f"- Training split, fingerprint `{facts.inputs['data fingerprint']}`")
    return "\n".join(lines)


def _training(config: TrainConfig, facts: CardFacts) -> str:
    steps = "unknown (converted published weights)" if facts.steps is None else f"{facts.steps:,}"
    lines = [
        "## Training",
        f"- Optimizer steps: {steps}; global batch {config.batch.global_size}; seed {config.seed}; "
        f"{config.engine.precision}",
        f"- Parameters: {facts.parameters:,}; SHA-256 of the weights `{facts.weights_hash}`",
        "- Everything else: `config.yaml`",
    ]
    if facts.validation:
        lines.append(f"- {_selection(facts.validation)}")
    for part in ("teacher", "student", "autoencoder"):
        if part in facts.inputs:
            lines.append(f"- Trained with the {part} of weights `{facts.inputs[part]}`")
    if config.ema.decay is not None:
        lines.append(f"- The weights are an exponential moving average, decay {config.ema.decay:g}")
    return "\n".join(lines)


def _selection(validation: Mapping[str, Any]) -> str:
    """Return which step was exported, with the best validation score."""
    score, step, value = (validation.get(key) for key in ("score", "best_step", "best_value"))
    best = f"best validation score: `{score}` {'undefined' if value is None else f'{value:.6g}'} at step {step}"
    early = "; training ended early" if validation.get("stopped_early") else ""
    return f"The weights are those of step {validation.get('exported_step')}; {best}{early}"


def _scores(scores: Sequence[Scores]) -> str:
    if not scores:
        return "## Scores\nNone. Run `simcast evaluate RUN`, then `simcast export ... --scores FILE`."
    parts = ["## Scores"]
    for file in scores:
        result = file.result
        own = result["scores"][file.entry]
        keys = [key for key in _SHOWN if any(own[name].get(key) is not None for name in own)]
        parts.append(
            f"\n{result.get('title', file.path.stem)}, split `{result.get('split', '?')}`: "
            f"{result.get('windows', '?')} windows of {result.get('events', '?')} events; row `{file.entry}` of "
            f"`{file.path.name}`.\n"
        )
        parts += [f"| protocol | hash | {' | '.join(keys)} |", "|---|---|" + "---|" * len(keys)]
        for protocol, values in own.items():
            digest = result["protocols"][protocol]["hash"]
            low_high = result.get("intervals", {}).get(file.entry, {}).get(protocol, {})
            cells = " | ".join(_cell(values.get(key), low_high.get(key)) for key in keys)
            parts.append(f"| {protocol} | `{digest}` | {cells} |")
        over = ", ".join(result.get("supported_thresholds", []))
        parts.append(f"\nMeans are over the thresholds {over}; brackets are 95 % intervals over events.")
    return "\n".join(parts)


def _cell(value: float | None, bounds: Sequence[float | None] | None) -> str:
    if value is None:
        return "-"
    if not bounds or None in bounds:
        return f"{value:.4f}"
    return f"{value:.4f} [{bounds[0]:.4f}, {bounds[1]:.4f}]"


def _limits(config: TrainConfig) -> str:
    spec = source_spec(config.data)
    lines = [
        "## Limits",
        f"- Made for {spec.quantity} of {spec.title}. It has not been verified on another radar, encoding, grid "
        "spacing or cadence, and the exported program does not check them.",
        "- One training seed. The intervals do not include differences between seeds.",
    ]
    if spec.name == "synthetic":
        lines.append("- Trained on simulated storms: not for real weather.")
    if config.model.noise_channels and config.stage != "autoencoder":
        lines.append(
            "- An ensemble: each row of noise gives one member. Repeat the codes with independent standard normal "
            "noise; zero or scaled noise gives no valid member. The scores are those of an ensemble, not of one member."
        )
    elif config.stage != "autoencoder":
        lines.append(
            "- A deterministic forecast is overly smooth: it loses small and heavy cells with lead time. "
            "It is not a warning."
        )
    return "\n".join(lines)


def _versions(facts: CardFacts) -> str:
    def text(versions: Mapping[str, str]) -> str:
        return ", ".join(f"{name} {value}" for name, value in versions.items()) or "unknown"

    return "\n".join(
        [
            "## Versions",
            f"- Trained by: {text(facts.trained_by)}",
            f"- Exported by: {text(facts.versions)}",
            "",
            "The code is under the Apache License 2.0. The weights are subject to the license of the training data.",
        ]
    )
