"""MkDocs hook: each notebook in the documentation is a page with its stored outputs; nothing is executed.

Links of other pages to ``first-forecast.ipynb`` and links inside a notebook to Markdown files work.
"""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from docs.generate.notebook_pages import notebook_to_markdown


class NotebookFile(File):
    """A notebook that MkDocs reads as Markdown."""

    def is_documentation_page(self) -> bool:
        """Return True: the file is a page."""
        return True

    @property
    def content_string(self) -> str:
        """The notebook as Markdown."""
        return notebook_to_markdown(Path(str(self.abs_src_path)))


def on_files(files: Files, config: Any) -> Files:
    """Replace the notebooks among the files of the site by pages."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        files.append(
            NotebookFile(
                file.src_uri, file.src_dir, config.site_dir, config.use_directory_urls, inclusion=file.inclusion
            )
        )
    return files
