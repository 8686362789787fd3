"""Terminal output: the same numbers as the report, for any width; and the command ``simcast report``."""

from io import StringIO

import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from simcast_hpc.cli import app
from simcast_hpc.config import ConfigError
from simcast_hpc.report import (
    ResultsError,
    print_leaderboard,
    print_scores,
    print_tables,
    read_boards,
    test_set_section,
    write_picture,
)
from simcast_hpc.report.pipeline_results import read_results
from tests.report.fake_run import MEAN_CSI, WITH_ENSEMBLE, score_file, write_json, write_run


def _printed(run_dir, *, width: int) -> str:
    console = Console(file=StringIO(), width=width)
    print_tables(run_dir, console=console)
    return console.file.getvalue()


def _rows(printed: str) -> dict[str, list[str]]:
    lines = (line.replace("┃", "│").split("│") for line in printed.splitlines() if line[:1] in "│┃" and line)
    return {cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for cells in lines}


def test_rows_are_forecasts_in_a_wide_terminal(tmp_path):
    rows = _rows(_printed(write_run(tmp_path / "run"), width=120))
    assert rows["Forecast"] == ["5 min", "10 min", "15 min", "20 min", "25 min", "30 min", "Mean"]
    assert rows["student"] == ["0.614", "0.573", "0.461", "0.373", "0.318", "0.269", "0.435"]
    assert set(rows) == {"Forecast", *MEAN_CSI}


def test_table_is_transposed_in_a_narrow_terminal(tmp_path):
    rows = _rows(_printed(write_run(tmp_path / "run"), width=60))
    assert rows["Lead time"] == list(MEAN_CSI)
    assert rows["10 min"] == ["0.468", "0.552", "0.573", "0.555"]
    assert "Mean" in rows


def test_names_are_not_interpreted_as_markup(tmp_path):
    scores = score_file(mean_csi={**MEAN_CSI, "[red]mine": (0.1,) * 6}, title="[bold]storms[/bold]")
    printed = _printed(write_run(tmp_path / "run", test_sets=[scores]), width=120)
    assert "[red]mine" in printed and "[bold]storms[/bold]" in printed


def test_findings_are_printed(tmp_path):
    printed = " ".join(_printed(write_run(tmp_path / "run"), width=400).split())
    assert "The mean CSI of student is higher than that of persistence at every lead time after the first" in printed
    assert "do not show that one training method is better" in printed


def test_print_scores_lists_the_thresholds_of_the_mean(tmp_path):
    write_json(tmp_path / "test.json", score_file())
    console = Console(file=StringIO(), width=400)
    print_scores(tmp_path / "test.json", console=console)
    printed = " ".join(console.file.getvalue().split())
    assert "Mean CSI is the mean over thresholds with at least" in printed and "16, 74, 133" in printed
    assert "counts pooled over lead times, which differs from the last column, over the same thresholds" in printed


