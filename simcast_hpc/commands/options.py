"""The options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from simcast_hpc.config import ConfigError
from simcast_hpc.data.dataset_spec import built_in_specs

ConfigFile = Annotated[
    Path,
    typer.Argument(
        help="A YAML file, or a shipped configuration by name, such as teacher/sevir (simcast config list).",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Lay key=value over the configuration: --set batch.micro_size=2", show_default=False),
]
DATASETS = f"{', '.join(built_in_specs())}, or the path of a YAML file that describes another (docs/data.md)"
Dataset = Annotated[str, typer.Option(help=f"What the data are: {DATASETS}.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Do not print the resolved configuration.")]


def sampling_change(word: str) -> tuple[str, object]:
    """Return key and value of ``--set key=value``, the section's name left out or not.

    Raises:
        ConfigError: there is no equals sign.
    """
    import yaml

    key, equals, value = word.partition("=")
    if not equals:
        raise ConfigError(f"--set {word!r} must be key=value, such as steps=6")
    return key.removeprefix("sampling."), yaml.safe_load(value)
