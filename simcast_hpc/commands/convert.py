"""``simcast convert``: convert published weights of other projects for evaluation, ensembles and forecasts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simcast_hpc.config import ConfigError
from simcast_hpc.config.yaml_files import read_plain_mapping

from .options import DATASETS

if TYPE_CHECKING:
    from simcast_hpc.inference.convert_weights import ConvertedRun


def convert(
    architecture: Annotated[
        str,
        typer.Argument(
            help="Architecture of the weights: earthformer, simvp, autoencoder or casformer.", show_default=False
        ),
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
    dataset: Annotated[
        str | None,
        typer.Option(
            help=f"Data that the weights were trained on: {DATASETS} (default: sevir; casformer: data of the student).",
            show_default=False,
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            help="Mapping in the file that contains the state dict, for example 'model.EarthFormer_xy' (default: the "
            "only one that fits).",
            show_default=False,
        ),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(
            help="Strip this prefix, for example 'model.', from state-dict keys; keys without it are skipped (default: "
            "the only one that fits).",
            show_default=False,
        ),
    ] = None,
    autoencoder: Annotated[
        Path | None,
        typer.Option(help="casformer: run directory of its autoencoder.", show_default=False),
    ] = None,
    student: Annotated[
        Path | None,
        typer.Option(
            help="casformer: run directory of the model whose forecast is its condition, such as the converted "
            "earthformer.",
            show_default=False,
        ),
    ] = None,
    scale_factor: Annotated[
        float | None,
        typer.Option(
            help="autoencoder: factor that scales its latents to unit variance (default: that of CasCast's release for "
            "SEVIR).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Convert published weights to safetensors with a matching configuration.

    Reads a state dict without executing code from the file. Writes a run directory for simcast evaluate, predict and
    export (earthformer, simvp), for training and sampling ensembles (autoencoder), or for simcast sample, evaluate and
    predict (casformer). A missing or unexpected key, or a tensor of another shape, is an error.

    Example: simcast convert earthformer earthformer_sevir.pt runs/public/earthformer
    """
    from simcast_hpc.data.dataset_spec import read_spec
    from simcast_hpc.inference.convert_weights import Conversion, convert_weights
    from simcast_hpc.models.published_weights import ARCHITECTURES, released_config
    from simcast_hpc.models.published_weights.cascast_yaml import diffusion_settings, network_section

    if architecture not in ARCHITECTURES:
        raise ConfigError(f"architecture {architecture!r} is unknown; choose {', '.join(ARCHITECTURES)}")
    if dataset is not None:
        read_spec(dataset)
    data = {} if config is None else read_plain_mapping(config)
    try:
        public = released_config(architecture) if config is None else network_section(architecture, data)
        settings = diffusion_settings(data)
    except ValueError as error:
        raise ConfigError(f"{config}: {error}") from error
    conversion = Conversion(
        architecture=architecture, file=file, config=public, dataset=dataset, key=key, prefix=prefix,
        scale_factor=scale_factor, autoencoder=autoencoder, student=student, diffusion=settings,
    )  # fmt: skip
    converted = convert_weights(conversion, out)
    _report(converted, out, searched=key is None or prefix is None)


def _report(converted: "ConvertedRun", out: Path, *, searched: bool) -> None:
    """Print what was converted, what was chosen automatically, and the next command."""
    config, found = converted.config, converted.found
    if searched and (found.mapping.key or found.prefix):
        print(f"found the weights with {found.options}")
    if config.stage == "autoencoder":
        scale = float(converted.metadata["scale_factor"])
        channels = config.autoencoder.model.latent_channels
        print(f"autoencoder, {channels} latent channels, scale factor {scale:.6g}: {out}")
        print(f"use it: simcast convert casformer FILE OUT --autoencoder {out} --student RUN")
        return
    frames = f"{config.sequence.frames_in} -> {config.sequence.frames_out} frames"
    if config.stage == "diffusion":
        sampling = config.sampling
        print(
            f"CasFormer, {frames}, {sampling.sampler} in {sampling.steps} steps, guidance {sampling.guidance:g}: {out}"
        )
        print(f"sample it: simcast sample {out} --root FOLDER")
    else:
        print(f"{config.model.title}, {frames}: {out}")
    print(f"evaluate it: simcast evaluate {out} --root FOLDER")
