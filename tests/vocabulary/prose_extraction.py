"""Extract prose from files: Markdown, notebooks, docstrings, comments and messages. Code is blanked.

A passage is a text with the line number of each of its lines, so that a term may span a line break.
"""

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Text files whose comments start with "#".
_HASH_COMMENTS = {".yaml", ".yml", ".toml", ".sh", ".cff", ".example"}
_CODE = re.compile(r"(`+)(?:(?!\1).)+?\1(?!`)", re.DOTALL)
_LINK_TARGET = re.compile(r"(?<=\])\([^()\s]*\)|https?://\S+|\S+@\S+")
_HTML = re.compile(r"<!--.*?-->|</?[a-z][^<>]*>", re.DOTALL)
_FENCE = re.compile(r"^( *)(`{3,}|~{3,})[^\n]*\n.*?^\1\2[^\S\n]*$", re.DOTALL | re.MULTILINE)
_MATH = re.compile(r"\$\$.*?\$\$|\$[^$\n]+\$", re.DOTALL)


class Passage(NamedTuple):
    """A text and the line number in the file of each of its lines."""

    text: str
    lines: list[int]


def contains_prose(path: Path) -> bool:
    """Return whether prose can be extracted from a file of this name."""
    return path.suffix in {".py", ".md", ".ipynb", *_HASH_COMMENTS} or path.name in ("Makefile", "run")


def passages(path: Path, text: str) -> Iterator[Passage]:
    """Yield the prose in the text of a file for which :func:`contains_prose` is true."""
    if path.suffix == ".py":
        messages = "tests" not in path.parts  # strings of tests are data
        yield from python_passages(text, messages=messages)
    elif path.suffix == ".md":
        yield markdown_passage(text)
    elif path.suffix == ".ipynb":
        yield from notebook_passages(text)
    else:
        yield from comment_passages(text)


def _blank(match: re.Match[str]) -> str:
    """Return the matched text without its characters, except delimiting backticks and line breaks."""
    return re.sub(r"[^\s`]", "\u00b7", match.group())


def without_code(text: str) -> str:
    """Return a text of equal length in which inline code, link targets and addresses are blanked."""
    return _LINK_TARGET.sub(_blank, _CODE.sub(_blank, text))


def _numbered(text: str, first: int) -> Passage:
    return Passage(text, list(range(first, first + text.count("\n") + 1)))


def markdown_passage(text: str) -> Passage:
    """Return the prose of a Markdown file: code, formulas, HTML tags and link targets are blanked."""
    for pattern in (_FENCE, _HTML, _MATH):
        text = pattern.sub(_blank, text)
    return _numbered(without_code(text), 1)


def notebook_passages(text: str) -> Iterator[Passage]:
    """Yield the Markdown cells of a notebook and the comments of its code cells, with line numbers of the file."""
    lines = text.splitlines()
    position = 0
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        numbers = []
        for line in source.splitlines(keepends=True):
            encoded = {json.dumps(line), json.dumps(line, ensure_ascii=False)}
            position = next(
                (n for n in range(position, len(lines)) if lines[n].strip().rstrip(",") in encoded), position
            )
            numbers.append(position + 1)
        if cell["cell_type"] == "markdown":
            yield Passage(markdown_passage(source).text, numbers)
        else:
            for passage in comment_passages(source):
                yield Passage(passage.text, [numbers[number - 1] for number in passage.lines])


def comment_passages(text: str) -> Iterator[Passage]:
    """Yield the comments that start with ``#``, adjacent ones as one passage, and quoted messages of shell scripts."""
    block: list[tuple[int, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        comment = re.search(r"(?:^|\s)#+(?!\!)\s?(.*)", line)
        if block and not (comment and line.lstrip().startswith("#")):
            yield _joined(block)
            block = []
        if comment:
            block.append((number, comment[1]))
        code = line[: comment.start()] if comment else line
        for quoted in re.findall(r'"([^"]*\s[^"]*\s[^"]*)"', code):
            yield Passage(without_code(re.sub(r"\$\(.*?\)|\$\{?\w+\}?", "\u00b7", quoted)), [number])
    if block:
        yield _joined(block)


def _joined(block: list[tuple[int, str]]) -> Passage:
    return Passage(without_code("\n".join(text for _, text in block)), [number for number, _ in block])


def python_passages(source: str, *, messages: bool = True) -> Iterator[Passage]:
    """Yield docstrings, comments and messages of Python source.

    Messages are string literals of several words; without ``messages`` only those of ``assert`` statements.
    """
    tree = ast.parse(source)
    # 1. Docstrings, of attributes too
    seen: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            seen.add(id(node.value))
            yield _numbered(without_code(node.value.value), node.value.lineno)
    # 2. Comments; those on lines of their own are joined
    block: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        number, own_line = token.start[0], not token.line[: token.start[1]].strip()
        if block and (not own_line or number != block[-1][0] + 1):
            yield _joined(block)
            block = []
        block.append((number, token.string.lstrip("#: ")))
    if block:
        yield _joined(block)
    # 3. Messages
    roots = [tree] if messages else [node.msg for node in ast.walk(tree) if isinstance(node, ast.Assert) and node.msg]
    nodes = [node for root in roots for node in ast.walk(root)]
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            seen.update(id(part) for part in node.values)
            parts = [part.value if isinstance(part, ast.Constant) else "\u00b7" for part in node.values]
            yield from _message("".join(map(str, parts)), node.lineno)
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in seen:
            yield from _message(node.value, node.lineno)


def _message(text: str, line: int) -> Iterator[Passage]:
    if len(text.split()) > 2:
        yield Passage(without_code(text), [line] * (text.count("\n") + 1))
