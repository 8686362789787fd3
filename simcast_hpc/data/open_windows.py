"""From a configuration to the windows it means."""

import hashlib
import os
from pathlib import Path

from simcast_hpc.config import ConfigError, DataConfig

from .archive_windows import ArchiveSource
from .dataset_spec import DatasetSpec, Split, read_spec
from .folds import WithoutFold
from .resample import ResampledSource
from .shards.shard_format import is_prepared
from .shards.shard_reader import ShardSource
from .window_source import WindowSource


def target_spec(config: DataConfig) -> DatasetSpec:
    """Return the description whose code and thresholds the windows of ``config`` carry."""
    return read_spec(config.recode_as or config.dataset)


def description_hash(config: DataConfig) -> str:
    """Return a hash of what the codes of ``config`` mean: encoding, thresholds, splits and cadence, not the names."""
    words = {"name", "title", "quantity", "license", "citation", "source", "grid"}
    described = [
        read_spec(config.dataset).model_dump_json(exclude=words),
        target_spec(config).model_dump_json(exclude=words),
    ]
    return hashlib.sha256("\n".join(described).encode()).hexdigest()[:16]


def step_minutes(config: DataConfig) -> float:
    """Return the minutes between two frames that are kept."""
    return read_spec(config.dataset).step_minutes * config.frame_stride


def frame_grid(config: DataConfig) -> tuple[int, int]:
    """Return the pixels (H, W) of a frame as the data set's description has them, after averaging."""
    grid = read_spec(config.dataset).grid
    return grid.height // config.block_mean, grid.width // config.block_mean


def open_windows(config: DataConfig, *, split: Split, frames: int) -> WindowSource:
    """Return the windows of ``frames`` frames of one split, from prepared shards or from an archive in place.

    Raises:
        ConfigError: ``data.root`` is not given.
        DataError: the data cannot be used (see :class:`ArchiveSource`, :class:`~.shards.reader.ShardSource`).
    """
    if config.root is None:
        raise ConfigError(
            "data.root is not set: the folder of CATALOG.csv or of prepared shards; for example --set data.root=DIR"
        )
    spec = read_spec(config.dataset)
    reader = ShardSource if is_prepared(config.root) else ArchiveSource
    if reader is ArchiveSource and spec.layout.kind != "archive":
        raise ConfigError(
            f"data.root={config.root} holds no prepared shards, and {spec.name} cannot be read as it is published: "
            f"simcast data prepare {config.root} SHARDS --dataset {config.dataset}, then --set data.root=SHARDS"
        )
    source = reader(
        spec,
        config.root,
        split=split,
        frames=frames,
        window_stride=config.window_stride,
        frame_stride=config.frame_stride,
        max_percent_missing=config.max_percent_missing,
        file_names=config.file_names,
    )
    if config.stage_to is not None:
        if not isinstance(source, ShardSource):
            raise ConfigError(f"data.stage_to copies prepared shards, and data.root={config.root} holds none")
        source.stage(Path(os.path.expandvars(config.stage_to)))
    chosen: WindowSource = source
    if split == "train" and config.hold_out is not None:
        chosen = WithoutFold(source, config.hold_out)
    if config.block_mean == 1 and config.recode_as is None:
        return chosen
    return ResampledSource(chosen, spec=spec, target=target_spec(config), factor=config.block_mean)
