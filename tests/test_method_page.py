"""The worked examples of ``docs/concepts/method.md`` and the glossary: computed with the code that they explain."""

import re
from pathlib import Path

import pytest
import torch

from simcast_hpc.config import LossConfig, SequenceConfig
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.distill.cut_windows import Frames, window_of_frames
from simcast_hpc.distill.rollout import roll_out
from simcast_hpc.losses import WeightedMSE

CONCEPTS = Path(__file__).resolve().parents[1] / "docs" / "concepts"
PAGE = re.sub(r"\s+", " ", (CONCEPTS / "method.md").read_text(encoding="utf-8"))
SEVIR = SequenceConfig()
SCALE = 100  # frame n has the value n / 100, so that values in [0, 1] identify frames


def extended_sequence() -> tuple[Frames, list[tuple[int, int]]]:
    """Return an extended sequence whose values are frame numbers, and the first and last input of each teacher call."""
    real = torch.arange(SEVIR.frames_in + SEVIR.frames_out).view(1, -1, 1, 1) / SCALE
    calls = []

    def teacher(inputs: torch.Tensor) -> torch.Tensor:
        first, last = (round(float(inputs[0, place]) * SCALE) for place in (0, -1))
        calls.append((first, last))
        return torch.arange(last + 1, last + 1 + SEVIR.teacher_frames_out).view(1, -1, 1, 1, 1) / SCALE

    last_frames = Frames(real[:, -SEVIR.frames_in :], torch.ones(1, SEVIR.frames_in, 1, 1, dtype=torch.bool))
    pseudo = roll_out(teacher, last_frames, frames_out=SEVIR.frames_out)
    values = torch.cat([real, pseudo.values], dim=1)
    return Frames(values, torch.ones_like(values, dtype=torch.bool)), calls


def frame_range(values: torch.Tensor) -> str:
    """Return ``first to last`` of frames whose values are their numbers."""
    numbers = (values.flatten() * SCALE).round().int().tolist()
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]} to {numbers[-1]}"


def test_table_of_teacher_calls():
    _, calls = extended_sequence()
    last_real = SEVIR.frames_in + SEVIR.frames_out - 1
    for number, (first, last) in enumerate(calls, start=1):
        real, pseudo = last_real - first + 1, last - last_real
        kinds = f"{real} real, {pseudo} pseudo" if pseudo else f"{real} real"
        row = f"| call {number} | {first} to {last} ({kinds}) | {last + 1} to {last + SEVIR.teacher_frames_out} |"
        assert row in PAGE


@pytest.mark.parametrize("k", [0, 5, 12])
def test_table_of_student_windows(k):
    extended, _ = extended_sequence()
    frames_in, frames_out = SEVIR.frames_in, SEVIR.frames_out
    window = window_of_frames(extended, torch.tensor([k]), frames_in=frames_in, frames_out=frames_out)
    targets, real = window.target[0], frames_out - k
    real_cell = f"{frame_range(targets[:real])} ({real})" if real else "none"
    pseudo_cell = f"{frame_range(targets[real:])} ({k})" if k else "none"
    assert f"| {k} | {frame_range(window.inputs[0])} | {real_cell} | {pseudo_cell} |" in PAGE


def test_example_of_the_loss():
    loss = WeightedMSE(LossConfig(), read_spec("sevir"))
    forecast = torch.tensor([100.0, 200.0, 200.0, 7.0]).view(1, 1, 1, 2, 2) / 255
    target = torch.tensor([120, 219, 230, 255], dtype=torch.uint8).view(1, 1, 1, 2, 2)
    value = float(loss(forecast, target, target != 255))
    assert f"/ 4 = {value:.4f}$" in PAGE


def test_glossary_is_sorted_and_defines_the_standard_terms():
    text = (CONCEPTS / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^### (.+)$", text, flags=re.MULTILINE)
    folded = [term.casefold().replace("-", " ") for term in terms]
    assert folded == sorted(folded)
    required = {
        "activation checkpointing", "data parallel", "gradient accumulation", "lead time", "mixed precision",
        "optical flow", "precipitation", "pseudo-frame", "rollout", "throughput", "ZeRO stage",
    }  # fmt: skip
    assert required - set(terms) == set()
