"""Write docs/reference/cli.md from the commands of ``simcast``: ``python -m docs.generate.cli_page``."""

import re
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import typer

from docs.generate.markdown_page import REFERENCE, table, write
from simcast_hpc import cli

PAGE = REFERENCE / "cli.md"
PROGRAM: Any = typer.main.get_command(cli.app)
_TYPES = {str: "text", int: "int", float: "float", bool: "flag", Path: "path"}
# Options, placeholders, patterns, and names with a dot or an underscore such as `batch.micro_size=2`
_CODE = re.compile(
    r"((?<![\w`/-])--?[a-z][\w-]*|<[^>]+>|[\w./-]*\*[\w./*-]*"
    r"|(?<![\w`/.-])[A-Za-z][\w/-]*[._]\w[\w./*-]*(?:=[\w.]*\w)?(?<!\.))"
)
_PAGE_OF_DOCS = re.compile(r"`docs/([\w/-]+/([\w-]+)\.md)`")
_INTRODUCTION = """\
# Command line

<!-- Written by `make reference` from the commands; do not edit. -->

`simcast` is installed with the package; `python -m simcast_hpc` is the same program. `simcast COMMAND --help` prints
the text of this page. `simcast --install-completion` installs completion for the current shell, and
`simcast --version` prints the version and the build commit.

Commands that train, sample or evaluate on several ranks are started by a launcher, such as `torchrun` or `srun`
([Slurm](../guides/slurm.md)). The [exit codes](exit-codes.md) and the [configuration fields](configuration.md) for
`--set` have pages of their own.
"""


def commands(group: Any = PROGRAM, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield name and command of every command below a group; a group comes before its commands."""
    for name, command in group.commands.items():
        full = f"{above} {name}".strip()
        yield full, command
        if hasattr(command, "commands"):
            yield from commands(command, full)


def page() -> str:
    """Return the text of the page."""
    everything = dict(commands())
    summary = [
        [f"[`simcast {name}`](#simcast-{name.replace(' ', '-')})", _paragraphs(command)[0]]
        for name, command in everything.items()
        if not hasattr(command, "commands")
    ]
    parts = [_INTRODUCTION.strip(), table(("Command", "Description"), summary)]
    for name, command in everything.items():
        parts += _group(name, command) if hasattr(command, "commands") else _command(name, command)
    return "\n\n".join(parts) + "\n"


def _group(name: str, command: Any) -> Iterator[str]:
    yield f"## simcast {name}"
    yield _wrapped(" ".join(_paragraphs(command)))


def _command(name: str, command: Any) -> Iterator[str]:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    # 1. Synopsis, description and examples
    yield f"{'###' if ' ' in name else '##'} simcast {name}"
    words = [f"simcast {name}", *(["[OPTIONS]"] if options else []), *map(_placeholder, arguments)]
    yield f"```text\n{' '.join(words)}\n```"
    paragraphs = _paragraphs(command)
    yield from (_wrapped(text) for text in paragraphs if not text.startswith("Example: "))
    examples = [text.removeprefix("Example: ") for text in paragraphs if text.startswith("Example: ")]
    if examples:
        yield "\n".join(["```bash", *examples, "```"])
    # 2. Arguments and options
    if arguments:
        rows = [[f"`{_placeholder(one)}`", _prose(one.help or ""), _type(one)] for one in arguments]
        yield table(("Argument", "Description", "Type"), rows)
    if options:
        rows = [[_names(one), _prose(one.help or ""), _type(one), _default(one)] for one in options]
        yield table(("Option", "Description", "Type", "Default"), rows)


def _paragraphs(command: Any) -> list[str]:
    """Return the paragraphs of a help text, each as one line."""
    return [" ".join(text.split()) for text in (command.help or "").split("\n\n") if text.strip()]


def _prose(text: str) -> str:
    """Return a help text with options, fields, files and patterns as code, and pages of the documentation as links."""
    return _PAGE_OF_DOCS.sub(r"[\2](../\1)", _CODE.sub(r"`\1`", text))


def _wrapped(text: str) -> str:
    return textwrap.fill(_prose(text), 120, break_long_words=False, break_on_hyphens=False)


def _placeholder(argument: Any) -> str:
    name = argument.name.upper() + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _names(option: Any) -> str:
    value = f" {option.metavar}" if option.metavar else ""
    return ", ".join(f"`{name}{value}`" for name in sorted(option.opts, key=len, reverse=True))


def _type(parameter: Any) -> str:
    """Return the type with its limits; an option that can be repeated has the type of one value."""
    annotation = parameter.type_descriptor.annotation
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(option for option in get_args(annotation) if option is not type(None))
    if get_origin(annotation) is tuple:
        return f"{parameter.nargs} × {_TYPES[get_args(annotation)[0]]}"
    repeated = get_origin(annotation) is list
    text = _TYPES[get_args(annotation)[0] if repeated else annotation]
    if parameter.min is not None:
        text += f" ≥ {parameter.min:g}"
    return text


def _default(option: Any) -> str:
    if option.default in (None, False, ""):
        return ""
    return f"`{option.default}`"


if __name__ == "__main__":
    write(PAGE, page())
