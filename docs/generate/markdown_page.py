"""Write generated Markdown pages and their tables."""

import difflib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; vertical bars in cells are escaped and line breaks become spaces."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def differences(path: Path, text: str) -> str:
    """Return the unified diff from the page at ``path`` to its generated text, empty if they are equal."""
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    return "".join(difflib.unified_diff(old.splitlines(True), text.splitlines(True), str(path), "generated", n=0))


def write(path: Path, text: str) -> None:
    """Write a generated page if it changed."""
    if differences(path, text):
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}", file=sys.stderr)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|") or "—"
