"""A model that is partitioned while it is built equals one that is built as a whole: initialization, warm start."""

import json

import pytest

from simcast_hpc.config import ConfigError
from tests.archives import tiny_config
from tests.multi_rank.partitioned_models import CASES
from tests.multi_rank.runs import losses, overrides, simcast, two_ranks, weights

pytestmark = pytest.mark.multi


@pytest.mark.parametrize("cases", [[1], pytest.param([0, 2, 3, 4, 5], marks=pytest.mark.slow)])
def test_partitioned_models_equal_complete_ones_bitwise(cases, tmp_path):
    """On two ranks under ZeRO 3; weights and moments after a step without and one with a learning rate."""
    two_ranks("tests.multi_rank.partitioned_models", str(tmp_path), *map(str, cases))
    found = [json.loads(line) for line in (tmp_path / "models.jsonl").read_text().splitlines()]
    assert [tuple(one["case"]) for one in found] == [CASES[number] for number in cases]
    for one in found:
        assert one["partitioned"] == [False, True], one
        assert one["random"], f"{one}: the generator is in another state"
        assert one["unequal"] == [[], []], one
        assert one["moved"] > 1e-3, "equal states that do not change would prove nothing"


@pytest.mark.slow
def test_a_run_is_bitwise_equal_also_after_a_resume(teacher_config, tmp_path):
    """Losses and exported weights; the partitioned run is resumed from its checkpoint of step 4."""
    options = {"engine__zero_stage": 3, "checkpoint__keep": 5}
    for name, value in (("whole", "false"), ("parts", "true")):
        changes = {**options, "engine__zero_init": value, "run_dir": tmp_path / name}
        simcast("torchrun", 2, ["train", str(teacher_config), *overrides(**changes)])
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    first = weights(tmp_path / "parts")
    assert all(tensor.equal(first[name]) for name, tensor in weights(tmp_path / "whole").items())
    (tmp_path / "parts" / "DONE.json").unlink()
    last = tmp_path / "parts" / "checkpoints" / "step-00000006"
    last.rename(tmp_path / "removed")
    simcast("torchrun", 2, ["train", str(teacher_config), *overrides(**changes)])
    assert all(tensor.equal(first[name]) for name, tensor in weights(tmp_path / "parts").items())


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"zero_stage": 2}, r"zero_init=true requires engine\.zero_stage=3 \(got 2\)"),
        ({"zero_stage": 3, "zero_hpz_partition_size": 2}, r"zero_init=true excludes engine\.zero_hpz_partition_size=2"),
    ],
)
def test_other_layouts_are_rejected(tmp_path, engine, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(tmp_path, engine={"zero_init": True, **engine})
