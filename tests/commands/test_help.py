"""The help of every command: an example that its own options take, and the values of options that have a few."""

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from simcast_hpc import cli
from simcast_hpc.data.data_errors import KINDS
from simcast_hpc.data.dataset_spec import built_in_specs

PROGRAM: Any = typer.main.get_command(cli.app)


def commands(group: Any, *above: str) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command below ``group`` that is no group itself."""
    for name, command in getattr(group, "commands", {}).items():
        words = (*above, name)
        yield from commands(command, *words) if getattr(command, "commands", None) else [words]


def help_of(*words: str) -> str:
    """Return the help of a command as one line, without the frames around its options."""
    told = CliRunner().invoke(cli.app, [*words, "--help"], env={"COLUMNS": "4000", "TERM": "dumb", "NO_COLOR": "1"})
    assert told.exit_code == 0, told.output
    return " ".join(told.output.replace("│", " ").split())


def test_all_commands_are_seen():
    found = {" ".join(words) for words in commands(PROGRAM)}
    assert {"train", "data prepare", "model info", "doctor", "export"} <= found and len(found) >= 15


@pytest.mark.parametrize("words", list(commands(PROGRAM)), ids=" ".join)
def test_every_command_has_an_example_that_it_takes(words):
    said = help_of(*words)
    start = said.find(f"Example: simcast {' '.join(words)} ")
    assert start >= 0, (
        f"the help of {' '.join(words)} has no line that begins with 'Example: simcast {' '.join(words)}'"
    )
    line = said[start:].split(" ╭")[0].removeprefix("Example: ")
    command = PROGRAM
    for word in words:
        command = command.commands[word]
    given = shlex.split(line)[1 + len(words) :]
    context = command.make_context(" ".join(words), given, resilient_parsing=False)
    assert not context.args, f"the example gives words that nothing takes: {context.args}"


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (("data", "prepare"), [*KINDS, *built_in_specs()]),
        (("data", "inspect"), [*KINDS, *built_in_specs()]),
        (("evaluate",), [*built_in_specs()]),
        (("convert",), [*built_in_specs()]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_with_a_few_values_list_them(words, values):
    said = help_of(*words)
    assert [value for value in values if value not in said] == []
