"""Tables of the performance page: filled from CSV files, compared between commits."""

import pytest

from benchmarks import tabulate
from benchmarks.tabulate import compare, read, table

STEPS = read("""case,provider,seconds,gb,ranks,commit
net,public,4.0,3.0,2,abc
net,ours,2.5,2.0,2,abc
big,ours,,1.0,2,abc
""")


def test_the_committed_page_has_the_committed_numbers():
    text = tabulate.PAGE.read_text(encoding="utf-8")
    assert tabulate.fill(text) == text, "make performance"
    assert len(tabulate.TABLE.findall(text)) == text.count("<!-- table ") == text.count("<!-- end -->")


def test_columns_rows_and_ratios_are_chosen():
    lines = table(STEPS, columns="case,provider,seconds", ratio="provider:public:seconds,gb").splitlines()
    assert lines[0] == "| case | provider | seconds | x seconds | x gb |"
    assert lines[3] == "| net | ours | 2.5 | 1.6 | 1.5 |"
    assert lines[4] == "| big | ours | - | - | - |", "no baseline of that case"
    assert lines[-1] == "*All rows: ranks 2; commit abc.*"
    one = table(STEPS, where="case:big").splitlines()
    assert len(one) == 3 and one[0].startswith("| case | provider |")
    with pytest.raises(ValueError, match="no row has case:none"):
        table(STEPS, where="case:none")


def test_groups_have_the_largest_numbers():
    assert "| net | 2 | 4 |" in table(STEPS, group="case", columns="case,rows,seconds")


def test_changed_numbers_are_listed_by_row_and_column():
    after = [dict(row) for row in STEPS]
    after[1]["seconds"], after[1]["gb"] = "5.0", "2.02"  # 1 % is no change
    assert compare(STEPS, after) == ["net ours 2: seconds 2.5 -> 5"]
    assert compare(STEPS[:1], STEPS[:2]) == ["net ours 2: new"]
    assert compare(STEPS, STEPS) == []


def test_the_command_checks_and_compares(tmp_path, monkeypatch, capsys):
    page = tmp_path / "performance.md"
    page.write_text("<!-- table goals.csv columns=goal -->\nold\n<!-- end -->\n")
    monkeypatch.setattr(tabulate, "PAGE", page)
    assert tabulate.main(["--check"]) == 1
    assert tabulate.main([]) == 0 and "| goal |" in page.read_text()
    assert tabulate.main(["--check"]) == 0
    with pytest.raises(SystemExit, match="is not a commit"):
        tabulate.main(["--base", "no-such-revision"])
