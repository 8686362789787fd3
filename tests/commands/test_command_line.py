"""The command line: what it calls, and that a foreseeable mistake is one message and a status, never a traceback."""

import re
import subprocess
import sys

import pytest
import torch

from simcast_hpc import cli
from tests.archives import make_archive, random_codes, tiny_config, write_trained


def _run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["simcast", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr()
    code = ended.value.code
    return (code if isinstance(code, int) else 0), told.out, told.err


@pytest.fixture
def trained(tmp_path):
    """A finished teacher and direct run of drawn weights, and an archive with test events."""
    torch.manual_seed(0)
    root = make_archive(tmp_path / "archive", random_codes(6, 11))
    for stage in ("teacher", "direct"):
        write_trained(tiny_config(tmp_path / stage, stage=stage, data={"dataset": "synthetic", "root": str(root)}))
    return tmp_path


def test_python_m_is_the_same_program():
    told = subprocess.run([sys.executable, "-m", "simcast_hpc", "--help"], capture_output=True, text=True, check=True)
    for command in ("data", "train", "rollout", "pipeline", "evaluate", "report"):
        assert command in told.stdout


def test_synth_writes_an_archive_once(tmp_path, monkeypatch, capsys):
    words = ["data", "synth", str(tmp_path / "a"), "--size", "16", "--frames", "6"]
    counts = ["--train", "2", "--val", "1", "--test", "1"]
    assert "written to" in _run(monkeypatch, capsys, *words, *counts)[1]
    assert "stand already in" in _run(monkeypatch, capsys, *words, *counts)[1]


def test_config_lists_shows_and_copies_shipped_configurations(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert re.search(r"^teacher/sevir +The short-horizon teacher", _run(monkeypatch, capsys, "config", "list")[1], re.M)
    shown = _run(monkeypatch, capsys, "config", "show", "pipeline/quickstart", "--resolved")[1]
    assert "frames_in: 6" in shown and "seed: 0" in shown
    assert _run(monkeypatch, capsys, "config", "copy", "teacher/sevir")[:2] == (0, "teacher-sevir.yaml\n")
    code, _, err = _run(monkeypatch, capsys, "config", "copy", "teacher/sevir")
    assert (code, err) == (2, "simcast: teacher-sevir.yaml exists; give another target\n")


def test_evaluate_scores_named_runs_side_by_side(trained, monkeypatch, capsys):
    runs = [f"short={trained / 'teacher'}", str(trained / "direct")]
    out = trained / "scores"
    code, said, _ = _run(monkeypatch, capsys, "evaluate", *runs, "--split", "all", "--out", str(out))
    assert code == 0 and (out / "all.json").is_file()
    for name in ("persistence", "short", "direct"):
        assert name in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["data", "synth", "{0}/x", "--size", "-5"], "size: .*greater than 0, got -5"),
        (["data", "synth", "{0}/x", "--train", "0"], "train_events: .*greater than 0, got 0"),
        (["train", "{0}/absent.yaml"], r"absent\.yaml is neither a configuration file nor the name"),
        (["pipeline", "{0}/direct/config.yaml"], "this is the configuration of one training run: .*`simcast train`"),
        (["evaluate", "{0}/absent"], r"absent is neither the folder of a run, a file of forecasts nor a baseline"),
        (["evaluate", "persistance"], r"nor a baseline; did you mean persistence\?"),
        (["evaluate", "{0}/direct", "{0}/direct"], r"two rows have one name"),
        (["evaluate", "{0}/direct", "{0}/other"], r"belongs to another run: sequence\.frames_out was 4, is 6"),
        (["evaluate", "{0}/direct", "--protocol", "sevir-globl"], "did you mean 'sevir-global"),
        (["report", "{0}/direct"], r"direct is one stage's run; score it first: `simcast evaluate"),
    ],
)
def test_a_mistake_is_one_message(trained, monkeypatch, capsys, arguments, says):
    sequence = {"frames_in": 3, "frames_out": 6, "teacher_frames_out": 2}
    data = {"dataset": "synthetic", "root": str(trained / "archive")}
    write_trained(tiny_config(trained / "other", stage="direct", data=data, sequence=sequence))
    code, _, err = _run(monkeypatch, capsys, *(word.format(trained) for word in arguments))
    assert code == 2
    assert "Traceback" not in err
    assert re.search(says, err, re.DOTALL), err


def test_torchruns_summary_ends_with_the_rejection(tmp_path):
    words = [
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "simcast_hpc",
        "data",
        "synth",
        str(tmp_path),
        "--size",
        "-5",
    ]
    told = subprocess.run([sys.executable, "-m", "torch.distributed.run", *words], capture_output=True, text=True)
    assert told.returncode == 1
    assert "size: Input should be greater than 0, got -5" in told.stderr.partition("Root Cause")[2], told.stderr


def test_a_rejection_does_not_stand_under_a_configuration(tmp_path, monkeypatch, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(f"name: a\nrun_dir: {tmp_path / 'run'}\nstage: teacher\ndata: {{dataset: synthetic}}\n")
    code, out, err = _run(monkeypatch, capsys, "train", str(config))
    assert (code, out) == (2, "") and err.startswith("simcast: data.root is not set")
    config.write_text(
        f"name: a\nrun_dir: {tmp_path / 'run'}\ndata: {{dataset: synthetic, root: {tmp_path}}}\n"
        "stages: {teacher: {max_steps: 1}}\n"
    )
    code, out, err = _run(monkeypatch, capsys, "pipeline", str(config))
    assert (code, out) == (2, "") and "holds neither CATALOG.csv nor prepared shards" in err


def test_a_file_that_cannot_be_written_is_one_message(trained, monkeypatch, capsys):
    (trained / "in-the-way").write_text("a file")
    code, _, err = _run(
        monkeypatch, capsys, "evaluate", str(trained / "direct"), "--split", "all", "--out", str(trained / "in-the-way")
    )
    assert code == 1 and "in-the-way" in err and "Traceback" not in err
