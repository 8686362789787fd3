"""Commands, options, files, make targets and links in pages and notebooks exist; code blocks name their language."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from simcast_hpc import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "slurm" / "README.md", ROOT / "kernels" / "README.md"]
PAGES += sorted((ROOT / "docs").rglob("*.md")) + sorted((ROOT / "docs").rglob("*.ipynb"))
# Pages that no generator checks: their links must exist as files and headings.
OUTSIDE_THE_SITE = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / ".github").rglob("*.md")), *PAGES[2:4]]
PROGRAM: Any = typer.main.get_command(cli.app)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
# The words before these belong to a launcher, those after them to our program.
_STARTS = ("simcast", "simcast_hpc")


def markdown(page: Path) -> str:
    """Return the text of a page; in a notebook, shell commands of code cells become code blocks."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".md":
        return text
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            shell = source if source.startswith("%%bash") else "\n".join(re.findall(r"^!(.*)$", source, re.MULTILINE))
            source = f"```bash\n{shell.removeprefix('%%bash')}\n```"
        parts.append(source)
    return "\n\n".join(parts)


def lines_to_type(page: Path) -> list[str]:
    """Return the lines of the shell blocks of a page, with continuations joined and without comments."""
    inside, kept = None, []
    for line in markdown(page).splitlines():
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
        words = shlex.split(re.sub(r"\s(?:\d?>|\|\|?|&&|;)\s.*$", "", line))  # up to a redirection or another command
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


def untyped_blocks(text: str) -> list[int]:
    """Return the line numbers of code blocks without a language."""
    found, closing = [], ""
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.match(r"\s*(`{3,})(.*)", line)
        if fence and closing and fence[1] == closing and not fence[2].strip():
            closing = ""
        elif fence and not closing:
            closing = fence[1]
            found += [] if fence[2].strip() else [number]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_blocks_of_a_page_name_their_language(page):
    assert untyped_blocks(markdown(page)) == [], "use ```bash, ```python, ```yaml or ```text"


def test_detects_a_code_block_without_language():
    assert untyped_blocks("```bash\nls\n```\n\n```\nls\n```\n  ````text\n```\n  ````\n") == [5]


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings of a page, as a forge makes them, and those that are written as HTML."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ +(.+?)\s*$", text, flags=re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower() for title in titles]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain} | set(
        re.findall(r'id="([^"]+)"', text)
    )


def broken_links(page: Path) -> list[str]:
    """Return the links and images of a page whose file or heading does not exist."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)", text)
    links += re.findall(r'(?:src|srcset|href)="([^"]+)"', text)
    broken = []
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if not target.exists() or (
            anchor and target.suffix == ".md" and anchor not in anchors(target.read_text(encoding="utf-8"))
        ):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", OUTSIDE_THE_SITE, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_pages_outside_the_site_exist(page):
    assert broken_links(page) == []


def test_detects_a_broken_link(tmp_path):
    (tmp_path / "there.md").write_text("# Some *title*, here\n")
    page = tmp_path / "page.md"
    page.write_text('[a](there.md#some-title-here) [b](there.md#no) <img src="no.png"> `[c](d.md)` [e](https://f.g)\n')
    assert broken_links(page) == ["there.md#no", "no.png"]


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


def test_commands_of_a_notebook_are_found(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["```bash\n", "simcast fly\n", "```"]},
        {"cell_type": "code", "source": "import os\n!simcast evaluate persistence --root x"},
        {"cell_type": "code", "source": ["%%bash\n", "simcast train a.yaml \\\n", "  --quiet"]},
    ]
    notebook = tmp_path / "a.ipynb"
    notebook.write_text(json.dumps({"cells": cells}))
    assert commands(notebook) == [["fly"], ["evaluate", "persistence", "--root", "x"], ["train", "a.yaml", "--quiet"]]


def test_api_pages_rank_below_other_pages_in_the_search():
    pages = sorted((ROOT / "docs" / "reference" / "api").glob("*.md"))
    boosted = [
        page.stem for page in pages if page.read_text(encoding="utf-8").startswith("---\nsearch:\n  boost: 0.002")
    ]
    assert sorted({page.stem for page in pages} - set(boosted)) == ["index", "python"]
