"""Settings of the process during a training run: TF32 and deterministic algorithms, restored for callers in Python."""

import os
from typing import Any

import pytest
import torch

from simcast_hpc.config import ConfigError
from simcast_hpc.train import trainer
from tests.archives import make_archive, random_codes, tiny_config
from tests.generative_runs import OneRank
from tests.train.conftest import data_section

BACKENDS: Any = torch.backends


def _settings() -> dict[str, Any]:
    return {
        "conv": BACKENDS.cudnn.conv.fp32_precision,
        "matmul": BACKENDS.cuda.matmul.fp32_precision,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "filled": torch.utils.deterministic.fill_uninitialized_memory,
    }


DEFAULT = {"conv": "ieee", "matmul": "ieee", "deterministic": False, "cudnn": (False, True), "workspace": None}
DETERMINISTIC = {"deterministic": True, "cudnn": (True, False), "workspace": ":4096:8", "filled": False}


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ({}, DEFAULT),
        ({"precision": "bf16"}, DEFAULT),
        ({"tf32": True}, DEFAULT | {"conv": "tf32", "matmul": "tf32"}),
        ({"deterministic": True}, DEFAULT | DETERMINISTIC),
        ({"deterministic": True, "tf32": True}, {**DEFAULT, **DETERMINISTIC, "conv": "tf32", "matmul": "tf32"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("fails", [False, True])
def test_a_run_sets_and_restores_them(tmp_path, monkeypatch, engine, expected, fails):
    seen: list[dict[str, Any]] = []

    def train(*_: Any) -> None:
        seen.append(_settings())
        if fails:
            raise RuntimeError("as in a failed run")

    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(trainer, "join_process_group", lambda **_: OneRank())
    monkeypatch.setattr(trainer, "_train", train)
    root = make_archive(tmp_path, random_codes(2, 11))
    config = tiny_config(tmp_path / "run", data=data_section(root), engine={"precision": "fp32"} | engine)
    before = _settings()
    if fails:
        with pytest.raises(RuntimeError, match="as in a failed run"):
            trainer.run(config)
    else:
        trainer.run(config)
    assert {name: seen[0][name] for name in expected} == expected
    assert _settings() == before


@pytest.mark.parametrize("value", ["", ":0:0", ":4096:2"])
def test_a_workspace_with_which_cublas_is_not_deterministic_is_rejected(tmp_path, monkeypatch, value):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", value)
    root = make_archive(tmp_path, random_codes(2, 11))
    engine = {"precision": "fp32", "deterministic": True}
    with pytest.raises(
        ConfigError, match=f"CUBLAS_WORKSPACE_CONFIG='{value}' is not deterministic; unset it or choose"
    ):
        trainer.run(tiny_config(tmp_path / "run", data=data_section(root), engine=engine))


def test_a_deterministic_workspace_of_the_caller_is_kept(tmp_path, monkeypatch):
    from simcast_hpc.distributed.deterministic_algorithms import deterministic_algorithms

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with deterministic_algorithms(True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
