"""Sufficient statistics of verification: int64 and float64 sums per event from which every score is computed.

Streaming, ranks, bootstrap over events and pooling are sums of these. Totals of the SEVIR test split reach 2.15e10
pixels, above the 2**24 integers that float32 represents exactly, so no total is stored in float32.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simcast_hpc.config import DataError
from simcast_hpc.storage.atomic_files import atomic_file
from simcast_hpc.storage.npz_files import load_npz

from .protocols import ScoreProtocol

TABLE = ("hits", "misses", "false_alarms", "correct_negatives")
PIXELS = ("valid_pixels", "observed_pixels")
ERRORS = ("squared_error", "absolute_error")
SUMS = (*TABLE, *PIXELS, *ERRORS)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """Sums over pixels, one row per event.

    Attributes:
        protocol: defines how the pixels were counted.
        events: key of each row; :meth:`select` may repeat keys, :func:`merge` sums rows of equal key.
        hits, misses, false_alarms, correct_negatives: int64 ``[events, thresholds, leads]``.
        valid_pixels: int64 ``[events, leads]``, pixels that are valid in observation and forecast.
        observed_pixels: int64 ``[events, leads]``, pixels that are valid in the observation.
        squared_error, absolute_error: float64 ``[events, leads]``, sums over valid pixels of [0, 1] fields.
        extra: further sums by name, int64 or float64, with events as the first axis: those of the pools, FSS, SSIM,
            ensembles and spectra of the protocol (see :func:`~simcast_hpc.verification.counting.count`).
    """

    protocol: ScoreProtocol
    events: tuple[str, ...]
    hits: Tensor
    misses: Tensor
    false_alarms: Tensor
    correct_negatives: Tensor
    valid_pixels: Tensor
    observed_pixels: Tensor
    squared_error: Tensor
    absolute_error: Tensor
    extra: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        rows, leads = len(self.events), self.squared_error.shape[-1]
        for name in SUMS:
            tensor = getattr(self, name)
            shape = (rows, len(self.protocol.thresholds), leads) if name in TABLE else (rows, leads)
            dtype = torch.float64 if name in ERRORS else torch.int64
            if tuple(tensor.shape) != shape or tensor.dtype != dtype:
                raise ValueError(f"statistics.{name} must be {dtype} {shape}, got {tensor.dtype} {tuple(tensor.shape)}")
        for name, tensor in self.extra.items():
            if tensor.shape[0] != rows or tensor.dtype not in (torch.int64, torch.float64):
                raise ValueError(
                    f"statistics.extra[{name!r}] must be int64 or float64 with {rows} events as the first axis, got "
                    f"{tensor.dtype} {tuple(tensor.shape)}"
                )

    @property
    def sums(self) -> dict[str, Tensor]:
        """All sums by name, including ``extra``."""
        return {name: getattr(self, name) for name in SUMS} | dict(self.extra)

    @property
    def members(self) -> int:
        """The number of ensemble members; 1 for a single forecast."""
        return self.extra["ranks"].shape[-1] - 1 if "ranks" in self.extra else 1

    @property
    def leads(self) -> int:
        """The number of lead times."""
        return self.squared_error.shape[-1]

    def merge(self, other: "Statistics") -> "Statistics":
        """Return the sums of both; rows of equal key are added (see :func:`merge`)."""
        return merge([self, other])

    def select(self, rows: Sequence[int] | Tensor) -> "Statistics":
        """Return these rows in this order; rows may be repeated, as in a bootstrap over events.

        Raises:
            IndexError: a row is outside ``0 .. events - 1``.
        """
        index = torch.as_tensor(rows, dtype=torch.int64).flatten()
        if ((index < 0) | (index >= len(self.events))).any():
            raise IndexError(
                f"rows {int(index.min())} to {int(index.max())} are out of range for {len(self.events)} events; "
                f"valid rows are 0 to {len(self.events) - 1}"
            )
        on_device = index.to(self.hits.device)
        sums = {name: tensor.index_select(0, on_device) for name, tensor in self.sums.items()}
        return statistics_of(self.protocol, tuple(self.events[i] for i in index.tolist()), sums)

    def under(self, protocol: ScoreProtocol) -> "Statistics":
        """Return the same counts under another protocol with the same counting hash.

        Raises:
            ValueError: the other protocol counts pixels differently, so the frames must be counted again.
        """
        if protocol.counting_hash != self.protocol.counting_hash:
            raise ValueError(
                f"counts of {_describe(self.protocol)} cannot be scored under {_describe(protocol)}: thresholds, "
                "comparison or mask rule differ; count the frames again under the second protocol"
            )
        return dataclasses.replace(self, protocol=protocol)

    def to(self, device: torch.device | str) -> "Statistics":
        """Return the sums on another device."""
        return statistics_of(self.protocol, self.events, {name: sums.to(device) for name, sums in self.sums.items()})

    def save(self, path: Path) -> None:
        """Write the sums atomically as ``.npz``."""
        arrays = {name: sums.cpu().numpy() for name, sums in self.sums.items()}
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                allow_pickle=False,
                protocol=np.array(self.protocol.to_json()),
                events=_text(self.events),
                **arrays,
            )

    @classmethod
    def load(cls, path: Path) -> "Statistics":
        """Read statistics written by :meth:`save`.

        Raises:
            ValueError: the file does not contain verification statistics.
        """
        try:
            arrays = load_npz(path, error=DataError, what="the file")
            missing = {"protocol", "events", *SUMS} - set(arrays)
            if missing:
                raise ValueError(f"{sorted(missing)} are missing")
            sums = {name: torch.from_numpy(arrays[name]) for name in arrays if name not in ("protocol", "events")}
            protocol = ScoreProtocol.from_json(str(arrays["protocol"]))
            return statistics_of(protocol, tuple(arrays["events"].tolist()), sums)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path} does not contain verification statistics written by Statistics.save: {error}"
            ) from error


def merge(parts: Iterable[Statistics]) -> Statistics:
    """Return the sum of statistics of batches or ranks: rows of equal key are added, and rows are sorted by key.

    Because rows are sorted, the result and a seeded bootstrap over it do not depend on which rank counted which event.

    Raises:
        ValueError: there is nothing to merge, or protocols, lead times, members or additional sums differ.
    """
    parts = list(parts)
    if not parts:
        raise ValueError("no statistics to merge; count at least one batch")
    first = parts[0]
    for part in parts[1:]:
        if part.protocol.hash != first.protocol.hash:
            raise ValueError(f"cannot merge statistics of {_describe(first.protocol)} with {_describe(part.protocol)}")
        if part.leads != first.leads:
            raise ValueError(f"cannot merge statistics of {first.leads} lead times with {part.leads} lead times")
        if part.members != first.members:
            raise ValueError(f"cannot merge statistics of {first.members} members with {part.members} members")
        if part.extra.keys() != first.extra.keys():
            one_sided = sorted(part.extra.keys() ^ first.extra.keys())
            raise ValueError(
                f"cannot merge statistics of {_describe(first.protocol)} with {_describe(part.protocol)}: only one has "
                f"{', '.join(one_sided)}; count both with the same pools and scores"
            )
    keys = [key for part in parts for key in part.events]
    device = first.hits.device
    sums = {name: torch.cat([part.sums[name].to(device) for part in parts]) for name in first.sums}
    return group_events(first.protocol, keys=keys, sums=sums)


def group_events(protocol: ScoreProtocol, *, keys: Sequence[str], sums: dict[str, Tensor]) -> Statistics:
    """Return statistics from sums with one row per window; rows of an event are added, and rows are sorted by key."""
    events = tuple(sorted(set(keys)))
    row_of = {key: row for row, key in enumerate(events)}
    rows = torch.tensor([row_of[key] for key in keys], dtype=torch.int64)
    grouped = {
        name: tensor.new_zeros(len(events), *tensor.shape[1:]).index_add_(0, rows.to(tensor.device), tensor)
        for name, tensor in sums.items()
    }
    return statistics_of(protocol, events, grouped)


def statistics_of(protocol: ScoreProtocol, events: tuple[str, ...], sums: Mapping[str, Tensor]) -> Statistics:
    """Return statistics of sums by name, whose first axis is that of the events."""
    extra = {name: tensor for name, tensor in sums.items() if name not in SUMS}
    return Statistics(protocol=protocol, events=events, extra=extra, **{name: sums[name] for name in SUMS})


def _describe(protocol: ScoreProtocol) -> str:
    return f"{protocol.name!r} ({protocol.hash}, thresholds {', '.join(protocol.labels)} {protocol.unit})"


def _text(events: tuple[str, ...]) -> np.ndarray:
    return np.array(events, dtype=np.str_) if events else np.empty(0, dtype="<U1")
