"""The frames of a folder of ``simcast data import``: tiles of shards, put together on the domain of the import."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simcast_hpc.config import DataError
from simcast_hpc.config.text_files import read_json_file
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.encoding import MISSING_CODE
from simcast_hpc.data.hdf5_files import OpenFiles
from simcast_hpc.data.hdf5_guard import HDF5_ERRORS
from simcast_hpc.data.shards.shard_format import read_index, read_manifest
from simcast_hpc.radar.frame_encoding import EncodedFrame, ModelEncoding
from simcast_hpc.radar.radar_frame import RadarGrid

from .arrived_frames import ArrivedFrames

_IMPORT, _DESCRIPTION = "import.json", "dataset.yaml"


class ImportedFrames(ArrivedFrames):
    """Frames by time of an imported folder, which contains only the slots and tiles that the import chose.

    Args:
        root: the folder.
        code: encoding, pixel size and cadence of the forecasts.

    Raises:
        DataError: the folder has no map, or its pixel values have another encoding than the forecasts.
    """

    def __init__(self, root: Path, code: ModelEncoding):
        super().__init__([], code)
        self._root, self._open = root, OpenFiles()
        # 1. Encoding and map
        own = read_spec(str(root / _DESCRIPTION))
        if own.encoding != code.spec.encoding:
            raise DataError(
                f"{root} is encoded as {own.name} and the forecasts as {code.spec.name}; give the radar files instead"
            )
        content = read_json_file(root / _IMPORT, error=DataError, what="the record of the import")
        try:
            self._grid = RadarGrid(**content["recipe"]["grid"])
        except (KeyError, TypeError) as error:
            raise DataError(f"{root / _IMPORT} contains no recipe with a grid; import the frames again") from error
        # 2. Parts of each time
        manifest = read_manifest(root)
        index = read_index(root, manifest)
        rows, columns = getattr(index, "tile_y", None), getattr(index, "tile_x", None)
        self._tile = manifest.grid
        self._parts: dict[datetime, list[tuple[str, int, int, int, int, str]]] = {}
        for event in np.flatnonzero(index.shard >= 0).tolist():
            top, left = (0, 0) if rows is None or columns is None else (int(rows[event]), int(columns[event]))
            shard, digest = manifest.shards[index.shard[event]].name, index.sha256[event].tobytes().hex()
            for number in range(manifest.frames_per_event):
                if index.gaps is not None and index.gaps[event, number]:
                    continue
                seconds = int(index.begin[event]) + round(number * own.step_minutes * 60)
                part = (shard, int(index.row[event]), number, top, left, digest)
                self._parts.setdefault(datetime.fromtimestamp(seconds, UTC), []).append(part)
        self.times = sorted(self._parts)

    def identity(self, time: datetime | None) -> list[Any] | None:
        """Return the checksums of the events that contain a time."""
        return None if time is None else [[part[-1], part[2]] for part in self._parts[time]]

    def _read(self, time: datetime) -> None:
        codes = np.full(self._grid.shape, MISSING_CODE, np.uint8)
        height, width = self._tile
        for shard, row, number, top, left, _ in self._parts[time]:
            try:
                stored = self._open.get(self._root / shard)["codes"]
                assert isinstance(stored, h5py.Dataset)
                tile = stored[row, number]
            except HDF5_ERRORS as error:
                self._give_up(time, DataError(f"{self._root / shard} cannot be read: {error}"))
                return
            place = codes[top : top + height, left : left + width]
            place[...] = tile[: place.shape[0], : place.shape[1]]
        frame = EncodedFrame(codes, self._grid, self._code.unit, time, self._root)
        self._keep({time: frame}, time)
