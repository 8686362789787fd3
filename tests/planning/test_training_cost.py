"""Estimated GPU-hours and storage: arithmetic, GPUs, and the bytes of a real checkpoint layout."""

import pytest

from simcast_hpc.config import ConfigError
from simcast_hpc.planning.training_cost import (
    DATASET_SIZES,
    GPUS,
    Work,
    checkpoint_bytes,
    find_gpu,
    latent_bytes,
    log_bytes,
    rollout_bytes,
)


def test_hours_of_the_sevir_teacher():
    work = Work(part="forward and backward", samples=446_475 * 8, flops_per_sample=2.49e12, precision="bf16")
    assert work.gpu_hours(GPUS["h100"], 0.3) == pytest.approx(446_475 * 8 * 2.49e12 / (0.3 * 989e12) / 3600)
    assert work.gpu_hours(GPUS["h100"], 0.3) == pytest.approx(8.3, abs=0.05)
    assert work.gpu_hours(GPUS["h100"], 0.1) == pytest.approx(3 * work.gpu_hours(GPUS["h100"], 0.3))
    assert work.gpu_hours(GPUS["a100"], 0.3) > 3 * work.gpu_hours(GPUS["h100"], 0.3)


def test_fp32_has_its_own_peak():
    parts = [Work(part="x", samples=1, flops_per_sample=1e15, precision=precision) for precision in ("bf16", "fp32")]
    bf16, fp32 = (part.gpu_hours(GPUS["h100"], 1.0) for part in parts)
    assert fp32 / bf16 == pytest.approx(989 / 67)


def test_unknown_gpu_lists_the_known_ones():
    assert find_gpu("mi300x").bf16_tflops == 1307
    with pytest.raises(ConfigError, match="--gpu k80 is unknown; choose from a100, h100, h200, mi250x, mi300x"):
        find_gpu("k80")


def test_storage_follows_from_shapes():
    assert checkpoint_bytes(10, average=False) == 120, "12 bytes per parameter"
    assert checkpoint_bytes(10, average=True, auxiliary=5) == 120 + 40 + 60
    sevir = DATASET_SIZES["sevir"].training_windows
    sizes = [rollout_bytes(sevir, frames_out=12, grid=(384, 384), pseudo_dtype=dtype) for dtype in ("uint8", "fp16")]
    assert sizes == [35_718 * 12 * 384 * 384, 2 * 35_718 * 12 * 384 * 384]
    assert latent_bytes(2, frames=36, channels=4, grid=(48, 48)) == 2 * 36 * 4 * 48 * 48 * 2
    assert log_bytes(1000, every_steps=20) == 50 * 500


def test_published_windows_are_three_per_event_on_sevir():
    size = DATASET_SIZES["sevir"]
    assert 3 * size.events == size.training_windows + 9_060 + size.test_windows
    assert size.frame_bytes == 18_979 * 49 * 384 * 384
