"""The page of estimated step times has the numbers of the CSV, and the CSV those of the configurations."""

from benchmarks.roofline import step_estimate
from benchmarks.roofline.step_estimate import BATCH, CONFIGS, VARIANTS, estimated, fill, read_rows, totals

ROWS = read_rows()


def rows_of(name: str, variant: str) -> list[dict[str, str]]:
    return [row for row in ROWS if (row["config"], row["variant"]) == (name, variant)]


def test_the_committed_page_has_the_committed_numbers():
    text = step_estimate.PAGE.read_text(encoding="utf-8")
    assert fill(text, ROWS) == text, "python -m benchmarks.roofline.step_estimate --fill"
    changed = [{**row, "seconds": f"{2 * float(row['seconds'])}"} for row in ROWS]
    lines = set(fill(text, changed).splitlines()) - set(text.splitlines())
    assert sum(line.startswith("- ") for line in lines) == len(CONFIGS) and any(
        line.startswith("| all") for line in lines
    )


def test_rows_equal_a_new_computation():
    for variant in VARIANTS:
        new = estimated("direct/sevir-earthformer", variant, batch=BATCH)
        assert new == rows_of("direct/sevir-earthformer", variant), "python -m benchmarks.roofline.step_estimate"


def test_kernels_move_fewer_bytes_at_equal_flops():
    for name in CONFIGS:
        before, after = (totals(rows_of(name, variant)) for variant in VARIANTS)
        assert after["flops"] == before["flops"] and after["bytes"] < before["bytes"]


def test_the_command_fills_the_page(tmp_path, monkeypatch):
    page = tmp_path / "step-estimates.md"
    page.write_text("- SimVP: old.\n\n<!-- step estimates -->\nold\n<!-- end -->\n")
    monkeypatch.setattr(step_estimate, "PAGE", page)
    assert step_estimate.main(["--fill"]) == 0
    text = page.read_text()
    assert "old" not in text and "| elementwise |" in text and "- SimVP: " in text and text.count("GB before") == 1
