"""Tables and figure of the performance pages: filled from CSV files, compared between commits."""

import re

import pytest

from benchmarks import performance_figure, tabulate
from benchmarks.tabulate import compare, fill, listing, read, table

STEPS = read("""case,provider,seconds,gb,ranks,commit
net,public,4.0,3.0,2,abc
net,ours,2.5,2.0,2,4e13725
big,ours,,1.0,2,4e13725
""")
MOST_COLUMNS, MOST_CHARACTERS = 8, 60


def test_the_committed_pages_have_the_committed_numbers():
    for page in tabulate.PAGES:
        text = page.read_text(encoding="utf-8")
        assert fill(text) == text, "make performance"
        assert len(tabulate.TABLE.findall(text)) == len(re.findall("<!-- (?:table|list) ", text))
        assert len(tabulate.TABLE.findall(text)) == text.count("<!-- end -->") > 0


def test_every_table_is_narrow():
    for page in tabulate.PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            if line.startswith("|"):
                cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
                assert len(cells) <= MOST_COLUMNS, f"{page.name}: {line}"
                assert max(map(len, cells)) <= MOST_CHARACTERS, f"{page.name}: {line}"


def test_the_summary_has_the_numbers_of_the_tables():
    text = " ".join(tabulate.PAGES[0].read_text(encoding="utf-8").split("[![")[0].split())
    ratios = performance_figure.step_ratios()
    for precision in performance_figure.COLOURS:
        first, second, third = (ratios[case, precision]["x.p50_s"] for case in performance_figure.NAMES)
        assert f"{first}, {second} and {third}" in text, precision
    saved = [100 * (1 - 1 / float(row["x.peak_gb"])) for row in ratios.values()]
    assert f"{min(saved):.0f} to {max(saved):.0f} % lower" in text
    results = performance_figure.TIMES.parent
    windows = {
        (row["provider"], row["layout"]): float(row["windows_per_core_s"])
        for row in read((results / "data_reading.csv").read_text(encoding="utf-8"))
        if (row["order"], row["cache"]) == ("in order", "warm")
    }
    ratio = windows["ours", "shards lz4"] / windows["Earthformer's loader", "gzip"]
    assert f"{ratio:.0f} times" in text
    scoring = read((results / "scoring.csv").read_text(encoding="utf-8"))
    assert round(float(scoring[0]["p50_s"]) / float(scoring[1]["p50_s"])) == 7 and "a seventh" in text
    rates = [float(row["samples_per_s"]) for row in read((results / "zero_stages.csv").read_text(encoding="utf-8"))]
    losses = [100 * (1 - rate / rates[0]) for rate in rates[1:]]
    assert f"{min(losses):.0f} to {max(losses):.0f} %" in text


def test_columns_rows_and_ratios_are_chosen():
    lines = table(STEPS, columns="case,provider,seconds", ratio="provider:public:seconds,gb").splitlines()
    assert lines[0] == "| case | provider | seconds | x.seconds | x.gb |"
    assert lines[3] == "| net | ours | 2.5 | 1.60 | 1.50 |"
    assert lines[4] == "| big | ours | - | - | - |", "no baseline of that case"
    assert lines[-1] == "All rows: ranks 2; commit abc, 4e13725.", (
        "a commit is text, even if it has the form of a number"
    )
    one = table(STEPS, where="case:big").splitlines()
    assert one[0].startswith("| case | provider |") and one[2].startswith("| big | ours |")
    with pytest.raises(ValueError, match="no row has case:none"):
        table(STEPS, where="case:none")


def test_columns_have_headings_units_and_baselines():
    columns = "ref.seconds>time,_theirs_(s),seconds>time,_ours_(s),gb/0.5>memory_(half_GB)"
    lines = table(STEPS, ratio="provider:public:seconds", keep="case:net,provider:ours", columns=columns).splitlines()
    assert lines[0] == "| time, theirs (s) | time, ours (s) | memory (half GB) |"
    assert lines[2] == "| 4 | 2.5 | 4 |"


def test_groups_have_the_largest_numbers():
    assert "| net | 2 | 4 |" in table(STEPS, group="case", columns="case,rows,seconds")
    ranks = read("ranks,megabits,seconds\n16,50,1.0\n2,50,2.5\n2,50,3.5\n2,,0.5\n")
    lines = table(ranks, group="ranks,megabits", columns="ranks,megabits,seconds").splitlines()
    assert lines[2:5] == ["| 2 | - | 0.5 |", "| 2 | 50 | 3.5 |", "| 16 | 50 | 1 |"], "sorted by number"


def test_shares_are_transposed_and_texts_are_a_list():
    rows = read("case,kinds,command\na,conv:0.25 norm:0.75,run a\nb,,\nc,conv:1.0,-\n")
    assert table(rows, shares="kinds:case").splitlines() == [
        "|  | a | c |", "| --- | --- | --- |", "| conv | 0.25 | 1 |", "| norm | 0.75 | - |",
    ]  # fmt: skip
    assert listing(rows, title="case", columns="kinds>Kinds,command>Command").splitlines() == [
        "- **a**", "    - Kinds: conv:0.25 norm:0.75", "    - Command: `run a`", "- **b**",
        "- **c**", "    - Kinds: conv:1.0",
    ]  # fmt: skip


def test_changed_numbers_are_listed_by_row_and_column():
    after = [dict(row) for row in STEPS]
    after[1]["seconds"], after[1]["gb"] = "5.0", "2.02"  # 1 % is no change
    assert compare(STEPS, after) == ["net ours 2: seconds 2.5 -> 5"]
    assert compare(STEPS[:1], STEPS[:2]) == ["net ours 2: new"]
    assert compare(STEPS, STEPS) == []


def test_the_command_checks_and_compares(tmp_path, monkeypatch, capsys):
    page = tmp_path / "performance.md"
    page.write_text("<!-- table goals.csv columns=quantity -->\nold\n<!-- end -->\n")
    monkeypatch.setattr(tabulate, "PAGES", (page,))
    assert tabulate.main(["--check"]) == 1
    assert "performance.md is out of date" in capsys.readouterr().out and "old" in page.read_text()
    assert tabulate.main([]) == 0 and "| quantity |" in page.read_text()
    assert tabulate.main(["--check"]) == 0
    with pytest.raises(SystemExit, match="is not a commit"):
        tabulate.main(["--base", "no-such-revision"])


def test_draws_the_figure(tmp_path):
    performance_figure.draw(tmp_path / "figures" / "bars.png")
    assert (tmp_path / "figures" / "bars.png").read_bytes().startswith(b"\x89PNG")
    assert performance_figure.FIGURE.is_file()
