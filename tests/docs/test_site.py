"""The built documentation site: it loads nothing from the network, and its search works from a disk."""

import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import pytest

from docs.generate.plain_pages import write_plain_pages
from tests.report.test_browser import browser, requested

ROOT = Path(__file__).resolve().parents[2]
# Elements and attributes from which a browser loads something; links in text are not loaded.
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "object": "data"}
NOT_LOADED = {"canonical", "next", "prev", "license", "alternate"}
TERMS = (
    "activation checkpointing",
    "gradient accumulation",
    "mixed precision",
    "optical flow",
    "precipitation",
    "throughput",
    "data parallel",
)
HITS = "return [...document.querySelectorAll('.md-search-result__item a.md-search-result__link')].map((a) => a.href)"
STATE = "return document.querySelector('.md-search-result__meta').textContent.trim()"

pytestmark = pytest.mark.ci


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site as `make docs` does, in a temporary folder."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed; run `make docs` once")
    folder = tmp_path_factory.mktemp("site")
    write_plain_pages(ROOT / "build" / "pages")
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", ".mkdocs.yml", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


class Loads(HTMLParser):
    """Collects the addresses that a page loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag in LOADED and attributes.get("rel") not in NOT_LOADED:
            self.addresses.append(attributes.get(LOADED[tag]) or "")


def remote(addresses: list[str]) -> list[str]:
    return [address for address in addresses if re.match(r"(https?:)?//", address)]


def test_addresses_of_a_page_are_found():
    text = '<script src="https://a/x.js"></script><a href="https://b">b</a><link rel="stylesheet" href="//c/d.css">'
    assert remote(Loads(text).addresses) == ["https://a/x.js", "//c/d.css"]


def test_pages_and_styles_load_nothing_from_the_network(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    found = {str(page.relative_to(site)): remote(Loads(page.read_text(encoding="utf-8")).addresses) for page in pages}
    assert {name: addresses for name, addresses in found.items() if addresses} == {}
    styles = {str(path): re.findall(r"url\(\s*['\"]?(?:https?:)?//", path.read_text()) for path in site.rglob("*.css")}
    assert {name: addresses for name, addresses in styles.items() if addresses} == {}


def search(chrome, site: Path, term: str) -> list[Path]:
    """Type a term into the search box of the home page, opened from the disk; return the pages found."""
    chrome.get(f"{(site / 'index.html').as_uri()}?q={quote(term)}")
    for _ in range(100):
        time.sleep(0.1)
        if re.search(r"\d|No matching", chrome.execute_script(STATE)):
            break
    pages = [
        Path(address.partition("#")[0].partition("?")[0].removeprefix("file://"))
        for address in chrome.execute_script(HITS)
    ]
    return list(dict.fromkeys(pages))


def test_search_from_a_disk_finds_the_terms_of_the_field(site):
    missing = []
    with browser() as chrome:
        assert search(chrome, site, "qzxqzx") == []
        for term in TERMS:
            found = search(chrome, site, term)
            texts = [re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.read_text(encoding="utf-8"))) for page in found]
            if not any(term in text.lower() for text in texts):
                missing.append(f"{term}: {[page.name for page in found]}")
        assert {url for url in requested(chrome) if not url.startswith("file:")} == set()
    assert missing == []
