"""Help texts: every command has a valid example, and options with few values list them."""

import re
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
    """Yield the words of every command below ``group``."""
    for name, command in getattr(group, "commands", {}).items():
        words = (*above, name)
        yield from commands(command, *words) if getattr(command, "commands", None) else [words]


def help_of(*words: str) -> str:
    """Return the help of a command as one line."""
    result = CliRunner().invoke(cli.app, [*words, "-h"], terminal_width=4000)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_finds_all_commands():
    names = {" ".join(words) for words in commands(PROGRAM)}
    assert {"train", "data prepare", "model info", "doctor", "export"} <= names and len(names) >= 15


@pytest.mark.parametrize("words", list(commands(PROGRAM)), ids=" ".join)
def test_every_command_has_a_valid_example(words):
    found = re.search(rf"Example: (simcast {' '.join(words)}\b.*?) (?:Example|Arguments|Options):", help_of(*words))
    assert found, f"the help has no line that begins with 'Example: simcast {' '.join(words)}'"
    command = PROGRAM
    for word in words:
        command = command.commands[word]
    given = shlex.split(found[1])[1 + len(words) :]
    context = command.make_context(" ".join(words), given, resilient_parsing=False)
    assert not context.args, f"the example has unknown arguments: {context.args}"


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
def test_options_with_few_values_list_them(words, values):
    text = help_of(*words)
    assert [value for value in values if value not in text] == []


def test_brackets_of_help_texts_are_printed():
    assert "(requires the extra [onnx])" in help_of("export")


def test_numbers_of_synth_and_shell_completion_are_listed():
    assert "--install-completion" in help_of() and "Number of training events. [default: " in help_of("data", "synth")
