"""Compare the extrapolation in torch with pysteps' Lucas-Kanade extrapolation: skill and time.

    python -m benchmarks.extrapolation --radar FOLDER [--threads 1] [--csv FILE]

FOLDER contains CATALOG.csv and the archive of ``configs/pipeline/radar.yaml``; without it only synthetic storms are
compared. Windows are 6 -> 6 frames. The MRMS tiles are those of the training and the validation split: the test split
is for models. KNMI, MCH and FMI are averaged to 4 km as in ``pipeline/radar``. A row has scores at the thresholds of
the data set (counts pooled over all windows), and the times of one run, in which both forecast the same batches in
turn.
"""

import argparse
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measurements import RESULTS, provenance, report, time_call, write_rows
from simcast_hpc.baselines import Baseline, Extrapolation, Persistence, PystepsExtrapolation
from simcast_hpc.config import DataConfig
from simcast_hpc.data.dataset_spec import Split
from simcast_hpc.data.open_windows import open_windows, target_spec
from simcast_hpc.data.synthetic import write_archive
from simcast_hpc.verification import ScoreProtocol, count, protocol_for, scores, supported_thresholds

FRAMES_IN, FRAMES_OUT = 6, 6
BATCH = 8
_MRMS: dict[str, Any] = {"dataset": "mrms-4km", "frame_stride": 2, "window_stride": 3, "max_percent_missing": None}
_COARSE: dict[str, Any] = {"block_mean": 4, "recode_as": "mrms-4km", "window_stride": 3, "max_percent_missing": None}
RADAR: dict[str, tuple[Split, dict[str, Any]]] = {
    "MRMS 4 km, training": ("train", _MRMS),
    "MRMS 4 km, validation": ("val", _MRMS),
    "MCH 2015": ("test", {**_COARSE, "dataset": "mch", "file_names": ("rr/2015/RR_MCH_20150515.h5",)}),
    "MCH 2017": ("test", {**_COARSE, "dataset": "mch", "file_names": ("rr/2017/RR_MCH_20170131.h5",)}),
    "KNMI 2010": ("test", {**_COARSE, "dataset": "knmi", "file_names": ("rr/2010/RR_KNMI_20100826.h5",)}),
    "FMI 2016": ("test", {**_COARSE, "dataset": "fmi", "file_names": ("dbz/2016/DBZ_FMI_20160928.h5",)}),
}
# Pixels per side, number of events and seed of the generator; validation indices, which no study trains or tests on.
SYNTHETIC = ((24, 40, 7), (96, 16, 8), (384, 4, 9))


def read_windows(config: DataConfig, split: Split) -> tuple[torch.Tensor, list[str]]:
    """Return all windows uint8 ``[N, T + T', H, W]`` of a split, and their events."""
    source = open_windows(config, split=split, frames=FRAMES_IN + FRAMES_OUT)
    numbers = range(len(source))
    return torch.from_numpy(np.stack([source.read(k) for k in numbers])), [source.key(k).event for k in numbers]


def test_data(radar: Path | None) -> Iterator[tuple[str, DataConfig, torch.Tensor, list[str]]]:
    """Yield the name of a set of windows, its data section, windows and events."""
    for size, events, seed in SYNTHETIC:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "storms"
            write_archive(
                root, seed=seed, events={"train": 1, "val": events, "test": 1}, size=size, frames_per_event=49
            )
            config = DataConfig(dataset="synthetic", root=root, window_stride=12)
            yield f"synthetic {size} x {size}", config, *read_windows(config, "val")
    for name, (split, values) in RADAR.items() if radar else ():
        config = DataConfig(root=radar, **values)
        yield name, config, *read_windows(config, split)


def compare(
    windows: torch.Tensor, events: list[str], baselines: dict[str, Baseline], protocol: ScoreProtocol
) -> list[dict[str, Any]]:
    """Return one row of scores and times per baseline."""
    forecasts: dict[str, list[torch.Tensor]] = {name: [] for name in baselines}
    seconds = dict.fromkeys(baselines, 0.0)
    for first in range(0, len(windows), BATCH):
        frames = windows[first : first + BATCH, :FRAMES_IN]
        for name, baseline in baselines.items():
            call = functools.partial(_append, forecasts[name], functools.partial(baseline.forecast, frames, FRAMES_OUT))
            seconds[name] += time_call(call).cpu
    rows = []
    for name, parts in forecasts.items():
        statistics = count(windows[:, FRAMES_IN:], torch.cat(parts), protocol=protocol, events=events)
        values = scores(statistics, per_lead=True)
        # A mean over the thresholds that are observed often enough, as in the tables of `simcast evaluate`.
        labels = supported_thresholds(statistics, min_events=min(5, len(set(events))))
        row: dict[str, Any] = {"provider": name, "thresholds": len(labels), "csi": _mean(values, labels)}
        for lead in (1, 3, FRAMES_OUT):
            row[f"csi_{lead}"] = _mean(values, labels, f"/lead/{lead}")
        row["mse_e3"] = round(1e3 * values["mse"], 3)
        row["bias_low"] = round(values[f"frequency_bias/{labels[0]}"], 2)
        row["bias_high"] = round(values[f"frequency_bias/{labels[-1]}"], 2)
        row["cpu_ms"] = round(1e3 * seconds[name] / len(windows), 2)
        rows.append(row)
    return rows


def _append(forecasts: list[torch.Tensor], call: Callable[[], torch.Tensor]) -> None:
    forecasts.append(call())


def _mean(values: dict[str, float], labels: Sequence[str], suffix: str = "") -> float:
    return round(sum(values[f"csi/{label}{suffix}"] for label in labels) / len(labels), 4)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, write and print the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--radar", type=Path, metavar="FOLDER", help="archive of configs/pipeline/radar.yaml")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path, default=RESULTS / "extrapolation.csv")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for name, config, windows, events in test_data(options.radar and options.radar.resolve()):
        spec = target_spec(config)
        protocol = protocol_for(spec.name, spec.threshold_codes(), spec.threshold_labels())
        baselines: dict[str, Baseline] = {
            "persistence": Persistence(),
            "pysteps-lk": PystepsExtrapolation(spec.encoding),
            "extrapolation": Extrapolation(),
        }
        about = {"data": name, "windows": len(windows), "events": len(set(events))}
        rows += [about | row | provenance("cpu") for row in compare(windows, events, baselines, protocol)]
        write_rows(rows, options.csv)  # keep the rows of an interrupted run
    report(rows, options.csv)


if __name__ == "__main__":
    main()
