"""Execute the notebooks of the documentation, store their outputs, and compare outputs with the stored ones.

``python -m tests.notebooks.notebook_outputs`` executes all notebooks and stores their outputs (``make notebooks``).
"""

import base64
import io
import math
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
MAX_BYTES = 300_000
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
# Relative and absolute tolerance of numbers. Training amplifies the rounding differences of processors and thread
# counts; cells with the tag "trained" show numbers of a network trained in the notebook.
_TOLERANCES = {"exact": (1e-4, 1e-4), "trained": (0.15, 0.06)}
# Mean absolute difference of gray levels, of 255: fonts and antialiasing differ between versions of libraries.
_GRAY_DIFFERENCE = {"exact": 2.0, "trained": 8.0}
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(path: Path, folder: Path, *, timeout: int = 600) -> Any:
    """Execute a copy of a notebook in ``folder`` and return it with its outputs, normalized.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raises an exception.
    """
    notebook = nbformat.read(path, as_version=4)
    environ = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    old = {name: os.environ.get(name) for name in environ}
    os.environ.update(environ)
    try:
        client = NotebookClient(
            notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
        )
        client.execute()
    finally:
        for name, value in old.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return normalize(notebook, folder)


def normalize(notebook: Any, folder: Path) -> Any:
    """Return a notebook without execution counts, timings, machine paths and versions of the kernel."""
    notebook.metadata = nbformat.from_dict(_METADATA)
    for number, cell in enumerate(notebook.cells, 1):
        cell["id"] = f"cell-{number:02d}"
        cell.metadata = nbformat.from_dict({"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {})
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [_normal_output(output, folder) for output in _joined_streams(cell.outputs)]
    return notebook


def _joined_streams(outputs: list[Any]) -> list[Any]:
    """Return outputs with adjacent pieces of a stream joined: the kernel splits a stream at arbitrary places."""
    joined: list[Any] = []
    for output in outputs:
        if joined and output.output_type == joined[-1].output_type == "stream" and output["name"] == joined[-1]["name"]:
            joined[-1]["text"] += output["text"]
        else:
            joined.append(output)
    return joined


def _normal_output(output: Any, folder: Path) -> Any:
    """Return an output without execution count, machine paths and the HTML form, and with small images."""
    if output.output_type == "error":
        raise ValueError(f"a cell ended with {output['ename']}: {output['evalue']}")
    if output.output_type == "stream":
        output["text"] = _clean(output["text"], folder)
        return output
    data = output["data"]
    if "image/png" in data:
        kept = {"image/png": small_png(data["image/png"])}  # without "<Figure size ...>"
    else:
        kept = {"text/plain": _clean(data["text/plain"], folder)}
    return nbformat.v4.new_output("display_data", data=kept)


def small_png(content: str) -> str:
    """Return a PNG image (base64) with a palette of 128 colors, which is a third of the size.

    An image that has a palette is returned unchanged: a second quantization would select other colors.
    """
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    if image.mode == "P":
        return content
    file = io.BytesIO()
    image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _clean(text: str, folder: Path) -> str:
    """Return a text without the folder of the run and other paths of this machine."""
    for place, name in ((folder.resolve(), "."), (folder, "."), (ROOT, "..."), (Path.home(), "~")):
        text = text.replace(str(place), name)
    return text


def differences(stored: Any, new: Any) -> list[str]:
    """Return a line for every difference between two normalized notebooks; empty if they are equal."""
    found = []
    if len(stored.cells) != len(new.cells):
        return [f"{len(stored.cells)} cells are stored, {len(new.cells)} were executed"]
    for old, cell in zip(stored.cells, new.cells, strict=True):
        if cell.cell_type != "code":
            continue
        kind = "trained" if "trained" in cell.metadata.get("tags", []) else "exact"
        kinds = [[_kind(output) for output in each.outputs] for each in (old, cell)]
        if kinds[0] != kinds[1]:
            found.append(f"{cell['id']}: outputs {kinds[0]} are stored, {kinds[1]} were made")
            continue
        for output, other in zip(old.outputs, cell.outputs, strict=True):
            found += [f"{cell['id']}: {line}" for line in _compare(output, other, kind)]
    return found


def _kind(output: Any) -> str:
    return output["name"] if output.output_type == "stream" else "+".join(sorted(output["data"]))


def _compare(stored: Any, new: Any, kind: str) -> list[str]:
    if stored.output_type == "stream":
        return text_differences(stored["text"], new["text"], *_TOLERANCES[kind])
    if "image/png" in stored["data"]:
        return image_differences(stored["data"]["image/png"], new["data"]["image/png"], _GRAY_DIFFERENCE[kind])
    return text_differences(stored["data"]["text/plain"], new["data"]["text/plain"], *_TOLERANCES[kind])


def text_differences(stored: str, new: str, relative: float, absolute: float) -> list[str]:
    """Return the differences of two texts whose numbers may differ by a relative or an absolute tolerance."""
    if re.sub(r"\s+", " ", _NUMBER.sub("#", stored)) != re.sub(r"\s+", " ", _NUMBER.sub("#", new)):
        return [f"the text {stored!r} is stored, {new!r} was printed"]
    pairs = zip(_NUMBER.findall(stored), _NUMBER.findall(new), strict=True)
    return [
        f"{old} is stored, {number} was printed"
        for old, number in pairs
        if not math.isclose(float(old), float(number), rel_tol=relative, abs_tol=absolute)
    ]


def image_differences(stored: str, new: str, tolerance: float) -> list[str]:
    """Return the differences of two PNG images (base64) in size, or in gray levels by more than ``tolerance``."""
    images = [Image.open(io.BytesIO(base64.b64decode(data))).convert("L") for data in (stored, new)]
    sizes = [image.size for image in images]
    if any(abs(old - size) > 12 for old, size in zip(*sizes, strict=True)):  # width of labels in another font
        return [f"an image of {sizes[0]} pixels is stored, {sizes[1]} was drawn"]
    small = [np.asarray(image.resize((64, 64), Image.Resampling.BOX), dtype=np.float64) for image in images]
    difference = float(np.abs(small[0] - small[1]).mean())
    return [] if difference <= tolerance else [f"an image differs by {difference:.1f} gray levels on average"]


def main() -> None:
    """Execute every notebook, or those given on the command line, and store their outputs."""
    for path in [Path(name).resolve() for name in sys.argv[1:]] or NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        nbformat.write(notebook, path)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
