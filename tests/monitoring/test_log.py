"""Logging by rank: which records of which loggers reach stderr."""

import logging
from pathlib import Path

import pytest

from simcast_hpc.cli import main
from simcast_hpc.data.data_errors import DataProblem
from simcast_hpc.monitoring.log import set_up_logging
from simcast_hpc.report.terminal_tables import plain_text

PACKAGES = ("simcast_hpc", "simcast_kernels")


@pytest.fixture(autouse=True)
def _restore_loggers():
    yield
    for logger in map(logging.getLogger, PACKAGES):
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
        logger.propagate = True


@pytest.mark.parametrize("package", PACKAGES)
def test_rank_0_logs_info_and_other_ranks_log_warnings_with_their_rank(capsys, package):
    logger = logging.getLogger(f"{package}.some.module")
    set_up_logging(0)
    logger.info("a step")
    assert capsys.readouterr().err.rstrip().endswith("a step")
    set_up_logging(3)
    logger.info("a step")
    logger.warning("a spike")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].endswith("[rank 3] a spike")
    assert len(logging.getLogger(package).handlers) == 1


def test_a_module_can_be_silenced_by_its_name(capsys):
    set_up_logging(0)
    silenced = logging.getLogger("simcast_hpc.storage.leases")
    silenced.setLevel(logging.ERROR)
    silenced.warning("stale")
    logging.getLogger("simcast_hpc.storage").warning("full")
    silenced.setLevel(logging.NOTSET)
    assert [line[9:] for line in capsys.readouterr().err.splitlines()] == ["full"]


HOSTILE = "a\n12:00:00 all good\r\x1b[2K\x1b]0;t\x07\u202ecod.h5\u2028\x85\udc80[bold]"
SAFE = r"a\n12:00:00 all good\r\x1b[2K\x1b]0;t\x07\u202ecod.h5\u2028\x85\udc80[bold]"


@pytest.mark.parametrize("value", [HOSTILE, Path(HOSTILE), ValueError(HOSTILE)], ids=["text", "path", "error"])
def test_values_cannot_forge_lines_or_control_the_terminal(capsys, value):
    logger = set_up_logging(0)
    logger.warning("%s: %d of %.1f", value, 3, 0.25)
    logger.warning("%(file)s", {"file": value})
    lines = capsys.readouterr().err.splitlines()
    assert [line[9:] for line in lines] == [f"{SAFE}: 3 of 0.2", SAFE]


def test_further_lines_of_a_message_do_not_begin_with_a_time(capsys):
    logger = set_up_logging(0)
    logger.warning("two\n12:00:00 lines")
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logger.exception("failed")
    lines = capsys.readouterr().err.splitlines()
    records = [line for line in lines if not line.startswith("    ")]
    assert [line[9:] for line in records] == ["two", "failed"] and "    12:00:00 lines" in lines
    assert all(line.isprintable() for line in lines)


def test_values_in_lists_and_representations_are_printable(capsys):
    set_up_logging(0).warning("%s %r", [HOSTILE], HOSTILE)
    [line] = capsys.readouterr().err.splitlines()
    assert line.isprintable() and "all good" in line


def test_errors_of_commands_are_printable(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["simcast", "train", "a\x1b[2K\u202e.yaml"])
    with pytest.raises(SystemExit):
        main()
    assert r"a\x1b[2K\u202e.yaml is neither a configuration file" in capsys.readouterr().err


def test_problems_of_data_and_tables_are_printable():
    assert str(DataProblem("gap", HOSTILE, HOSTILE, HOSTILE)) == f"[gap] {SAFE}, event {SAFE}: {SAFE}"
    assert plain_text("[bold]\x1b[2K\n").plain == "[bold]\\x1b[2K\n"
