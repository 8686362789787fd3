"""Windows read by the ranks of a spatial group together: equal to whole windows, with each frame read by one rank."""

from pathlib import Path

import numpy as np
import pytest
import torch

from simcast_hpc.config import DataConfig
from simcast_hpc.data.archive_windows import ArchiveSource
from simcast_hpc.data.crop_positions import CropPositions
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.frame_share import FrameShare, frame_share
from simcast_hpc.data.resample import ResampledSource
from simcast_hpc.data.shards.shard_reader import ShardSource
from simcast_hpc.data.synthetic import write_archive
from tests.data.shards import prepared

_FRAMES = 7


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """An archive of frames of one chunk each, 64 KiB, and its shards."""
    root = tmp_path_factory.mktemp("archive") / "storms"
    write_archive(root, seed=5, events={"train": 2}, size=256, frames_per_event=14)
    return root, prepared(root, tmp_path_factory.mktemp("shards") / "shards")


def _open(folders: tuple[Path, Path], kind: str, frame_stride: int = 1):
    source_type, root = (ArchiveSource, folders[0]) if kind == "archive" else (ShardSource, folders[1])
    spec = read_spec("synthetic")
    source = source_type(spec, root, split="train", frames=_FRAMES, window_stride=2, frame_stride=frame_stride)
    return ResampledSource(source, spec=spec, target=spec, factor=2) if kind == "resampled" else source


@pytest.mark.parametrize(
    ("kind", "stride"), [("archive", 1), ("archive", 2), ("shards", 1), ("shards", 2), ("resampled", 1)]
)
@pytest.mark.parametrize("size", [2, 3, 5])
def test_shares_of_all_ranks_are_the_whole_window(folders, kind, stride, size):
    source = _open(folders, kind, stride)
    shares = [FrameShare(source, rank=rank, size=size) for rank in range(size)]
    for index in (0, len(source) - 1):
        parts = [torch.from_numpy(share.read(index))[None] for share in shares]
        whole = [share.complete(parts[0], lambda _, dim, parts=parts: torch.cat(parts, dim)) for share in shares]
        assert all(np.array_equal(window[0].numpy(), source.read(index)) for window in whole)
        assert shares[0].key(index) == source.key(index)
    assert len(shares[0]) == len(source)


def test_each_frame_is_read_by_one_rank(folders):
    """Bytes that this process reads from files, counted by the kernel, after the check of the chunks of the event."""
    whole = _bytes_read(_open(folders, "shards"))
    shares = [_bytes_read(FrameShare(_open(folders, "shards"), rank=rank, size=2)) for rank in range(2)]
    assert whole > 10_000
    assert sum(shares) < 1.1 * whole
    assert max(shares) < 0.65 * whole  # 4 of 7 frames, which differ in size


def _bytes_read(source) -> int:
    source.read(1)  # of the same event
    before = _counter()
    source.read(0)
    return _counter() - before


def _counter() -> int:
    io = Path("/proc/self/io").read_text(encoding="utf-8")
    return int(dict(line.split(": ") for line in io.splitlines())["rchar"]) - len(io)


def test_whole_windows_where_shares_do_not_suffice(folders):
    source, spec = _open(folders, "shards"), read_spec("synthetic")
    data = {"dataset": "synthetic", "root": folders[1]}
    uniform = CropPositions(DataConfig.model_validate(data | {"crop": 64}), spec, seed=1)
    chosen = {"size": 64, "minimum_coverage": 0.5}
    by_pixels = CropPositions(DataConfig.model_validate(data | {"crop": chosen}), spec, seed=1)
    assert frame_share(source, None, rank=0, size=2) is not None
    assert frame_share(source, uniform, rank=0, size=2) is not None
    assert frame_share(source, by_pixels, rank=0, size=2) is None
    assert frame_share(source, None, rank=0, size=1) is None

    class OfAUser:
        """A source of whole windows only."""

        frames, grid = source.frames, source.grid
        __len__, read, key = source.__len__, source.read, source.key

    assert frame_share(OfAUser(), None, rank=0, size=2) is None  # pyright: ignore[reportArgumentType]
