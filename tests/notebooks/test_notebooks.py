"""The notebooks of the documentation run, and their stored outputs are those of a new execution."""

import base64
import copy
import io

import nbformat
import numpy as np
import pytest
from PIL import Image

from tests.notebooks.notebook_outputs import (
    MAX_BYTES,
    NOTEBOOKS,
    ROOT,
    differences,
    execute,
    image_differences,
    normalize,
    small_png,
    text_differences,
)  # fmt: skip


@pytest.mark.ci
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_those_of_a_new_execution(path, tmp_path):
    stored = nbformat.read(path, as_version=4)
    assert differences(stored, execute(path, tmp_path)) == [], "run `make notebooks` and review the change"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_executed_normalized_and_small(path, tmp_path):
    assert path.stat().st_size < MAX_BYTES
    stored = nbformat.read(path, as_version=4)
    assert stored == normalize(copy.deepcopy(stored), tmp_path), "run `make notebooks`"
    text = path.read_text(encoding="utf-8")
    assert str(ROOT) not in text and "/tmp/" not in text and "/home/" not in text
    assert any("image/png" in output.get("data", {}) for cell in stored.cells for output in cell.get("outputs", []))


def test_normalization_of_an_image_is_final():
    """It is applied when a notebook is stored and again when it is checked: any number of colors must survive."""
    colors = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(colors).save(file, format="PNG")
    once = small_png(base64.b64encode(file.getvalue()).decode("ascii"))
    assert len(Image.open(io.BytesIO(base64.b64decode(once))).getcolors()) <= 128
    assert small_png(once) == once


def test_there_are_at_least_three_notebooks():
    assert len(NOTEBOOKS) >= 3


def changed(number: int, text: str):
    """Return the first notebook and a copy in which output text ``number`` ends with ``text``."""
    stored = nbformat.read(NOTEBOOKS[0], as_version=4)
    new = copy.deepcopy(stored)
    streams = [output for cell in new.cells for output in cell.get("outputs", []) if output.output_type == "stream"]
    streams[number]["text"] += text
    return stored, new


def test_detects_another_text():
    stored, new = changed(0, "more")
    assert len(differences(stored, new)) == 1
    assert differences(stored, stored) == []


def test_detects_a_missing_output():
    stored, new = changed(0, "")
    next(cell for cell in new.cells if cell.get("outputs")).outputs.clear()
    assert len(differences(stored, new)) == 1


def test_numbers_have_a_tolerance():
    assert text_differences("CSI 0.5000 of 6", "CSI 0.5001  of 6", 1e-3, 0.0) == []
    assert text_differences("CSI 0.500", "CSI 0.511", 1e-3, 1e-3) == ["0.500 is stored, 0.511 was printed"]
    assert len(text_differences("CSI 0.5", "POD 0.5", 1.0, 1.0)) == 1
    assert len(text_differences("a 1 2", "a 1", 1.0, 1.0)) == 1


def test_images_are_compared():
    notebook = nbformat.read(next(path for path in NOTEBOOKS if path.stem == "score-your-own-forecast"), as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    images = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert image_differences(images[0], images[0], 0.5) == []
    assert len(image_differences(images[0], images[1], 0.5)) == 1
