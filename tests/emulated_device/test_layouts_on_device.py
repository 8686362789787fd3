"""ZeRO stages, offload, precision, resume, and ranks with their devices: losses on the emulated device and the CPU."""

from pathlib import Path

import pytest

from tests.emulated_device.simcast_jobs import STEPS, Jobs, Result, srun
from tests.multi_rank.runs import losses, weights

pytestmark = pytest.mark.ci
Runs = tuple[Path, dict[str, Result]]
HOST = [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "parameters")]
FP32 = {
    **{f"zero{stage}": {"engine__zero_stage": stage} for stage in (0, 1, 2, 3)},
    **{f"zero{stage}-{where}": {"engine__zero_stage": stage, "engine__offload": where} for stage, where in HOST},
    "cuda-graph": {"engine__zero_stage": 1, "engine__cuda_graph": "true"},
    "deterministic": {"engine__zero_stage": 3, "engine__deterministic": "true", "ema__decay": 0.9},
}
BF16 = {
    f"bf16-{name}": options | {"engine__precision": "bf16", "ema__decay": 0.9}
    for name, options in FP32.items()
    if name not in ("zero0", "deterministic")
}
RANKS = {
    "two-devices": (srun(None, None), {"engine__zero_stage": 2}),
    "one-device-each": (srun("0", "1"), {"engine__zero_stage": 1}),
    "one-device-each-zero3": (srun("1", "0"), {"engine__zero_stage": 3, "ema__decay": 0.9}),
    "one-device-each-offload": (srun("0", "1"), {"engine__zero_stage": 2, "engine__offload": "optimizer"}),
}
ERRORS = {
    "three-ranks-two-devices": (
        srun(None, None, None),
        "rank 2 has local rank 2 on",
        "where 2 CUDA devices are visible",
    ),
    "one-device-for-two": (srun(None, None, devices=1), "ranks 0 and 1 use the same CUDA device", "1 visible"),
    "same-device": (srun("1", "1"), "ranks 0 and 1 use the same CUDA device", "1 visible"),
    "crossed-devices": (srun("0,1", "1,0"), "ranks 0 and 1 use the same CUDA device", "2 visible"),
    "one-without": (srun("0", ""), "rank 1 on", "sees no CUDA device, but rank 0 on"),
    "first-without": (srun("", "0"), "rank 0 on", "sees no CUDA device, but rank 1 on"),
    "invalid-entry": (srun("0", "7"), "rank 1 on", "sees no CUDA device, but rank 0 on"),
}


@pytest.fixture(scope="module")
def layouts(archive: Path, library: str, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    jobs = Jobs(tmp_path_factory.mktemp("layouts"), archive)
    jobs.write_config("teacher", "teacher", batch={"global_size": 6, "micro_size": 1})
    for name, options in (FP32 | BF16).items():
        jobs.train(name, config="teacher", **options)
    jobs.train("resumed", config="teacher", resumes="zero1", engine__zero_stage=3, engine__offload="parameters")
    jobs.train("same-layout", config="teacher", resumes="deterministic", **FP32["deterministic"])
    jobs.train("tf32", config="teacher", engine__tf32="true")
    for name, (ranks, options) in RANKS.items():
        jobs.train(name, config="teacher", ranks=ranks, **options)
    for name, (ranks, *_) in ERRORS.items():
        jobs.train(name, config="teacher", ranks=ranks)
    return jobs.folder, jobs.run(DEVICE_LIBRARY=library)


@pytest.fixture(scope="module")
def of_cpu(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """The losses of one CPU rank in fp32 and bf16, with ZeRO 1."""
    jobs = Jobs(tmp_path_factory.mktemp("cpu"), archive)
    jobs.write_config("teacher", "teacher", batch={"global_size": 6, "micro_size": 1})
    for precision in ("fp32", "bf16"):
        jobs.train(precision, config="teacher", engine__precision=precision)
    assert all(result.succeeded() for result in jobs.run().values())
    return {precision: losses(jobs.folder / precision) for precision in ("fp32", "bf16")}


@pytest.fixture(scope="module")
def expected(of_cpu: dict[str, list[float]]) -> list[float]:
    """The losses of the CPU in fp32."""
    assert len(of_cpu["fp32"]) == STEPS
    return of_cpu["fp32"]


@pytest.mark.parametrize("name", FP32)
def test_fp32_losses_equal_those_of_the_cpu(layouts: Runs, expected: list[float], name: str):
    assert layouts[1][name].succeeded()
    assert losses(layouts[0] / name) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", BF16)
def test_bf16_losses_are_near_those_of_the_cpu(layouts: Runs, of_cpu: dict[str, list[float]], name: str):
    """The bound of a run that resumes in another ZeRO stage: the unit roundoff of bf16."""
    assert layouts[1][name].succeeded()
    assert losses(layouts[0] / name) == pytest.approx(of_cpu["bf16"], rel=2**-8)
    assert losses(layouts[0] / name) != pytest.approx(of_cpu["fp32"], rel=1e-5), "the precision has an effect"


@pytest.mark.parametrize("name", RANKS)
def test_two_ranks_equal_one_cpu_rank(layouts: Runs, expected: list[float], name: str):
    assert layouts[1][name].succeeded()
    assert losses(layouts[0] / name) == pytest.approx(expected, rel=1e-5)


def test_run_resumes_with_offloaded_parameters(layouts: Runs, expected: list[float]):
    assert layouts[1]["resumed"].succeeded()
    assert losses(layouts[0] / "resumed") == pytest.approx(expected[1:], rel=1e-5)


def test_deterministic_run_resumes_bitwise(layouts: Runs):
    assert layouts[1]["same-layout"].succeeded()
    uninterrupted, resumed = (weights(layouts[0] / name) for name in ("deterministic", "same-layout"))
    assert all((resumed[key] == uninterrupted[key]).all() for key in uninterrupted)


def test_tf32_rounds_in_training_if_it_is_asked_for(layouts: Runs, expected: list[float]):
    assert layouts[1]["tf32"].succeeded()
    of_tf32 = losses(layouts[0] / "tf32")
    assert of_tf32 == pytest.approx(expected, rel=1e-2)
    assert of_tf32[0] != pytest.approx(expected[0], rel=1e-6)


@pytest.mark.parametrize("name", ERRORS)
def test_devices_that_do_not_fit_are_an_error_of_every_rank(layouts: Runs, name: str):
    ranks, *messages = ERRORS[name]
    result = layouts[1][name]
    assert all(result.status) and len(result.status) == len(ranks)
    for output in result.output:
        assert all(message in output for message in messages), output
        assert "Traceback" not in output
    assert not (layouts[0] / name / "checkpoints").exists()


def test_without_a_visible_device_a_run_warns_and_uses_the_cpu(
    archive: Path, library: str, expected: list[float], tmp_path: Path
):
    jobs = Jobs(tmp_path, archive)
    jobs.write_config("teacher", "teacher", batch={"global_size": 6, "micro_size": 1})
    jobs.train("teacher")
    result = jobs.run(DEVICE_LIBRARY=library, CUDA_VISIBLE_DEVICES="")["teacher"]
    assert result.succeeded()
    assert "torch finds no CUDA device (CUDA_VISIBLE_DEVICES=''); running on the CPU" in result.output[0]
    assert losses(tmp_path / "teacher") == pytest.approx(expected, rel=1e-5)
