"""The study trains without DeepSpeed; its losses equal those of ``simcast train``."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks.evidence.arms import arm_named
from benchmarks.evidence.study import STUDY, read_study
from benchmarks.evidence.study_windows import Archive
from benchmarks.evidence.train_arm import train_unit
from simcast_hpc.inference.trained_model import load_trained
from tests.benchmarks.test_evidence_run import TINY


def test_losses_and_forecasts_equal_those_of_simcast_train(tmp_path):
    study = read_study(STUDY, (*TINY, "steps=5"))
    archive = Archive(study, tmp_path / "archive")
    archive.write()
    ours, expected = tmp_path / "direct-seed0", tmp_path / "deepspeed"
    curves = train_unit(study, arm_named(study, "direct"), seed=0, folder=ours, archive=archive)
    command = [sys.executable, "-m", "simcast_hpc", "train", str(ours / "config.yaml")]
    settings = ["--set", f"run_dir={expected}", "--set", "log.every_steps=1"]
    told = subprocess.run([*command, *settings], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    lines = [json.loads(line) for line in (expected / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    # fp32 on both sides, in another order of additions (fused Adam, ZeRO's flat buffers)
    assert curves["train_loss"] == [(step, pytest.approx(losses[step], rel=1e-4)) for step in range(1, 6)]
    codes = torch.from_numpy(archive.windows("test", frames=study.sequence.frames_in).read(0))[None]
    one, other = (load_trained(folder).forecast(codes, frames_out=4) for folder in (ours, expected))
    # Weights themselves may differ: a bias before a normalization has no gradient but rounding, which Adam enlarges.
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert one.abs().max() > 0
