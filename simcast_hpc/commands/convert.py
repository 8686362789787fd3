"""``simcast convert``: convert published weights of other projects for evaluation and forecasts."""

from pathlib import Path
from typing import Annotated

import typer

from simcast_hpc.config import ConfigError
from simcast_hpc.config.yaml_files import read_plain_mapping

from .options import DATASETS


def convert(
    architecture: Annotated[
        str, typer.Argument(help="Architecture of the weights: earthformer or simvp.", show_default=False)
    ],
    file: Annotated[
        Path, typer.Argument(help="File of published weights: .pt, .pth, .ckpt or .safetensors.", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Argument(
            help="Run directory to create, with config.yaml and weights/model.safetensors.", show_default=False
        ),
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML configuration published with the weights (default: that of the weights for SEVIR).",
            show_default=False,
        ),
    ] = None,
    dataset: Annotated[str, typer.Option(help=f"Data that the weights were trained on: {DATASETS}.")] = "sevir",
    prefix: Annotated[
        str,
        typer.Option(
            help="Strip this prefix, for example 'model.', from state-dict keys; keys without it are skipped."
        ),
    ] = "",
) -> None:
    """Convert published weights to safetensors with a matching configuration.

    Reads a state dict without executing code from the file. Writes a run directory for simcast evaluate, predict and
    export. A missing or unexpected key, or a tensor of another shape, is an error.

    Example: simcast convert earthformer earthformer_sevir.pt runs/public/earthformer
    """
    from simcast_hpc.data.dataset_spec import read_spec
    from simcast_hpc.inference.convert_weights import convert_weights
    from simcast_hpc.models.published_weights import ARCHITECTURES, released_config

    if architecture not in ARCHITECTURES:
        raise ConfigError(f"architecture {architecture!r} is unknown; choose {' or '.join(ARCHITECTURES)}")
    read_spec(dataset)
    public = released_config(architecture) if config is None else _read_public_config(config)
    converted = convert_weights(architecture, file, out, config=public, dataset=dataset, prefix=prefix)
    frames = f"{converted.sequence.frames_in} -> {converted.sequence.frames_out}"
    print(f"{converted.model.title}, {frames} frames: {out}")
    print(f"evaluate it: simcast evaluate {out} --root FOLDER")


def _read_public_config(path: Path) -> dict[str, object]:
    """Return the mapping in a YAML file, or its part under the key ``model`` if there is one."""
    data = read_plain_mapping(path)
    return data["model"] if isinstance(data.get("model"), dict) else data
