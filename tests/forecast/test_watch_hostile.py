"""A watch session, half of its frames damaged or hostile, makes every forecast that the good frames allow."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.forecast.hostile_frames import WRITERS
from tests.forecast.watch_runs import health, issues_of, make_watcher, write_frame
from tests.radar.radar_files import moment

# Two good frames around a single hostile one, and longer gaps: `--bridge 1` forecasts over the first kind only.
PATTERN = "ggggghghhgghghhhgghhhh" * 3
GOOD = [number for number, kind in enumerate(PATTERN) if kind == "g"]
HOSTILE = [number for number, kind in enumerate(PATTERN) if kind == "h"]
EXPECTED = {moment(k) for k in GOOD if k - 2 in GOOD}


def contents(out: Path) -> dict[str, tuple[np.ndarray, str]]:
    found = {}
    for path in out.glob("forecast_*.nc"):
        with h5py.File(path) as file:
            found[path.name] = file["reflectivity"][...], file.attrs["simcast_inputs"], file.attrs["simcast_bridged"]
    return found


def peak_bytes() -> int:
    """Return the peak of the resident memory of this process since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.ci  # reading bombs takes 20 s
def test_session_of_66_frames_of_which_half_are_hostile(model, tmp_path):
    assert len(GOOD) == 33 and len(HOSTILE) == len(WRITERS)
    outside, results = tmp_path / "outside", {}
    outside.mkdir()
    # 1. Without and with the hostile frames, as they arrive
    for name in ("good", "all"):
        folder, out = tmp_path / name, tmp_path / f"{name}-out"
        folder.mkdir()
        watcher = make_watcher(model, folder, out, bridge=1, late_minutes=400)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before, writers = peak_bytes(), iter(WRITERS)
        for number, kind in enumerate(PATTERN):
            if kind == "g":
                write_frame(folder / f"frame{number:02d}.nc", number)
            elif name == "all":
                next(writers)(folder, number, outside)
            if number % 20 == 19:
                watcher.scan()
        watcher.scan()
        assert watcher.scan() == 0
        assert peak_bytes() - before < 1 << 30
        assert issues_of(out) == EXPECTED
        results[name] = contents(out)
    # 2. The same forecasts
    assert results["good"].keys() == results["all"].keys()
    for name, (values, *texts) in results["good"].items():
        np.testing.assert_array_equal(results["all"][name][0], values)
        assert list(results["all"][name][1:]) == texts
    status = health(tmp_path / "all-out")
    # 3. Listed, except what is no file, and fields that no forecast needed
    listed = {item["file"] for item in status["problems"] if "file" in item}
    assert status["problem_counts"]["future"] == 2 and len(listed) >= len(WRITERS) - 7
    assert not listed & {f"frame{number:02d}.nc" for number in GOOD}
    assert "hunter2" not in (tmp_path / "all-out" / "health.json").read_text()
