"""The page of performance: its arithmetic on a small table, what changed since a commit, and that it is drawn anew."""

import subprocess

import pytest

from benchmarks import report
from benchmarks.report import compared, end_to_end_part, goals_part, number, page, peers_part, read, table

PEERS = """case,provider,part,precision,shape,p50_s,cpu_p50_s,peak_gb,rounds,apart,public_commit,load,\
device,torch,commit,python
net,public,forward,fp32,1x2,1,1,3.0,2,1e-6,abc,1.5,a CPU,2.13,def,3.11
net,public,step,fp32,1x2,4.0,8.0,3.0,2,1e-6,abc,1.5,a CPU,2.13,def,3.11
net,ours,forward,fp32,1x2,1,1,2.0,2,1e-6,abc,1.5,a CPU,2.13,def,3.11
net,ours,step,fp32,1x2,2.5,2.0,2.0,2,1e-6,abc,1.5,a CPU,2.13,def,3.11
"""
STEPS = """case,input,precision,shape,parameters,training_gflop,needs_gb,p20_s,p50_s,p80_s,cpu_p50_s,samples_per_s,\
peak_gb,product_tflop_per_s,model_flop_utilisation,kinds,rounds,load,device,torch,commit,python
net,none,fp32,1x2,2500000,1234.5,0.5,1,1,1,2,1.0,0.7,0.1,0.25,convolution:0.750 other:0.250,1,2.0,a CPU,2.13,def,3.11
big,none,fp32,1x2,976274441,44728.8,26.94,,,,,,,,,,0,,a CPU,2.13,def,3.11
"""


def cells(text: str, first: str) -> list[str]:
    """Return the cells of the line that begins with ``first``."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_ours_stands_beside_the_public_code():
    found = cells("\n".join(peers_part(read(PEERS))), "net")
    assert found == [
        "net", "fp32", "1x2", "8 / 2", "4.00x", "4 / 2.5", "1.60x", "3 / 2", "1.50x", "1e-6", "2", "1.5", "abc", "def",
    ]  # fmt: skip


def test_steps_and_their_kinds():
    text = "\n\n".join(end_to_end_part(read(STEPS)))
    whole, shares = text.split("Shares of the calling")
    assert cells(whole, "net") == [
        "net", "none", "fp32", "1x2", "2.5 M", "1,234", "0.5", "2", "1", "1", "0.7", "0.1", "25 %", "2.0", "def",
    ]  # fmt: skip
    assert cells(whole, "big")[7:14] == ["-"] * 7, "counted only"
    assert cells(shares, "net") == ["net", "none", "fp32", "75 %", "25 %"]


def test_numbers_keep_three_digits():
    assert [number(text) for text in ("", "0.012345", "1.2345", "98.76", "44728.8")] == [
        "-", "0.0123", "1.23", "98.8", "44,729",
    ]  # fmt: skip
    assert table(("a",), [("b|c",)]).splitlines()[-1] == "| b\\|c |"


def test_what_changed_is_told_by_row_and_column():
    before, after = read(PEERS), read(PEERS.replace("2.5,2.0,2.0", "2.5,3.0,2.02"))
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
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    assert report.main(["--page", str(tmp_path / "performance.md")]) == 0
    assert "4.00x" in (tmp_path / "performance.md").read_text()
    assert {path.name for path in (tmp_path / "performance").iterdir()} == {"cpu-peers.png", "cpu-end_to_end.png"}
    monkeypatch.undo()
    with pytest.raises(SystemExit, match="no commit"):
        report.main(["--base", "no-such-revision"])
    git = ["git", "-C", str(report.ROOT), "rev-parse", "HEAD"]
    if subprocess.run(git, capture_output=True, check=False).returncode == 0:
        capsys.readouterr()
        assert report.main(["--base", "HEAD"]) == 0
        assert capsys.readouterr().out
