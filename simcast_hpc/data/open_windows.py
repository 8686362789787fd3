"""Open the windows that a ``data`` configuration section describes."""

import hashlib
import logging
from pathlib import Path

from simcast_hpc.config import ConfigError, DataConfig, expand_path

from .archive_windows import ArchiveSource
from .dataset_spec import DatasetSpec, Split, find_spec, read_spec
from .event_folds import WithoutFold
from .resample import ResampledSource
from .shards.shard_format import is_prepared, stored_description_hash
from .shards.shard_reader import ShardSource
from .shared_reads import shared_read
from .window_source import WindowSource

logger = logging.getLogger(__name__)


def source_spec(config: DataConfig) -> DatasetSpec:
    """Return the description of the data in ``data.root``: ``data.dataset``, or ``dataset.yaml`` in ``data.root``.

    Raises:
        ConfigError: there is none, or a field is invalid.
    """
    return find_spec(config.dataset, config.root)


def target_spec(config: DataConfig) -> DatasetSpec:
    """Return the description whose encoding and thresholds apply to the windows of ``config``."""
    return read_spec(config.recode_as) if config.recode_as else source_spec(config)


def pixel_spacing_km(config: DataConfig) -> float:
    """Return the pixel spacing after ``block_mean``."""
    return source_spec(config).grid.spacing_km * config.block_mean


def description_hash(config: DataConfig) -> str:
    """Return a hash of encoding, thresholds, splits and cadence of ``config``, without descriptive fields."""
    descriptive = {"name", "title", "quantity", "license", "attribution", "citation", "source", "grid"}
    descriptions = [
        source_spec(config).hashed_json(exclude=descriptive),
        target_spec(config).hashed_json(exclude=descriptive),
    ]
    return hashlib.sha256("\n".join(descriptions).encode()).hexdigest()[:16]


def require_same_dataset(config: DataConfig, of_run: DataConfig, run: str) -> None:
    """Check that a finished run was trained on the data set of ``config``.

    A description in a file is compared by content: name, encoding, layout, cadence and splits. Each run has a copy.

    Raises:
        ConfigError: it was not; ``run`` begins the message.
    """
    if of_run.dataset == config.dataset:
        return
    theirs, own = source_spec(of_run), source_spec(config)
    if (theirs.name, stored_description_hash(theirs)) != (own.name, stored_description_hash(own)):
        raise ConfigError(
            f"{run} was trained on {theirs.name} (data.dataset={of_run.dataset}), and this run reads {own.name} "
            f"(data.dataset={config.dataset}): name, encoding, layout, cadence or splits differ"
        )


def step_minutes(config: DataConfig) -> float:
    """Return the minutes between two frames, after ``frame_stride``."""
    return source_spec(config).step_minutes * config.frame_stride


def frame_grid(config: DataConfig) -> tuple[int, int]:
    """Return the pixels (H, W) of a frame by the dataset description, after ``block_mean``."""
    grid = source_spec(config).grid
    return grid.height // config.block_mean, grid.width // config.block_mean


def sample_grid(config: DataConfig) -> tuple[int, int]:
    """Return the pixels (H, W) of a training sample: of the crop with its margin, else of a frame."""
    crop = config.cropping
    return frame_grid(config) if crop is None else (crop.side, crop.side)


def open_windows(config: DataConfig, *, split: Split, frames: int) -> WindowSource:
    """Return the windows of ``frames`` frames of one split, from prepared shards or from an archive.

    In a block of :func:`.shared_reads.share_reads` catalog and index are read once, by rank 0; only copies to
    ``data.stage_to`` are made on every rank.

    Raises:
        ConfigError: ``data.root`` is not set, or does not contain data that can be read directly.
        DataError: the data is invalid (see :class:`ArchiveSource`, :class:`~.shards.shard_reader.ShardSource`).
    """
    if config.root is None:
        raise ConfigError(
            "data.root is not set; set it to the folder of CATALOG.csv or of prepared shards (--set data.root=DIR)"
        )
    spec = shared_read(("description", config.model_dump_json()), lambda: source_spec(config))
    source = shared_read(
        ("windows", config.model_dump_json(), split, frames), lambda: _read_windows(config, spec, split, frames)
    )
    if config.stage_to is not None:
        if not isinstance(source, ShardSource):
            raise ConfigError(
                f"data.stage_to={config.stage_to} needs prepared shards; data.root={config.root} contains none"
            )
        _stage(source, config.stage_to, split=split)
    windows: WindowSource = source
    if split == "train" and config.hold_out is not None:
        windows = WithoutFold(source, config.hold_out)
    if config.block_mean == 1 and config.recode_as is None:
        return windows
    return ResampledSource(windows, spec=spec, target=target_spec(config), factor=config.block_mean)


def _read_windows(config: DataConfig, spec: DatasetSpec, split: Split, frames: int) -> ShardSource | ArchiveSource:
    """Read catalog or index, and the events that the fingerprint depends on."""
    assert config.root is not None
    reader = ShardSource if is_prepared(config.root) else ArchiveSource
    if reader is ArchiveSource and spec.layout.kind != "archive":
        raise ConfigError(
            f"data.root={config.root} contains no prepared shards, and {spec.name} must be prepared before use: run "
            f"`simcast data prepare {config.root} SHARDS --dataset {config.dataset or spec.name}` and set "
            "data.root=SHARDS"
        )
    return reader(
        spec,
        config.root,
        split=split,
        frames=frames,
        window_stride=config.window_stride,
        frame_stride=config.frame_stride,
        max_percent_missing=config.max_percent_missing,
        file_names=config.file_names,
    )


def _stage(source: ShardSource, stage_to: str, *, split: Split) -> None:
    """Copy shards to a local disk, whose variables have the values of this node.

    A trained run can be evaluated where a variable of its training job is not set; then the shards are not copied.
    """
    try:
        folder = Path(expand_path(stage_to, where="data.stage_to"))
    except ConfigError as error:
        if split == "train":
            raise
        logger.warning("%s: the shards are read from data.root", error)
        return
    source.stage(folder)
