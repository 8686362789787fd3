"""``simcast convert``: published weights of another project, for evaluation and forecasts here."""

from pathlib import Path
from typing import Annotated

import typer
import yaml

from simcast_hpc.config import ConfigError

from .options import DATASETS


def convert(
    architecture: Annotated[str, typer.Argument(help="earthformer or simvp.", show_default=False)],
    file: Annotated[Path, typer.Argument(help="The published file: .pt, .pth, .ckpt or .safetensors.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; it gets config.yaml and weights/model.safetensors.")],
    config: Annotated[
        Path | None,
        typer.Option(help="The project's own YAML of these weights; without it, its released SEVIR configuration."),
    ] = None,
    dataset: Annotated[str, typer.Option(help=f"What the weights forecast: {DATASETS}.")] = "sevir",
    prefix: Annotated[str, typer.Option(help="Take the keys that begin so, without it: model.")] = "",
) -> None:
    """Write published weights as our safetensors, their configuration beside them; what does not fit is refused.

    Example: simcast convert earthformer earthformer_sevir.pt runs/public/earthformer
    """
    from simcast_hpc.data.dataset_spec import read_spec
    from simcast_hpc.inference.convert_weights import convert as write
    from simcast_hpc.models.published_weights import ARCHITECTURES, released_config

    if architecture not in ARCHITECTURES:
        raise ConfigError(f"no published architecture {architecture!r}; known are {', '.join(ARCHITECTURES)}")
    read_spec(dataset)
    public = released_config(architecture) if config is None else _read(config)
    ours = write(architecture, file, out, config=public, dataset=dataset, prefix=prefix)
    frames = f"{ours.sequence.frames_in} -> {ours.sequence.frames_out}"
    print(f"{ours.model.title} of {frames} frames in {out}: simcast evaluate {out} --root FOLDER")


def _read(path: Path) -> dict[str, object]:
    """Return a public configuration: the file's mapping, or that under ``model`` where there is one."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not usable YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values, got {type(data).__name__}")
    return data["model"] if isinstance(data.get("model"), dict) else data
