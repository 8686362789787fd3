"""The page of estimated training costs has the numbers of the CSV, and the CSV those of the configurations."""

import pytest

from benchmarks import cost_table
from benchmarks.cost_table import RESULTS, cost_row, fill, paper_configs, read_rows

ROWS = {row["config"]: row for row in read_rows()}


def test_the_committed_page_has_the_committed_numbers():
    text = cost_table.PAGE.read_text(encoding="utf-8")
    assert fill(text, read_rows()) == text, "python -m benchmarks.cost_table --fill"
    assert len(cost_table.TABLE.findall(text)) == text.count("<!-- costs ") == text.count("<!-- end -->")


def test_every_configuration_of_the_paper_is_listed():
    assert sorted(ROWS) == sorted(paper_configs()) and len(ROWS) >= 26
    text = cost_table.PAGE.read_text(encoding="utf-8")
    assert [name for name in ROWS if f"| `{name}` |" not in text] == []


@pytest.mark.parametrize("name", ["teacher/meteonet-earthformer", "student/sevir"])
def test_rows_equal_a_new_computation(name):
    row = cost_row(name)
    assert row == ROWS[name], f"{RESULTS.name} is out of date: python -m benchmarks.cost_table"


def test_tables_have_at_most_eight_columns():
    text = cost_table.PAGE.read_text(encoding="utf-8")
    assert max(line.count(" | ") + 1 for line in text.splitlines() if line.startswith("|")) <= 8


def test_totals_of_the_first_paragraph_follow_from_the_table():
    hours = {name: float(row["h100_hours"]) for name, row in ROWS.items()}
    simvp = [hours[f"{stage}/sevir"] for stage in ("teacher", "student", "direct")]
    earthformer = sum(hours[f"{stage}/sevir-earthformer"] for stage in ("teacher", "student", "direct"))
    generative = hours["autoencoder/sevir"] + hours["diffusion/sevir"]
    text = " ".join(cost_table.PAGE.read_text(encoding="utf-8").split())
    assert "{:.1f}, {:.1f} and {:.1f} GPU-hours".format(*simvp) in text and f"{sum(simvp):.0f} in total" in text
    assert f"an estimated {earthformer:.1f} GPU-hours" in text and f"an estimated {generative:.0f} GPU-hours" in text


def test_the_command_checks_and_fills(tmp_path, monkeypatch, capsys):
    page = tmp_path / "costs.md"
    page.write_text("<!-- costs storage -->\nold\n<!-- end -->\n")
    monkeypatch.setattr(cost_table, "PAGE", page)
    assert cost_table.main(["--check"]) == 1 and "out of date" in capsys.readouterr().out
    assert cost_table.main(["--fill"]) == 0 and "| Data set |" in page.read_text()
    assert cost_table.main(["--check"]) == 0
