"""Deterministic scores compared with pysteps and scores, and the table of the documentation."""

from pathlib import Path

import pytest

from tests.verification.score_comparisons import ROWS, compare, markdown

PAGE = Path(__file__).parents[2] / "docs/results/compatibility.md"
EXACT = 1e-9


def test_scores_equal_other_libraries_and_the_documented_table(capsys):
    for library in ("pysteps", "scores", "xarray"):
        pytest.importorskip(library, reason=f"{library} is not installed: pip install -e '.[verify]'")
    rows = compare()
    with capsys.disabled():
        print(f"\n{markdown(rows)}")
    assert {title for title, *_ in rows} == set(ROWS)
    for title, library, difference in rows:
        assert difference < EXACT, (title, library)
    documented = [line for line in PAGE.read_text().splitlines() if Path(__file__).name in line]
    cells = [[cell.strip() for cell in line.split("|")[1:4]] for line in documented]
    assert [row[:2] for row in cells] == [
        [cell.strip() for cell in line.split("|")[1:3]] for line in markdown(rows).splitlines()
    ]
    assert all(float(value) < EXACT for *_, differences in cells for value in differences.split(","))
