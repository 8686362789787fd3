"""Persistence on real radar, compared with scores published with the data and computed by other code."""

import csv

import h5py
import numpy as np
import pytest

from simcast_hpc.baselines import Persistence
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.verification import count, protocol_for, scores, supported_thresholds
from tests.shared_data import shared

# data/radar/README.md: CSI at lead times 1, 3 and 6 of 4 minutes, issue frames 5, 8 and 11 of the ten test tiles.
PUBLISHED = {
    "0.5": (0.901, 0.794, 0.723),
    "2": (0.670, 0.487, 0.384),
    "5": (0.528, 0.288, 0.146),
    "10": (0.524, 0.211, 0.081),
    "30": (0.325, 0.064, 0.011),
}


@pytest.fixture(scope="module")
def test_tiles():
    with h5py.File(shared("data/radar/rr/2019/RR_MRMS4KM_20190610.h5")) as file:
        frames = np.asarray(file["rr"])[..., ::2].transpose(0, 3, 1, 2)
        events = [event.decode() for event in np.asarray(file["id"])]
    with shared("data/radar/rr/2019/RR_MRMS4KM_20190610.csv").open(newline="") as file:
        split = {row["id"]: row["split"] for row in csv.DictReader(file)}
    tiles = [row for row, event in enumerate(events) if split[event] == "test"]
    windows = [(events[row], frames[row, issue - 5 : issue + 7]) for issue in (5, 8, 11) for row in tiles]
    return [event for event, _ in windows], np.stack([window for _, window in windows])


def test_persistence_scores_equal_the_published_scores(test_tiles):
    events, windows = test_tiles
    spec = read_spec("mrms-4km")
    protocol = protocol_for("mrms", spec.threshold_codes(), spec.threshold_labels(), unit="mm/h")
    forecast = Persistence().forecast(windows[:, :6], 6)
    statistics = count(windows[:, 6:], forecast, protocol=protocol, events=events)
    result = scores(statistics, per_lead=True)
    for label, published in PUBLISHED.items():
        values = [result[f"csi/{label}/lead/{lead}"] for lead in (1, 3, 6)]
        assert values == pytest.approx(published, abs=5.1e-4), label
    assert len(statistics.events) == 10
    assert supported_thresholds(statistics) == ("0.5", "2", "5", "10")
