"""``simcast config``: list, show and copy the configurations that are shipped with the project."""

from pathlib import Path
from typing import Annotated

import typer

from simcast_hpc.config import copy_config, list_configs, read_run_config, resolve, summary, to_yaml

from .options import CommandGroup

app = CommandGroup(help="List, show and copy the shipped configurations.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[
    str, typer.Argument(help="Name of a shipped configuration, such as teacher/sevir.", show_default=False)
]


@app.command("list")
def list_() -> None:
    """List the shipped configurations with their purpose.

    Example: simcast config list
    """
    known = list_configs()
    width = max(map(len, known), default=0)
    for name, path in known.items():
        print(f"{name:{width}}  {summary(path)}")


@app.command("show")
def show(
    name: Name,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Print every field that the stage uses, including defaults.")
    ] = False,
) -> None:
    """Print the YAML file of a configuration, or with --resolved every field that its stage uses.

    Example: simcast config show teacher/sevir --resolved
    """
    text = to_yaml(read_run_config(name)) if resolved else resolve(name).read_text(encoding="utf-8")
    print(text.rstrip())


@app.command("copy")
def copy(
    name: Name,
    target: Annotated[
        Path | None, typer.Argument(help="File to create (default: STAGE-NAME.yaml in the current folder).")
    ] = None,
) -> None:
    """Copy a shipped configuration to a new file and print the path of the file.

    Example: simcast config copy teacher/sevir my-teacher.yaml
    """
    target = target or Path(name.removesuffix(".yaml").replace("/", "-") + ".yaml")
    copy_config(name, target)
    print(target)
