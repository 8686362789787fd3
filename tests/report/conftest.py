"""A report with an ensemble on one test set and rain rates on another, written once per session."""

from pathlib import Path

import pytest

from simcast_hpc.report import write_report
from tests.report.fake_run import WITH_ENSEMBLE, radar_file, score_file, write_run


@pytest.fixture(scope="session")
def ensemble_report(tmp_path_factory) -> Path:
    sets = [score_file(mean_csi=WITH_ENSEMBLE), radar_file()]
    also = {"also": [{"name": "mch", "data": {"dataset": "mch"}}]}
    run_dir = tmp_path_factory.mktemp("ensemble") / "run"
    return write_report(write_run(run_dir, test_sets=sets, config={"evaluation": also}))
