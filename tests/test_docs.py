"""What the pages tell a reader to type: commands and options that exist, files and targets that are there."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from simcast_hpc import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "slurm" / "README.md", ROOT / "kernels" / "README.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
PROGRAM: Any = typer.main.get_command(cli.app)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
# Where these stand, what follows is our own program; everything before belongs to a launcher.
_STARTS = ("simcast", "simcast_hpc")


def lines_to_type(page: Path) -> list[str]:
    """Return the lines of a page's plain code blocks, joined where they go on, without their comments."""
    inside, kept = None, []
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = line.removeprefix("```") if inside is None else None
        elif inside in ("", "bash", "sh"):
            kept.append(line)
    lines = "\n".join(kept).replace("\\\n", " ").splitlines()
    return [found for line in lines if (found := re.sub(r"(^|\s)#.*$", "", line).strip())]


def commands(page: Path) -> list[list[str]]:
    """Return the words that follow ``simcast``, under whichever launcher, of each line that calls it."""
    found = []
    for line in lines_to_type(page):
        if not any(start in line for start in _STARTS):
            continue
        words = shlex.split(line)
        places = [place for place, word in enumerate(words) if word in _STARTS]
        if places and words[0] not in ("pip", "pytest", "cp"):
            found.append(words[places[0] + 1 :])
    return found


class Refused(Exception):
    """The command line does not take some words; typer's own errors stand in a module of its own."""


def parse(words: list[str]) -> None:
    """Let the command line take these words, without running what they ask for.

    Raises:
        Refused: a command or an option does not exist, or an argument lacks.
    """
    command, name, rest = PROGRAM, [], list(words)
    while hasattr(command, "commands"):
        name.append(rest.pop(0))
        if name[-1] not in command.commands:
            raise Refused(f"there is no command {' '.join(name)}")
        command = command.commands[name[-1]]
    if "--help" in rest or "..." in rest:
        return
    try:
        command.make_context(" ".join(name), rest)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        raise Refused(error.format_message()) from error


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_is_taken(page):
    wrong = []
    for words in commands(page):
        try:
            parse(words)
        except Refused as error:
            wrong.append(f"simcast {' '.join(words)}: {error}")
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_targets_and_modules_of_a_page_exist(page):
    lines = "\n".join(lines_to_type(page))
    paths = set(re.findall(r"(?<![\w/])(?:configs|slurm|tests|benchmarks|kernels)/[\w./-]+\w", lines))
    made = {"slurm/site.env"}  # by the reader, from the example
    assert sorted(path for path in paths - made if not (ROOT / path).exists()) == []
    assert {target for target in re.findall(r"^make ([a-z-]+)", lines, flags=re.MULTILINE)} - TARGETS == set()
    modules = set(re.findall(r"-m (benchmarks\.[\w.]+)", lines))
    assert [name for name in modules if not list(ROOT.glob(f"{name.replace('.', '/')}*"))] == []


def test_nothing_asks_for_our_package_from_an_index():
    """No index holds it: extras are installed from the checkout, in pages and in messages."""
    places = [*PAGES, *sorted((ROOT / "simcast_hpc").rglob("*.py"))]
    assert [str(path) for path in places if "simcast-hpc[" in path.read_text(encoding="utf-8")] == []


def test_a_page_with_a_mistake_would_be_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```\ntorchrun -m simcast_hpc train a.yaml \\\n  --sett x=1   # no\nsimcast fly a.yaml\nls\n```\n")
    first, second = commands(page)
    with pytest.raises(Refused, match="--sett"):
        parse(first)
    with pytest.raises(Refused, match="no command fly"):
        parse(second)
