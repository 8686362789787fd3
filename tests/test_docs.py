"""Commands, options, files and make targets in the documentation exist."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from simcast_hpc import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "slurm" / "README.md", ROOT / "kernels" / "README.md"]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
PROGRAM: Any = typer.main.get_command(cli.app)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
# The words before these belong to a launcher, those after them to our program.
_STARTS = ("simcast", "simcast_hpc")


def lines_to_type(page: Path) -> list[str]:
    """Return the lines of the plain code blocks of a page, with continuations joined and without comments."""
    inside, kept = None, []
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = line.removeprefix("```") if inside is None else None
        elif inside in ("", "bash", "sh"):
            kept.append(line)
    lines = "\n".join(kept).replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := re.sub(r"(^|\s)#.*$", "", line).strip())]


def commands(page: Path) -> list[list[str]]:
    """Return the words after ``simcast`` of each line that calls it, with or without a launcher."""
    calls = []
    for line in lines_to_type(page):
        if not any(start in line for start in _STARTS):
            continue
        words = shlex.split(line)
        places = [place for place, word in enumerate(words) if word in _STARTS]
        if places and words[0] not in ("pip", "pytest", "cp"):
            calls.append(words[places[0] + 1 :])
    return calls


class InvalidCommandError(Exception):
    """The command line rejects a command of a page."""


def parse(words: list[str]) -> None:
    """Parse the words of a command without running it.

    Raises:
        InvalidCommandError: a command or an option does not exist, or an argument is missing.
    """
    command, name, rest = PROGRAM, [], list(words)
    if rest == ["--version"]:
        return
    while hasattr(command, "commands"):
        name.append(rest.pop(0))
        if name[-1] not in command.commands:
            raise InvalidCommandError(f"there is no command {' '.join(name)}")
        command = command.commands[name[-1]]
    if "--help" in rest or "..." in rest:
        return
    try:
        command.make_context(" ".join(name), rest)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        raise InvalidCommandError(error.format_message()) from error


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_are_valid(page):
    wrong = []
    for words in commands(page):
        try:
            parse(words)
        except InvalidCommandError as error:
            wrong.append(f"simcast {' '.join(words)}: {error}")
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_targets_and_modules_of_a_page_exist(page):
    lines = "\n".join(lines_to_type(page))
    paths = set(re.findall(r"(?<![\w/])(?:configs|slurm|tests|benchmarks|kernels)/[\w./-]+\w", lines))
    created = {"slurm/site.env"}  # by the reader, from the example
    assert sorted(path for path in paths - created if not (ROOT / path).exists()) == []
    assert {target for target in re.findall(r"^make ([a-z-]+)", lines, flags=re.MULTILINE)} - TARGETS == set()
    modules = set(re.findall(r"-m (benchmarks\.[\w.]+)", lines))
    assert [name for name in modules if not list(ROOT.glob(f"{name.replace('.', '/')}*"))] == []


def test_no_page_installs_the_package_from_an_index():
    """No index contains it: pages and messages install extras from the checkout."""
    places = [*PAGES, *sorted((ROOT / "simcast_hpc").rglob("*.py"))]
    assert [str(path) for path in places if "simcast-hpc[" in path.read_text(encoding="utf-8")] == []


def test_detects_an_invalid_command(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```\ntorchrun -m simcast_hpc train a.yaml \\\n  --sett x=1   # no\nsimcast fly a.yaml\nls\n```\n")
    first, second = commands(page)
    with pytest.raises(InvalidCommandError, match="--sett"):
        parse(first)
    with pytest.raises(InvalidCommandError, match="no command fly"):
        parse(second)
