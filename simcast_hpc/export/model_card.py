"""The model card: what the weights are, what they were made from, how they scored, and what they must not be used for.

Structure after Mitchell et al., Model cards for model reporting (2019).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simcast_hpc.config import ConfigError, TrainConfig
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.open_windows import step_minutes, target_spec
from simcast_hpc.storage.run_directory import RunDirectory

_SHOWN = ("csi/mean", "csi_pool16/mean", "hss/mean", "frequency_bias/mean", "crps", "mae", "ssim")


@dataclass(frozen=True)
class Scores:
    """What one file of ``simcast evaluate`` says of this model: the row ``entry`` of ``result``."""

    path: Path
    entry: str
    result: Mapping[str, Any]


@dataclass(frozen=True)
class Facts:
    """What a card says beside the configuration; ``files`` maps a name to its words, ``checks`` to its difference."""

    title: str
    parameters: int
    weights_hash: str
    steps: int | None
    versions: Mapping[str, str]
    trained_by: Mapping[str, str]
    inputs: Mapping[str, Any]
    files: Mapping[str, str]
    checks: Mapping[str, str]
    more: Mapping[str, str]


def find_scores(run_dir: Path, given: Sequence[str], *, weights_hash: str) -> list[Scores]:
    """Return the scores of a run: those named, else those of the pipeline that trained it, if they are of its weights.

    Args:
        run_dir: the run.
        given: files that ``simcast evaluate`` wrote, each ``FILE`` or ``ROW=FILE``; the row is else the run's name.
        weights_hash: of the run's weights.

    Raises:
        ConfigError: a file that is named cannot be read as scores, or has no such row.
    """
    name = run_dir.resolve().name
    if given:
        return [_named(word, name) for word in given]
    pipeline = RunDirectory(run_dir.resolve().parent).marker() or {"inputs": {}}
    if pipeline["inputs"].get("stages", {}).get(name) != weights_hash:
        return []
    found = [_named(str(path), name) for path in sorted((run_dir.resolve().parent / "scores").glob("*.json"))]
    return [one for one in found if name in one.result["scores"]]


def write_card(config: TrainConfig, facts: Facts, scores: Sequence[Scores]) -> str:
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


def _named(word: str, name: str) -> Scores:
    row, found, file = word.partition("=")
    path, entry = Path(file if found else word), row if found else name
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        rows = list(result["scores"])
        result["protocols"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"--scores {path} is no result of `simcast evaluate` ({error!r}); name its <split>.json"
        ) from error
    if entry not in rows:
        raise ConfigError(f"--scores {path} has no row {entry!r}; it has {', '.join(rows)}: --scores ROW={path}")
    return Scores(path, entry, result)


def _frames(config: TrainConfig) -> str:
    minutes, sequence = step_minutes(config.data), config.sequence
    if config.stage == "autoencoder":
        return "an autoencoder of single frames"
    reach = f"{sequence.frames_in} -> {sequence.frames_out} frames, one every {minutes:g} minutes"
    if config.stage == "teacher":
        reach += f"; {config.frames_out} at once, rolled out beyond"
    return reach


def _files(facts: Facts) -> str:
    rows = [f"| `{name}` | {words} |" for name, words in facts.files.items()]
    return "\n".join(["| file | what |", "|---|---|", *rows])


def _use(config: TrainConfig, facts: Facts) -> str:
    spec = target_spec(config.data)
    first = next(name for name in facts.files if name.endswith(".pt2"))
    lines = [
        "## Use",
        "```python",
        "import torch",
        "",
        f'model = torch.export.load("{first}").module()',
        "output = model(tensor)   # what goes in and comes out stands in the table above",
        "```",
        "torch alone is needed. The batch is free, the grid is fixed; the program was captured on a CPU.",
        f"A code c stands for {spec.quantity} by `{spec.encoding.model_dump_json()}`.",
        *(f"{key}: {value}." for key, value in facts.more.items()),
        "Compared at export with the network itself, on batches of 1 and 3: "
        + ", ".join(f"`{name}` differs by {value} at most" for name, value in facts.checks.items())
        + ".",
    ]
    return "\n".join(lines)


def _data(config: TrainConfig, facts: Facts) -> str:
    spec = read_spec(config.data.dataset)
    lines = [
        "## Data",
        f"- {spec.title} (`{spec.name}`), {spec.quantity}; every {config.data.window_stride} frames a window, frames "
        f"every {step_minutes(config.data):g} minutes"
        + (f", {config.data.block_mean} x {config.data.block_mean} means" if config.data.block_mean > 1 else ""),
        f"- Source: {spec.source}",
        f"- Licence of the data: {spec.license}. Cite: {spec.citation}",
    ]
    if "data fingerprint" in facts.inputs:
        lines.append(f"- Training split, fingerprint of its content `{facts.inputs['data fingerprint']}`")
    return "\n".join(lines)


def _training(config: TrainConfig, facts: Facts) -> str:
    steps = "unknown: published weights, converted" if facts.steps is None else f"{facts.steps:,}"
    lines = [
        "## Training",
        f"- Optimizer steps: {steps}; global batch {config.batch.global_size}; seed {config.seed}; "
        f"{config.engine.precision}",
        f"- Parameters: {facts.parameters:,}; SHA-256 of the weights `{facts.weights_hash}`",
        "- Everything else: `config.yaml`",
    ]
    for part in ("teacher", "student", "autoencoder"):
        if part in facts.inputs:
            lines.append(f"- Trained on the {part} of weights `{facts.inputs[part]}`")
    if config.ema.decay is not None:
        lines.append(f"- The weights are their exponential average, decay {config.ema.decay:g}")
    return "\n".join(lines)


def _scores(scores: Sequence[Scores]) -> str:
    if not scores:
        return (
            "## Scores\nNone were at hand at export. `simcast evaluate RUN`, then `simcast export ... --scores FILE`."
        )
    parts = ["## Scores"]
    for one in scores:
        result = one.result
        own = result["scores"][one.entry]
        keys = [key for key in _SHOWN if any(own[name].get(key) is not None for name in own)]
        parts.append(
            f"\n{result.get('title', one.path.stem)}, split `{result.get('split', '?')}`: {result.get('windows', '?')} "
            f"windows of {result.get('events', '?')} events; row `{one.entry}` of `{one.path.name}`.\n"
        )
        parts += [f"| protocol | hash | {' | '.join(keys)} |", "|---|---|" + "---|" * len(keys)]
        for protocol, found in own.items():
            digest = result["protocols"][protocol]["hash"]
            low_high = result.get("intervals", {}).get(one.entry, {}).get(protocol, {})
            cells = " | ".join(_cell(found.get(key), low_high.get(key)) for key in keys)
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
    spec = read_spec(config.data.dataset)
    lines = [
        "## Limits",
        f"- Made for {spec.quantity} of {spec.title}. On another radar, code, grid spacing or cadence it has not been "
        "verified, and nothing refuses it there once it has left this project.",
        "- One seed of training. Differences between seeds are not in the intervals above.",
    ]
    if spec.name == "synthetic":
        lines.append("- Trained on simulated storms: of no use for weather.")
    if config.stage != "autoencoder":
        lines.append(
            "- A deterministic forecast is smooth: with lead time it loses small and heavy cells. It is no warning."
        )
    return "\n".join(lines)


def _versions(facts: Facts) -> str:
    def told(versions: Mapping[str, str]) -> str:
        return ", ".join(f"{name} {value}" for name, value in versions.items()) or "unknown"

    return "\n".join(
        [
            "## Versions",
            f"- Trained by: {told(facts.trained_by)}",
            f"- Exported by: {told(facts.versions)}",
            "",
            "The code is under the Apache License 2.0; on the weights bears the licence of the data.",
        ]
    )