def test_command_writes_the_report_and_prints_its_path(tmp_path):
    run_dir = write_run(tmp_path / "run", steps={"direct": 100})
    (run_dir / "scores" / "test.example.npz").unlink()
    result = CliRunner().invoke(app, ["report", str(run_dir)], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == str(run_dir / "report" / "index.html")
    assert (run_dir / "report" / "index.html").is_file()
    assert "persistence" in result.stdout


def _leaderboard(tmp_path, *, width: int, by: str, csv: bool = False) -> str:
    write_json(tmp_path / "test.json", score_file(mean_csi=WITH_ENSEMBLE))
    console = Console(file=StringIO(), width=width)
    print_leaderboard([tmp_path / "test.json"], by=by, csv_path=tmp_path / "all.csv" if csv else None, console=console)
    return console.file.getvalue()


def test_leaderboard_fits_100_columns(tmp_path):
    printed = _leaderboard(tmp_path, width=100, by="csi/16")
    assert max(map(len, printed.splitlines())) <= 100
    rows = _rows(printed)
    head = rows["rank"]
    assert head[:2] == ["forecast", "csi/16"] and len(head) >= 5, "more scores follow"
    values = [float(rows[str(rank)][1].split(" [")[0]) for rank in range(1, 6)]
    assert values == sorted(values, reverse=True)
    assert all("[" in rows[str(rank)][1] and "[" not in "".join(rows[str(rank)][2:]) for rank in range(1, 6))
    assert "--csv FILE" in printed and "higher is better" in " ".join(printed.split())


def test_narrow_leaderboard_keeps_the_sorted_score(tmp_path):
    printed = _leaderboard(tmp_path, width=60, by="crps", csv=True)
    rows = _rows(printed)
    assert rows["rank"][:2] == ["forecast", "crps"] and rows["1"][0] == "diffusion"
    assert "--csv" not in printed and "lower is better" in " ".join(printed.split())
    assert "frequency_bias/219" in (tmp_path / "all.csv").read_text(encoding="utf-8")


def test_bias_is_sorted_by_its_distance_from_1(tmp_path):
    scores = score_file()
    for name, bias in {"persistence": 1.4, "teacher": 0.95, "student": 2.5, "direct": 0.5}.items():
        for by_key in scores["scores"][name].values():
            by_key["frequency_bias/16"] = bias
    write_json(tmp_path / "test.json", scores)
    (board, *_) = read_boards([tmp_path / "test.json"], by="frequency_bias/16")
    assert [row.name for row in board.rows] == ["teacher", "persistence", "direct", "student"]


def test_command_writes_the_example_frames_as_a_picture(tmp_path):
    run_dir = write_run(tmp_path / "run", steps={"direct": 100})
    target = tmp_path / "figures" / "storm.png"
    write_picture(run_dir, target)
    with Image.open(target) as picture:
        assert picture.width > 900 and picture.height > 900
    (run_dir / "scores" / "test.example.npz").unlink()
    with pytest.raises(ResultsError, match="has no example window"):
        write_picture(run_dir, target)
    result = CliRunner().invoke(app, ["report", str(run_dir / "scores" / "test.json"), "--picture", str(target)])
    assert isinstance(result.exception, ConfigError) and "requires the run directory" in str(result.exception)


def test_rows_of_the_picture_are_named_and_scored(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(test_set_section, "overview", lambda inputs, panels, **_: shown.extend(panels))
    test_set = read_results(write_run(tmp_path / "run")).test_sets[0]
    test_set_section.slide(test_set.scores, test_set.example)
    assert [(panel.title, panel.note) for panel in shown[:3]] == [
        ("observed", ""),
        ("persistence", "mean CSI 0.378"),
        ("teacher, rolled out", "mean CSI 0.438"),
    ]


def test_scores_of_some_forecasts_and_of_some_files_share_a_table(tmp_path):
    plain = score_file(mean_csi=WITH_ENSEMBLE)
    requested = score_file(mean_csi=WITH_ENSEMBLE)
    for by_key in requested["scores"]["diffusion"].values():
        by_key["crps_reliability"] = 0.01
    for by_key in requested["scores"]["direct"].values():
        by_key |= {"csi/16": 0.0123, "crps_uncertainty": 0.1}
    for name, content in (("plain", plain), ("requested", requested)):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "test.json", content)
    (board, *_) = read_boards([tmp_path / "plain", tmp_path / "requested"], by="crps_reliability")
    names = [row.name for row in board.rows]
    assert names[0] == "diffusion" and names.count("persistence") == 1, "equal common scores are one row"
    assert "requested/direct" in names and "direct" in names, "different scores are two rows"
    with pytest.raises(ResultsError, match=r"'CSI/16' under .* choose from csi/mean, csi/16"):
        read_boards([tmp_path / "plain"], by="CSI/16")
    with pytest.raises(ResultsError, match=r"'ets/mean' under .*; ets is computed by --scores ets"):
        read_boards([tmp_path / "plain"], by="ets/mean")
    console = Console(file=StringIO(), width=80)
    print_leaderboard([tmp_path / "requested"], by="crps_uncertainty", console=console)
    assert "highest first" in console.file.getvalue()
