"""The Python examples of docs/guides/python.md and evaluate.md run in the order of the page."""

import re
from pathlib import Path

import numpy as np
import pytest

from simcast_hpc.evaluation.entries import ForecastFile
from tests.archives import Row, make_archive, random_codes
from tests.generative_runs import make_runs

pytest.importorskip("pysteps")
GUIDES = Path(__file__).resolve().parents[2] / "docs" / "guides"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the archive and the runs that the pages name."""
    folder = tmp_path_factory.mktemp("guides")
    rows = [Row(f"E{number}", number, time_utc=f"2019-08-0{number + 1} 12:00:00") for number in range(2)]
    quickstart = folder / "runs" / "quickstart"
    make_runs(quickstart, make_archive(quickstart / "archive", random_codes(2, 14), rows=rows))
    return folder


def run_examples(page: str) -> dict:
    """Run all Python blocks of a page in one namespace, and return it."""
    blocks = re.findall(r"^```python\n(.*?)^```", (GUIDES / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    names: dict = {}
    for number, code in enumerate(blocks, 1):
        exec(compile(code, f"{page}, block {number}", "exec"), names)
    return names


def test_python_page(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    names = run_examples("python.md")
    assert names["first"].shape == (2, 16, 16) and names["selected"].shape == (2, 16, 16)
    assert names["members"].shape == (10, 4, 16, 16)
    assert names["codes"].dtype == np.uint8 and names["external"].shape == (1, 5, 16, 16)


def test_evaluate_page(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    names = run_examples("evaluate.md")
    assert ForecastFile(Path("mine.npz")).shape == (len(names["windows"]), 6, 16, 16)
    assert np.isfinite(names["scores"]["csi/mean"])
