"""Markdown extension that renders the Markdown inside ``<details>``, as forges do.

Python-Markdown leaves the content of an HTML block as it is, unless the block has the attribute ``markdown``, which
``md_in_html`` reads. This extension adds the attribute at build time, so that pages contain plain ``<details>``.
"""

import re
from typing import Any

from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor

_PRIORITY = 22  # before html_block (20), which reads the attribute, and after fenced code (25)


class _AddAttribute(Preprocessor):
    """Adds ``markdown="1"`` to every ``<details>`` at the start of a line."""

    def run(self, lines: list[str]) -> list[str]:
        return [re.sub(r"^<details(?=[ >])(?![^>]*markdown=)", '<details markdown="1"', line) for line in lines]


class CollapsedMarkdownExtension(Extension):
    """Renders Markdown inside ``<details>``; requires ``md_in_html``."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: D102
        md.preprocessors.register(_AddAttribute(md), "collapsed_markdown", _PRIORITY)


def makeExtension(**options: Any) -> CollapsedMarkdownExtension:
    """Return the extension, as Python-Markdown requires."""
    return CollapsedMarkdownExtension(**options)
