"""The options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Argument(help="A YAML configuration; see configs/.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Lay key=value over the configuration: --set batch.micro_size=2", show_default=False),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Do not print the resolved configuration.")]
