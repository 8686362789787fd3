"""Logging by rank: which records of which loggers reach stderr."""

import logging

import pytest

from simcast_hpc.monitoring.log import set_up_logging

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
