"""The command line: expected errors give one message and a status, and light commands import no torch."""

import json
import re
import signal
import subprocess
import sys

import pytest
import torch

import simcast_hpc
from simcast_hpc import cli
from tests.archives import Row, make_archive, random_codes, tiny_config, write_trained


def _run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["simcast", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    done = capsys.readouterr()
    code = ended.value.code
    return (code if isinstance(code, int) else 0), done.out, done.err


@pytest.fixture
def trained(tmp_path):
    """A finished teacher and a finished direct run with random weights, and an archive with test events."""
    torch.manual_seed(0)
    root = make_archive(tmp_path / "archive", random_codes(6, 11))
    for stage in ("teacher", "direct"):
        write_trained(tiny_config(tmp_path / stage, stage=stage, data={"dataset": "synthetic", "root": str(root)}))
    return tmp_path


def test_python_m_runs_the_same_program():
    done = subprocess.run([sys.executable, "-m", "simcast_hpc", "--help"], capture_output=True, text=True, check=True)
    for command in ("data", "train", "rollout", "pipeline", "evaluate", "report"):
        assert command in done.stdout


def test_crash_in_compiled_code_prints_where_it_happened():
    program = (
        "import faulthandler, sys, simcast_hpc.cli as cli\n"
        "def crashing_command(arguments, prog_name): faulthandler._sigsegv()\n"
        "cli.app = crashing_command\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGSEGV
    assert "Segmentation fault" in done.stderr and "in crashing_command" in done.stderr


def test_synth_writes_an_archive_once(tmp_path, monkeypatch, capsys):
    words = ["data", "synth", str(tmp_path / "a"), "--size", "16", "--frames", "6"]
    counts = ["--train", "2", "--val", "1", "--test", "1"]
    assert "written to" in _run(monkeypatch, capsys, *words, *counts)[1]
    assert "exist already in" in _run(monkeypatch, capsys, *words, *counts)[1]


def test_config_lists_shows_and_copies_shipped_configurations(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert re.search(r"^teacher/sevir +Short-horizon teacher", _run(monkeypatch, capsys, "config", "list")[1], re.M)
    shown = _run(monkeypatch, capsys, "config", "show", "pipeline/quickstart", "--resolved")[1]
    assert "frames_in: 6" in shown and "seed: 0" in shown
    assert _run(monkeypatch, capsys, "config", "copy", "teacher/sevir")[:2] == (0, "teacher-sevir.yaml\n")
    code, _, err = _run(monkeypatch, capsys, "config", "copy", "teacher/sevir")
    assert (code, err) == (2, "simcast: teacher-sevir.yaml exists; give another target\n")


def test_evaluate_scores_named_runs_side_by_side(trained, monkeypatch, capsys):
    runs = [f"short={trained / 'teacher'}", str(trained / "direct")]
    out = trained / "scores"
    code, output, _ = _run(monkeypatch, capsys, "evaluate", *runs, "--split", "all", "--out", str(out))
    assert code == 0 and (out / "all.json").is_file()
    for name in ("persistence", "short", "direct"):
        assert name in output


def test_evaluate_of_a_run_applies_the_options_of_its_windows(trained, monkeypatch, capsys):
    rows = [Row(f"E{number}", number, pct_missing="5") for number in range(2)]
    gaps = make_archive(trained / "gaps", random_codes(2, 11, missing=0.05), rows=rows)
    words = [
        "evaluate",
        str(trained / "direct"),
        "--root",
        str(gaps),
        "--split",
        "all",
        "--tables-only",
        "--draws",
        "0",
    ]
    code, _, err = _run(monkeypatch, capsys, *words)
    assert code == 2 and "2 have more missing pixels than the limit" in err
    # 7 of 11 frames: windows start at 0 in both events (the run's stride is 12), or at 0 and 4.
    for options, windows in (([], 2), (["--window-stride", "4"], 4)):
        out = trained / f"scores-{windows}"
        assert _run(monkeypatch, capsys, *words, "--max-percent-missing", "5", *options, "--out", str(out))[0] == 0
        assert json.loads((out / "all.json").read_text())["windows"] == windows


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["data", "synth", "{0}/x", "--size", "-5"], "size: .*greater than 0, got -5"),
        (["data", "synth", "{0}/x", "--train", "0"], "train_events: .*greater than 0, got 0"),
        (["train", "{0}/absent.yaml"], r"absent\.yaml is neither a configuration file nor the name"),
        (["pipeline", "{0}/direct/config.yaml"], "this is the configuration of one training run: .*`simcast train`"),
        (["evaluate", "{0}/absent"], r"absent is neither a run directory, a forecast file nor a baseline"),
        (["evaluate", "persistance"], r"nor a baseline; did you mean persistence\?"),
        (["evaluate", "{0}/direct", "{0}/direct"], r"two rows have the same name"),
        (["evaluate", "{0}/direct", "{0}/other"], r"belongs to another run: sequence\.frames_out was 4, is 6"),
        (["evaluate", "{0}/direct", "--protocol", "sevir-globl"], "did you mean 'sevir-global"),
        (["evaluate", "{0}/direct", "--frames-in", "4"], r"--frames-in 4 is not allowed with a run, .* it \(3\)"),
        (["evaluate", "{0}/direct", "--frames-out", "4"], r"--frames-out 4 is not allowed with a run, .* it \(4\)"),
        (["evaluate", "{0}/direct", "--frame-stride", "2"], r"--frame-stride 2 is not allowed with a run, .* it \(1\)"),
        (["evaluate", "{0}/direct", "--dataset", "hko7"], r"--dataset hko7 is not allowed .* it \(synthetic\)"),
        (["evaluate", "{0}/direct", "--window-stride", "0"], r"window_stride: .*greater than 0, got 0"),
        (["report", "{0}/direct"], r"direct is the run of one stage; score it first: `simcast evaluate"),
    ],
)
def test_invalid_input_is_one_message(trained, monkeypatch, capsys, arguments, says):
    sequence = {"frames_in": 3, "frames_out": 6, "teacher_frames_out": 2}
    data = {"dataset": "synthetic", "root": str(trained / "archive")}
    write_trained(tiny_config(trained / "other", stage="direct", data=data, sequence=sequence))
    code, _, err = _run(monkeypatch, capsys, *(word.format(trained) for word in arguments))
    assert code == 2
    assert "Traceback" not in err
    assert re.search(says, err, re.DOTALL), err


