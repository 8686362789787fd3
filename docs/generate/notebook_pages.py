"""Convert a notebook with stored outputs to Markdown; nothing is executed.

Code cells become Python blocks, texts are kept, and images are embedded, so that a page is one file.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

_IMAGES = ("image/svg+xml", "image/png", "image/jpeg")


def notebook_to_markdown(path: Path) -> str:
    """Return the Markdown of the notebook at ``path``.

    Raises:
        ValueError: an output is an error.
    """
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return "\n\n".join(part for cell in notebook["cells"] for part in _cell(cell, path) if part.strip()) + "\n"


def _cell(cell: dict[str, Any], path: Path) -> Iterator[str]:
    source = _text(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
    elif cell["cell_type"] == "code" and source.strip():
        yield _fence("python", source)
        for output in cell["outputs"]:
            yield _output(output, path)


def _output(output: dict[str, Any], path: Path) -> str:
    kind = output["output_type"]
    if kind == "error":
        raise ValueError(f"{path} contains the error {output['ename']}: {output['evalue']}; execute it again")
    if kind == "stream":
        return _fence("text", _text(output["text"]))
    data = output["data"]
    for image in _IMAGES:
        if image in data:
            return _image(image, _text(data[image]))
    if "text/markdown" in data:
        return _text(data["text/markdown"])
    return _fence("text", _text(data.get("text/plain", "")))


def _image(kind: str, content: str) -> str:
    """Return an embedded image; SVG is text, other formats are base64."""
    if kind != "image/svg+xml":
        return f"![Output of the code above](data:{kind};base64,{''.join(content.split())})"
    return f"![Output of the code above](data:{kind},{quote(content)})"


def _fence(language: str, text: str) -> str:
    """Return a code block whose fence is longer than any in the text."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}" if text.strip() else ""


def _text(value: str | list[str]) -> str:
    """Return a multi-line string, which notebooks may store as a list of lines."""
    return value if isinstance(value, str) else "".join(value)
