"""Write the documentation as plain Markdown, from which any site generator can build: ``build/pages``.

    python -m docs.generate.plain_pages build/pages

The folder is a copy of ``docs`` in which each notebook is a Markdown page with its stored outputs. ``CHANGELOG.md`` is
added as ``project/changelog.md``. Nothing is executed, and no page depends on the generator of the site.
"""

import re
import shutil
import sys
from pathlib import Path

from docs.generate.notebook_pages import notebook_to_markdown

DOCS = Path(__file__).resolve().parents[1]
_NOTEBOOK_LINK = re.compile(r"(\]\((?!\w+:)[^)\s#]+)\.ipynb(?=[)#])")


def write_plain_pages(folder: Path) -> None:
    """Write all pages, figures and styles of the documentation to ``folder``, whose earlier content is deleted.

    Raises:
        ValueError: an output of a notebook is an error.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(DOCS, folder, ignore=shutil.ignore_patterns("generate", "*.py", "__pycache__", "*.ipynb"))
    for notebook in sorted(DOCS.rglob("*.ipynb")):
        if ".ipynb_checkpoints" not in notebook.parts:
            page = folder / notebook.relative_to(DOCS).with_suffix(".md")
            page.write_text(notebook_to_markdown(notebook), encoding="utf-8")
    shutil.copy(DOCS.parent / "CHANGELOG.md", folder / "project" / "changelog.md")
    for page in sorted(folder.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        linked = _NOTEBOOK_LINK.sub(r"\1.md", text)
        if linked != text:
            page.write_text(linked, encoding="utf-8")


if __name__ == "__main__":
    write_plain_pages(Path(sys.argv[1]))
