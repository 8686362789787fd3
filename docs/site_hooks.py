"""Hooks of the documentation site: add pages from outside docs/, and rewrite links so that they work on the site.

On disk a page links to a file by its relative path, such as ``../ENV.md``. Links to files that are pages of the site
point to those pages; links to code, which is not on the site, become the path as text.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

_ROOT = Path(__file__).resolve().parents[1]
_ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "ENV.md": "environment.md",
    "kernels/README.md": "kernels.md",
    "slurm/README.md": "slurm.md",
}
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^):#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_config(config):
    """Add pages that are not in the navigation under "More"."""
    named = re.findall(r"[\w/]+\.md", str(config.nav))
    pages = [path.relative_to(config.docs_dir).as_posix() for path in sorted(Path(config.docs_dir).rglob("*.md"))]
    if unnamed := [page for page in pages if page not in named]:
        config.nav.append({"More": unnamed})
    return config


def on_files(files, config):
    """Add the pages from outside docs/."""
    for source, page in _ELSEWHERE.items():
        text = (_ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_relinked(text, source=source, page=page)))
    return files


def on_page_markdown(markdown, page, **_):
    """Rewrite the links of a page in docs/."""
    own = page.file.src_uri
    return markdown if own in _ELSEWHERE.values() else _relinked(markdown, source=f"docs/{own}", page=own)


def _relinked(text: str, *, source: str, page: str) -> str:
    def turned(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["target"]))
        if target in _ELSEWHERE:
            shown = _ELSEWHERE[target]
        elif target.startswith("docs/"):
            shown = target.removeprefix("docs/")
        elif (_ROOT / target).exists():
            return link["text"] if target in link["text"] else f"{link['text']} (`{target}`)"
        else:
            return link[0]  # also broken on disk, which the strict build reports
        return f"[{link['text']}]({posixpath.relpath(shown, posixpath.dirname(page) or '.')}{link['anchor'] or ''})"

    return _LINK.sub(turned, text)
