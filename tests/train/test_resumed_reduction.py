"""A resumed bf16 run keeps the data type of its gradient reduction, unless the configuration sets another one."""

import json

import pytest
import yaml

from simcast_hpc.train.resumed_reduction import with_stored_reduction
from tests.archives import tiny_config


def _resumes(tmp_path, stored, *, checkpoint=True, **engine):
    """Return the reduction of a configuration whose run directory stores the section ``engine``."""
    config = tiny_config(tmp_path, engine={"precision": "bf16", **engine})
    step = config.run_dir / "checkpoints" / "step-00000002"
    step.mkdir(parents=True)
    if checkpoint:
        (step / "manifest.json").write_text(json.dumps({}))
    (config.run_dir / "config.yaml").write_text(stored if isinstance(stored, str) else yaml.safe_dump(stored))
    resumed = with_stored_reduction(config)
    assert resumed.science() == config.science()
    return resumed.engine.gradient_reduction


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({"engine": {"precision": "bf16"}}, "bf16"),
        ({"engine": {"gradient_reduction": "bf16"}}, "bf16"),
        ({"engine": {"gradient_reduction": "fp32"}}, "fp32"),
        ({"engine": None}, "fp32"),
        ("{", "fp32"),
    ],
)
def test_a_run_keeps_its_reduction(tmp_path, stored, expected):
    assert _resumes(tmp_path, stored) == expected


def test_a_value_that_is_set_applies(tmp_path, caplog):
    assert _resumes(tmp_path, {"engine": {}}, gradient_reduction="fp32") == "fp32"
    assert not caplog.records


def test_a_new_run_reduces_in_fp32(tmp_path):
    assert _resumes(tmp_path, {"engine": {}}, checkpoint=False) == "fp32"


def test_the_message_names_both_values(tmp_path, caplog):
    _resumes(tmp_path, {"engine": {}})
    assert "was started with engine.gradient_reduction=bf16" in caplog.text and "=fp32 to change" in caplog.text
