"""The public functions on data sets: names, descriptions, windows by plain arguments."""

import subprocess
import sys

import numpy as np
import pytest

from simcast_hpc.config import ConfigError
from simcast_hpc.data import datasets
from tests.archives import make_archive, random_codes


def test_lists_and_reads_the_built_in_descriptions():
    assert {"sevir", "synthetic", "knmi"} <= set(datasets.dataset_names())
    assert datasets.read_dataset("sevir").step_minutes == 5
    with pytest.raises(ConfigError, match="did you mean sevir"):
        datasets.read_dataset("sevire")


def test_opens_windows_by_plain_arguments(tmp_path):
    codes = random_codes(2, 12)
    make_archive(tmp_path, codes)
    windows = datasets.open_windows(str(tmp_path), dataset="synthetic", frames=5, split="train", window_stride=6)
    assert len(windows) == 4 and windows.key(1) == ("E000", 6)
    np.testing.assert_array_equal(windows.read(3), codes[1, 6:11])
    assert datasets.open_windows(tmp_path, dataset="synthetic", frames=5, block_mean=2).grid == (8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "tset"}, "split='tset' is not a split; choose train, val, test, all"),
        ({"frames": 0}, "frames=0 must be an int of at least 1"),
        ({"window_stride": 0}, "window_stride"),
        ({"dataset": "sevire"}, "did you mean sevir"),
    ],
)
def test_rejects_invalid_arguments(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        datasets.open_windows(tmp_path, **({"dataset": "synthetic", "frames": 5} | options))


def test_importing_and_reading_data_imports_no_torch():
    code = (
        "import sys; import simcast_hpc.data.datasets as d; d.read_dataset('sevir'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