def test_torchrun_summary_contains_the_error(tmp_path):
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
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", *words], capture_output=True, text=True)
    assert done.returncode == 1
    assert "size: Input should be greater than 0, got -5" in done.stderr.partition("Root Cause")[2], done.stderr


def test_rejected_run_prints_no_configuration(tmp_path, monkeypatch, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(f"name: a\nrun_dir: {tmp_path / 'run'}\nstage: teacher\ndata: {{dataset: synthetic}}\n")
    code, out, err = _run(monkeypatch, capsys, "train", str(config), "--print-config")
    assert (code, out) == (2, "") and err.startswith("simcast: data.root is not set")
    config.write_text(
        f"name: a\nrun_dir: {tmp_path / 'run'}\ndata: {{dataset: synthetic, root: {tmp_path}}}\n"
        "stages: {teacher: {max_steps: 1}}\n"
    )
    code, out, err = _run(monkeypatch, capsys, "pipeline", str(config), "--print-config")
    assert (code, out) == (2, "") and "contains neither CATALOG.csv nor prepared shards" in err


def test_unwritable_output_is_one_message(trained, monkeypatch, capsys):
    (trained / "in-the-way").write_text("a file")
    code, _, err = _run(
        monkeypatch, capsys, "evaluate", str(trained / "direct"), "--split", "all", "--out", str(trained / "in-the-way")
    )
    assert code == 2 and "in-the-way cannot be written" in err and "Traceback" not in err


_HEAVY = ("torch", "deepspeed", "numpy", "h5py", "matplotlib", "rich")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ("--help", 0),
        ("--version", 0),
        ("config list", 0),
        ("train teacher/sevir --set batch.micro_sise=2", 2),
        ("pipeline pipeline/absent", 2),
    ],
)
def test_light_commands_import_no_heavy_package(arguments, status):
    program = f"""
import atexit, sys, time
from simcast_hpc import cli
atexit.register(lambda: print([name for name in {_HEAVY} if name in sys.modules], time.process_time()))
cli.main()
"""
    command = [sys.executable, "-c", program, *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    imported, _, seconds = done.stdout.splitlines()[-1].rpartition(" ")
    assert (done.returncode, imported) == (status, "[]"), done.stderr
    assert float(seconds) < 1.5, "CPU time; 0.25 s on an idle machine"


def test_version_is_printed_with_the_commit(monkeypatch, capsys):
    code, output, _ = _run(monkeypatch, capsys, "--version")
    assert code == 0 and re.fullmatch(rf"simcast {re.escape(simcast_hpc.__version__)} \(commit \S+\)\n", output)


def test_brackets_in_a_file_name_are_printed(tmp_path, monkeypatch, capsys):
    name = "a[b].h5"
    (tmp_path / name).write_bytes(b"no HDF5")
    arguments = ["evaluate", str(tmp_path / name), "--dataset", "synthetic", "--root", str(tmp_path)]
    code, _, err = _run(monkeypatch, capsys, *arguments)
    assert code != 0 and name in err and "Traceback" not in err
