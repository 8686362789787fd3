"""Check the words of the project: report terms of ``vocabulary.yaml`` with their replacement.

Run as ``python -m tests.vocabulary.check_vocabulary [FILE ...]``; without files, all files of the checkout are checked.
The exit status is 1 if a term is found. ``prose_extraction.py`` selects the text that is checked. A line that contains
``vocabulary: allow TERM`` in a comment may contain that term.
"""

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

from .prose_extraction import Passage, contains_prose, passages

ROOT = Path(__file__).resolve().parents[2]
TERMS_FILE = Path(__file__).with_name("vocabulary.yaml")
# The list of terms and its test contain the terms; generated pages are checked in their source.
EXCLUDED = ("tests/vocabulary/vocabulary.yaml", "tests/vocabulary/test_vocabulary.py")


class Term(NamedTuple):
    """A term to avoid.

    Attributes:
        name: the term as printed in a waiver, unique.
        pattern: regular expression; a space in the YAML file matches any white space.
        write: the replacement.
        found: a sentence in which the term is found.
        correct: a similar sentence in which it is not.
    """

    name: str
    pattern: re.Pattern[str]
    write: str
    found: str
    correct: str


class Finding(NamedTuple):
    """A term in a file."""

    file: str
    line: int
    text: str
    term: Term

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: found {self.text!r}; write {self.term.write!r}"


@cache
def read_terms(path: Path = TERMS_FILE) -> tuple[Term, ...]:
    """Return the terms of a YAML file.

    Raises:
        ValueError: a field is missing or unknown, or two terms have the same name.
    """
    terms = []
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
        entry = dict(entry)
        name = entry.pop("term")
        pattern = entry.pop("pattern", name)
        flags = 0 if entry.pop("case", False) else re.IGNORECASE
        # White space includes line breaks: a docstring or paragraph is one passage. Spaces in brackets are literal.
        spaced = re.sub(r" (?![^\[]*\])", r"\\s+", pattern)
        compiled = re.compile(rf"(?<!\w)(?:{spaced})(?!\w)", flags | re.MULTILINE)
        if set(entry) != {"write", "found", "correct"}:
            raise ValueError(f"{path}, term {name!r}: the fields are term, write, found, correct, pattern and case")
        terms.append(Term(name, compiled, **entry))
    names = [term.name for term in terms]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise ValueError(f"{path}: repeated terms {sorted(repeated)}")
    return tuple(terms)


def findings_in_text(text: str, terms: Iterable[Term]) -> Iterator[tuple[int, str, Term]]:
    """Yield offset, matched text and term of every finding in a text."""
    for term in terms:
        for match in term.pattern.finditer(text):
            yield match.start(), " ".join(match.group().split()), term


def findings_in_file(path: Path, terms: Iterable[Term], root: Path = ROOT) -> list[Finding]:
    """Return the findings of a file, sorted by line."""
    terms = tuple(terms)
    found = []
    content = path.read_text(encoding="utf-8")
    lines = content.splitlines()
    for passage in passages(path, content):
        for offset, text, term in findings_in_text(passage.text, terms):
            number = _line_of(passage, offset)
            allowed = re.search(r"vocabulary: allow (.+?)(?: -->|$)", lines[min(number, len(lines)) - 1])
            if not (allowed and allowed[1].strip() == term.name):
                found.append(Finding(path.relative_to(root).as_posix(), number, text, term))
    return sorted(found, key=lambda finding: finding.line)


def _line_of(passage: Passage, offset: int) -> int:
    return passage.lines[passage.text.count("\n", 0, offset)]


def checked_files(root: Path = ROOT) -> list[Path]:
    """Return the tracked files, and the untracked ones that git does not ignore, except the excluded ones."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    names = sorted(set(filter(None, listing.stdout.split("\0"))))
    files = [root / name for name in names if not name.startswith(EXCLUDED)]
    return [path for path in files if path.is_file() and contains_prose(path)]


def main(names: list[str]) -> int:
    """Check files, print the findings and return the exit status."""
    files = [Path(name).resolve() for name in names] or checked_files()
    terms = read_terms()
    found = [finding for path in files for finding in findings_in_file(path, terms)]
    for finding in found:
        print(finding)
    if found:
        print(
            f"vocabulary: {len(found)} findings; the list of terms is {TERMS_FILE.relative_to(ROOT)}", file=sys.stderr
        )
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
