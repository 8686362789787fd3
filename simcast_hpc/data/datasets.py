"""Public functions on data sets: list the built-in descriptions, read one, open the windows of an archive.

``simcast_hpc.datasets`` is this module. It imports no torch.
"""

from collections.abc import Sequence
from numbers import Integral
from os import PathLike
from typing import Any, Literal, get_args

from simcast_hpc.config import ConfigError, DataConfig, from_mapping

from . import open_windows as _open_windows
from .dataset_spec import DatasetSpec, Split, built_in_specs, read_spec
from .window_source import WindowKey, WindowSource

__all__ = ["DatasetSpec", "WindowKey", "WindowSource", "dataset_names", "open_windows", "read_dataset"]


def dataset_names() -> tuple[str, ...]:
    """Return the names of the built-in dataset descriptions, sorted."""
    return tuple(sorted(built_in_specs()))


def read_dataset(dataset: str | PathLike[str]) -> DatasetSpec:
    """Return a dataset description.

    Args:
        dataset: name of a built-in description, or path of a YAML file.

    Raises:
        ConfigError: no such name or file, or the file is not a valid description.
    """
    return read_spec(str(dataset))


def open_windows(
    root: str | PathLike[str],
    *,
    dataset: str | PathLike[str] | None = None,
    frames: int,
    split: Split = "all",
    window_stride: int = 12,
    frame_stride: int = 1,
    block_mean: int = 1,
    recode_as: str | None = None,
    max_percent_missing: float | Literal["auto"] | None = "auto",
    file_names: Sequence[str] | None = None,
) -> WindowSource:
    """Return the windows of one split of a dataset, from prepared shards or from an archive.

    Args:
        root: folder of ``CATALOG.csv`` or of prepared shards.
        dataset: name of a built-in description, or path of a YAML file; None reads ``dataset.yaml`` in ``root``.
        frames: frames per window, T, counted after ``frame_stride``.
        split: ``train``, ``val``, ``test`` or ``all``.
        window_stride: frames between the starts of two windows of an event, counted after ``frame_stride``.
        frame_stride: keep every n-th frame of an event.
        block_mean: average n x n pixels in physical units.
        recode_as: name of the dataset whose encoding the pixel values get; None keeps the own encoding.
        max_percent_missing: skip events with a larger percentage of missing pixels; None keeps all; "auto" is 0 for a
            built-in description and None for others.
        file_names: use only events of these files (``file_name`` in the catalog); None uses all.

    Returns:
        A window source: ``len(source)``; ``source.read(i)``, uint8 ``[T, H, W]``, 255 where missing; ``source.key(i)``.

    Raises:
        ConfigError: an argument is invalid.
        DataError: the data is absent, damaged or does not match the description.
    """
    if split not in get_args(Split):
        raise ConfigError(f"split={split!r} is not a split; choose {', '.join(get_args(Split))}")
    if isinstance(frames, bool) or not isinstance(frames, Integral) or frames < 1:
        raise ConfigError(f"frames={frames!r} must be an int of at least 1")
    files = [file_names] if isinstance(file_names, str) else file_names
    fields: dict[str, Any] = {
        "dataset": None if dataset is None else str(dataset),
        "root": str(root),
        "window_stride": window_stride,
        "frame_stride": frame_stride,
        "block_mean": block_mean,
        "recode_as": recode_as,
        "file_names": None if files is None else list(files),
    }
    if max_percent_missing != "auto":
        fields["max_percent_missing"] = max_percent_missing
    config = from_mapping(DataConfig, fields, where="open_windows")
    return _open_windows.open_windows(config, split=split, frames=int(frames))
