"""Copies a time range of a remote Zarr store (CF, one chunk per time) into a local store; resumed after a stop."""

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from simcast_hpc.config import ConfigError
from simcast_hpc.config.text_files import read_json_file
from simcast_hpc.data.data_license import DataLicense, read_license
from simcast_hpc.storage.atomic_files import flush, publish, write_json
from simcast_hpc.storage.directory_lock import DirectoryLock, hold_directory

from .archive_description import Archive, Period
from .archive_download import SPARE_BYTES, TransferOptions
from .object_transfer import DownloadError

logger = logging.getLogger(__name__)
_MOST_STEPS = 2**25
_LARGEST_BLOCK = 2**28


@dataclass(frozen=True)
class StorePlan:
    """Steps ``begin`` to ``end`` of a store; ``raw_bytes`` are uncompressed, for the steps that are not copied yet."""

    begin: int
    end: int
    copied: int
    raw_bytes: int
    into: Path


@dataclass(frozen=True)
class StoreDownload:
    """A copy of a period of a Zarr store into ``target/NAME_BEGIN_END.zarr``.

    Attributes:
        name: of the archive.
        archive: its description, with one product whose folder is ``BUCKET/PATH``.
        period: times from begin (inclusive) to end (exclusive).
        target: folder of the copy.
        options: of the transfer.
    """

    name: str
    archive: Archive
    period: Period
    target: Path
    options: TransferOptions

    def open(self) -> Any:
        """Return the remote ``zarr.Group``, read anonymously.

        Raises:
            ConfigError: zarr or s3fs is not installed.
            DownloadError: the store cannot be opened.
        """
        path = next(iter(self.archive.products.values())).folder
        try:
            import s3fs  # noqa: F401
            import zarr
        except ImportError as error:
            raise ConfigError(
                f"the store {self.name} needs zarr and s3fs: pip install -c constraints.txt -e '.[data,io]'"
            ) from error
        options = {
            "anon": True,
            "endpoint_url": self.options.endpoint or self.archive.url,
            "config_kwargs": {
                "read_timeout": self.options.stall_seconds,
                "connect_timeout": self.options.stall_seconds,
                "retries": {"max_attempts": self.options.retry.tries, "mode": "standard"},
            },
        }
        try:
            return zarr.open_group(f"s3://{path}", mode="r", storage_options=options)
        except Exception as error:  # zarr, s3fs and botocore raise different errors
            raise DownloadError(f"the store s3://{path} cannot be opened: {error or type(error).__name__}") from error

    def plan(self, store: Any) -> StorePlan:
        """Return the steps of the period.

        Raises:
            DownloadError: the store has no readable times, or none in the period.
        """
        times = _times_of(store)
        begin = int(np.searchsorted(times, np.datetime64(_naive(self.period.begin))))
        end = int(np.searchsorted(times, np.datetime64(_naive(self.period.end))))
        if begin == end:
            raise DownloadError(
                f"{self.name} has no time from {self.period.begin:%Y-%m-%dT%H:%M} to {self.period.end:%Y-%m-%dT%H:%M}; "
                f"it has {len(times)} times from {times[0]} to {times[-1]}"
            )
        span = f"{self.period.begin:%Y%m%dT%H%M}Z_{self.period.end:%Y%m%dT%H%M}Z"
        into = self.target / f"{self.name}_{span}.zarr"
        copied = end - begin if into.exists() else self._copied(into, begin, end)
        per_step = sum(
            int(np.prod(array.shape[1:])) * array.dtype.itemsize
            for array in _arrays(store).values()
            if _dimensions(array)[:1] == ("time",)
        )
        return StorePlan(begin, end, copied, per_step * (end - begin - copied), into)

    def run(self, store: Any, plan: StorePlan, *, on_start: Callable[[int], Callable[[int], None]]) -> None:
        """Copy the steps of a plan; ``on_start`` is called with their number and returns the progress callback.

        The copy has the chunks, compression, fill values and attributes of the store. Until it is complete it has a
        hidden name. ``license.json`` contains the license of the archive.

        Raises:
            DownloadError: the store cannot be read, or the disk is too small.
        """
        self.target.mkdir(parents=True, exist_ok=True)
        self._require_space(plan)
        _require_source(self.target, self.name)
        with hold_directory(self.target, "a download", field="TARGET") as lock:
            DataLicense(
                self.name, "store", self.archive.license, self.archive.attribution, self.archive.terms,
                f"{datetime.now(UTC):%Y-%m-%d}",
            ).write(self.target)  # fmt: skip
            progress = on_start(plan.end - plan.begin - plan.copied)
            if plan.into.exists():
                _record_of(plan.into).unlink(missing_ok=True)
                return
            try:
                self._copy(store, plan, lock, progress)
            except (ConfigError, DownloadError):
                raise
            except OSError as error:
                if error.filename is not None and str(error.filename).startswith(str(self.target)):
                    raise
                raise DownloadError(f"{self.name}: {error}; run the same command to resume") from error
            except Exception as error:  # zarr, s3fs and botocore raise different errors
                raise DownloadError(
                    f"{self.name}: {error or type(error).__name__}; run the same command to resume"
                ) from error

    def _copy(self, store: Any, plan: StorePlan, lock: DirectoryLock, progress: Callable[[int], None]) -> None:
        import zarr

        part = _part_of(plan.into)
        if plan.copied == 0:
            shutil.rmtree(part, ignore_errors=True)
            _create_copy(store, part, plan)
        copy: Any = zarr.open_group(part, mode="r+")
        step = _block(store)
        for begin in range(plan.begin + plan.copied, plan.end, step):
            lock.check()
            end = min(begin + step, plan.end)
            for name, array in _arrays(store).items():
                if _dimensions(array)[:1] == ("time",):
                    copy[name][begin - plan.begin : end - plan.begin] = array[begin:end]
            write_json(_record_of(plan.into), {**self._identity(plan.begin, plan.end), "copied": end - plan.begin})
            progress(end - begin)
        if store.metadata.consolidated_metadata is not None:
            zarr.consolidate_metadata(part)
        flush(part)
        publish(part, plan.into)
        _record_of(plan.into).unlink()

    def _identity(self, begin: int, end: int) -> dict[str, Any]:
        return {"archive": self.name, "begin": begin, "end": end}

    def _copied(self, into: Path, begin: int, end: int) -> int:
        record = _record_of(into)
        if not record.is_file() or not _part_of(into).is_dir():
            return 0
        stored = read_json_file(record, error=DownloadError, what="the record of a copy")
        known = isinstance(stored, Mapping) and {**stored, "copied": 0} == {**self._identity(begin, end), "copied": 0}
        return min(int(stored["copied"]), end - begin) if known else 0

    def _require_space(self, plan: StorePlan) -> None:
        free = shutil.disk_usage(self.target).free
        # An assumption about the compression; a full disk ends the copy with an error, and a later call resumes it.
        if plan.raw_bytes // 4 + SPARE_BYTES > free:
            raise DownloadError(
                f"the copy needs about {plan.raw_bytes / 4e9:.1f} GB (a quarter of {plan.raw_bytes / 1e9:.1f} GB "
                f"uncompressed) and a reserve of {SPARE_BYTES / 1e9:.1f} GB, but {self.target} has {free / 1e9:.1f} GB "
                "free; choose a shorter period, or another disk"
            )


