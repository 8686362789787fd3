"""Markdown extension that renders formulas as MathML at build time, so that pages need no script and no network.

Formulas are written as LaTeX, ``$x^2$`` in a line or ``$$`` around a block, which other generators also read.
``pymdownx.arithmatex`` (with ``generic: true``) finds them.
"""

import html
import re
from typing import Any

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.postprocessors import Postprocessor

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<open>[(\[])(?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


class _ToMathML(Postprocessor):
    """Replaces the elements of ``pymdownx.arithmatex`` in the HTML of a page."""

    def run(self, text: str) -> str:
        return _FORMULA.sub(self._element, text)

    @staticmethod
    def _element(match: re.Match[str]) -> str:
        latex = html.unescape(match["latex"]).strip()
        display = "block" if match["open"] == "[" else "inline"
        return f'<{match["tag"]} class="formula">{convert(latex, display=display)}</{match["tag"]}>'


class MathMLExtension(Extension):
    """Renders LaTeX as MathML; requires ``pymdownx.arithmatex`` with ``generic: true``."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: D102
        md.postprocessors.register(_ToMathML(md), "mathml", 1)  # after the HTML of blocks is inserted


def makeExtension(**options: Any) -> MathMLExtension:
    """Return the extension; Python-Markdown calls this function."""
    return MathMLExtension(**options)
