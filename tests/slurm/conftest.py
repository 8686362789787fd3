"""A real Slurm of three nodes for the tests that need one."""

import os

import pytest

from tests.slurm.real_cluster import RealCluster, missing


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    if reason := missing():
        if os.environ.get("SIMCAST_REQUIRE_SYSTEM") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with RealCluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started