def _require_source(target: Path, name: str) -> None:
    present = read_license(target)
    if present is not None and present.archive != name:
        raise ConfigError(f"TARGET={target} contains data of {present.archive}; choose another folder for {name}")


def _part_of(into: Path) -> Path:
    return into.with_name(f".{into.name}.part")


def _record_of(into: Path) -> Path:
    return into.with_name(f".{into.name}.part.json")


def _naive(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(tzinfo=None)


def _arrays(store: Any) -> dict[str, Any]:
    return {name: array for name, array in sorted(store.arrays()) if os.sep not in name and not name.startswith(".")}


def _dimensions(array: Any) -> tuple[str, ...]:
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS") or ()
    return tuple(str(name) for name in names)


def _times_of(store: Any) -> np.ndarray:
    """Return the times of a store ``[T]``, datetime64[s], ascending."""
    from xarray.coding.times import decode_cf_datetime

    time = _arrays(store).get("time")
    if time is None or _dimensions(time) != ("time",) or not 0 < time.shape[0] <= _MOST_STEPS:
        raise DownloadError("the store has no coordinate time with the dimension time")
    try:
        units, calendar = str(time.attrs["units"]), str(time.attrs.get("calendar", "standard"))
        times = np.asarray(decode_cf_datetime(time[:], units, calendar)).astype("datetime64[s]")
    except Exception as error:  # xarray and the codecs of a store raise different errors
        raise DownloadError(f"the times of the store cannot be read: {error or type(error).__name__}") from error
    if np.isnat(times).any() or (np.diff(times) <= np.timedelta64(0, "s")).any():
        raise DownloadError("the times of the store are not ascending")
    return times


def _block(store: Any) -> int:
    """Return the number of steps that are copied at once: a multiple of the stored chunks, of at most 256 MiB."""
    step, size = 1, 1
    for array in _arrays(store).values():
        if _dimensions(array)[:1] == ("time",) and len(array.shape) > 1:
            step = max(step, (array.shards or array.chunks)[0])
            size = max(size, int(np.prod(array.shape[1:])) * array.dtype.itemsize)
    return step * max(1, min(24, _LARGEST_BLOCK // (size * step)))


def _create_copy(store: Any, into: Path, plan: StorePlan) -> None:
    """Create an empty copy: arrays without time completely, arrays with time with the length of the plan."""
    import zarr

    copy = zarr.create_group(into, zarr_format=store.metadata.zarr_format, attributes=dict(store.attrs))
    for name, array in _arrays(store).items():
        has_time = _dimensions(array)[:1] == ("time",)
        shape = (plan.end - plan.begin, *array.shape[1:]) if has_time else array.shape
        is_v3 = store.metadata.zarr_format == 3
        created = copy.create_array(
            name,
            shape=shape,
            dtype=array.dtype,
            chunks=tuple(min(chunk, max(1, length)) for chunk, length in zip(array.chunks, shape, strict=True))
            if array.shards is None
            else array.chunks,
            shards=array.shards,
            compressors=array.compressors or None,
            filters=array.filters or None,
            fill_value=array.fill_value,
            attributes=dict(array.attrs),
            dimension_names=_dimensions(array) if is_v3 else None,
            **({} if is_v3 else {"order": array.order}),
        )
        if not has_time:
            created[...] = array[...]
