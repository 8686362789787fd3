"""Formulas as MathML, and notebooks as pages."""

import base64
import json
import re

import pytest

from docs.generate.notebook_pages import notebook_to_markdown
from docs.generate.plain_pages import DOCS, write_plain_pages


def to_html(text: str) -> str:
    markdown = pytest.importorskip("markdown")
    pytest.importorskip("latex2mathml")
    pytest.importorskip("pymdownx")
    extensions = ["docs.generate.mathml", "pymdownx.arithmatex"]
    return markdown.markdown(text, extensions=extensions, extension_configs={extensions[1]: {"generic": True}})


def test_formulas_are_rendered_and_prices_are_not():
    page = to_html("With $x_t < 3$ for 5 $ or 6 $:\n\n$$\n\\frac{a}{b}\n$$\n\nand `$y$`.")
    assert page.count("<math") == 2
    assert 'display="inline"><mrow><msub><mi>x</mi><mi>t</mi></msub>' in page
    assert 'display="block"><mrow><mfrac>' in page
    assert "5 $ or 6 $" in page and "<code>$y$</code>" in page


def notebook(path, *cells):
    path.write_text(json.dumps({"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


def code(source, *outputs):
    return {"cell_type": "code", "source": source, "outputs": list(outputs), "execution_count": 1, "metadata": {}}


def test_notebook_becomes_markdown_with_its_outputs(tmp_path):
    png = base64.b64encode(b"pixels").decode()
    page = notebook_to_markdown(
        notebook(
            tmp_path / "a.ipynb",
            {"cell_type": "markdown", "source": ["# Title\n", "Text."], "metadata": {}},
            code("print(1)", {"output_type": "stream", "name": "stdout", "text": ["1\n", "```\n"]}),
            code("plot()", {"output_type": "display_data", "data": {"text/plain": "<Figure>", "image/png": png}}),
            code("1 + 1", {"output_type": "execute_result", "data": {"text/plain": ["2"]}}),
        )
    )
    assert page.startswith("# Title\nText.\n\n```python\nprint(1)\n```\n\n````text\n1\n```\n````\n")
    assert f"![Output of the code above](data:image/png;base64,{png})" in page
    assert page.endswith("```python\n1 + 1\n```\n\n```text\n2\n```\n")


def test_notebook_with_an_error_is_rejected(tmp_path):
    failed = {"output_type": "error", "ename": "KeyError", "evalue": "'x'", "traceback": []}
    with pytest.raises(ValueError, match=r"a\.ipynb contains the error KeyError"):
        notebook_to_markdown(notebook(tmp_path / "a.ipynb", code("d['x']", failed)))


def test_markdown_in_collapsed_blocks_is_rendered():
    markdown = pytest.importorskip("markdown")
    text = "<details><summary>More</summary>\n\nRun `make`.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n</details>\n\nEnd."
    html = markdown.markdown(text, extensions=["tables", "md_in_html", "docs.generate.collapsed_markdown"])
    assert "<code>make</code>" in html and "<table>" in html and "markdown=" not in html
    assert html.count("<details>") == html.count("</details>") == 1 and "<p>End.</p>" in html


def test_plain_pages_contain_every_page_and_no_link_to_a_notebook(tmp_path):
    write_plain_pages(tmp_path / "pages")
    pages = {path.relative_to(tmp_path / "pages").as_posix() for path in (tmp_path / "pages").rglob("*.md")}
    sources = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    notebooks = {path.relative_to(DOCS).with_suffix(".md").as_posix() for path in DOCS.rglob("*.ipynb")}
    assert len(notebooks) >= 3
    assert pages == sources | notebooks | {"project/changelog.md"}
    texts = {name: (tmp_path / "pages" / name).read_text(encoding="utf-8") for name in pages}
    assert [name for name, text in texts.items() if re.search(r"\]\([^)\s:]*\.ipynb", text)] == []
    assert "](getting-started/first-forecast.md)" in texts["index.md"]
    assert not list((tmp_path / "pages").rglob("*.py"))
