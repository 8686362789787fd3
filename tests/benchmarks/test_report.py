"""The page of performance: what it holds, what changed since a commit, and that it is drawn anew."""

import subprocess

import pytest

from benchmarks import report
from benchmarks.report import compared, goals_part, page
from benchmarks.report_markdown import read
from tests.benchmarks.report_tables import OPENING, PEERS, STEPS


def test_what_changed_is_told_by_row_and_column():
    before, after = read(PEERS), read(PEERS.replace("2.5,2.0,0.4,2.0", "2.5,3.0,0.4,2.02"))
    assert compared("peers", before, before) == []
    assert compared("peers", before, after) == ["net ours step fp32 1x2: cpu_p50_s 2 -> 3 (1.50x)"], "1 % is no change"
    assert compared("peers", before[:3], after)[0] == "net ours step fp32 1x2: new"
    assert compared("peers", before, after[:3])[0] == "net ours step fp32 1x2: gone"


def test_the_page_holds_every_machine_note_and_goal():
    text = page({"cpu": {"peers": read(PEERS), "end_to_end": read(STEPS)}}, ["cpu-peers.png"])
    assert "## Measured on cpu" in text and "(performance/cpu-peers.png)" in text
    for name in ("optimisations.csv", "goals.csv"):
        for row in read((report.ROOT / "benchmarks" / name).read_text()):
            assert next(iter(row.values())).replace("|", "\\|") in text and (row.get("goal") or "") in text
    assert "| sm_90 |" in text and "make bench-check" in text
    assert "`make gpu`" in goals_part([{"issue": "x", "goal": "y", "needs": "z", "command": "make gpu"}])[1]


def test_the_committed_page_is_that_of_the_committed_tables():
    drawn = sorted(path.name for path in (report.PAGE.parent / "performance").glob("*.png"))
    text = report.PAGE.read_text(encoding="utf-8")
    assert all(f"(performance/{name})" in text for name in drawn)
    assert text == page(report.folders(), drawn), "make performance"


def test_it_writes_page_and_figures_and_compares_commits(tmp_path, monkeypatch, capsys):
    results = tmp_path / "results" / "cpu"
    results.mkdir(parents=True)
    (results / "peers.csv").write_text(PEERS)
    (results / "end_to_end.csv").write_text(STEPS)
    (results / "data_opening.csv").write_text(OPENING)
    (results / "scoring.csv").write_text("provider,shape\n")  # a run that was cut short
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    assert report.main(["--page", str(tmp_path / "performance.md")]) == 0
    text = (tmp_path / "performance.md").read_text()
    assert "4.00x" in text and "189,790" in text and "### Scoring" not in text
    assert {path.name for path in (tmp_path / "performance").iterdir()} == {"cpu-peers.png", "cpu-end_to_end.png"}
    monkeypatch.undo()
    with pytest.raises(SystemExit, match="no commit"):
        report.main(["--base", "no-such-revision"])
    git = ["git", "-C", str(report.ROOT), "rev-parse", "HEAD"]
    if subprocess.run(git, capture_output=True, check=False).returncode == 0:
        capsys.readouterr()
        assert report.main(["--base", "HEAD"]) == 0
        assert capsys.readouterr().out
