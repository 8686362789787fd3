"""The diagrams of the documentation: equal to what their source draws, self-contained, and legible on a phone."""

import re
import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.test_layout import LAYERS

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "figures"
SOURCE = runpy.run_path(str(FOLDER / "draw_figures.py"))
NAMES = sorted(SOURCE["FIGURES"])
PHONE_WIDTH = 420
MIN_FONT_PIXELS = 9


@pytest.mark.parametrize("name", NAMES)
def test_committed_figure_is_what_its_source_draws(name):
    committed = (FOLDER / name).read_text(encoding="utf-8")
    assert committed == SOURCE["FIGURES"][name](), "run `make figures` and commit the result"


@pytest.mark.parametrize("name", NAMES)
def test_figure_is_self_contained_and_has_a_background(name):
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert re.findall(r"(?:href|src|@import|url\((?!#))", text) == []
    first = next(element for element in ElementTree.fromstring(text) if element.tag.endswith("rect"))
    _, _, width, height = map(float, ElementTree.fromstring(text).attrib["viewBox"].split())
    assert float(first.attrib["width"]) >= width - 2 and float(first.attrib["height"]) >= height - 2


@pytest.mark.parametrize("name", NAMES)
def test_text_is_legible_on_a_phone_and_inside_the_figure(name):
    root = ElementTree.fromstring((FOLDER / name).read_text(encoding="utf-8"))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    texts = [element for element in root.iter() if element.tag.endswith("}text")]
    assert texts
    for text in texts:
        size = float(text.attrib["font-size"])
        assert size * PHONE_WIDTH / width >= MIN_FONT_PIXELS
        x, length = float(text.attrib["x"]), 0.57 * size * len("".join(text.itertext()))
        left = x - {"start": 0.0, "middle": length / 2, "end": length}[text.attrib["text-anchor"]]
        assert left >= 0 and left + length <= width, "".join(text.itertext())
        assert 0 < float(text.attrib["y"]) < height


def test_architecture_shows_every_package():
    text = (FOLDER / "architecture.svg").read_text(encoding="utf-8")
    missing = [name for names in LAYERS for name in names if f">{name.removeprefix('simcast_hpc.')}<" not in text]
    assert missing == []
