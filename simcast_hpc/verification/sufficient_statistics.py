"""Sufficient statistics of verification: int64 and float64 sums per event from which every score follows.

Streaming, several ranks, bootstrap over events and pooling are all sums of these. Totals of the SEVIR test split reach
2.15e10 pixels, past the 2**24 integers that float32 can tell apart, so no total is ever held in float32.
"""

import dataclasses
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simcast_hpc.storage.atomic_files import atomic_file

from .protocols import ScoreProtocol

TABLE = ("hits", "misses", "false_alarms", "correct_negatives")
PIXELS = ("valid_pixels", "observed_pixels")
ERRORS = ("squared_error", "absolute_error")
SUMS = (*TABLE, *PIXELS, *ERRORS)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """Sums over pixels, one row an event.

    Attributes:
        protocol: the rule by which the pixels were counted.
        events: key of each row; :meth:`select` may repeat keys, :func:`merge` sums rows of equal key.
        hits, misses, false_alarms, correct_negatives: int64 ``[events, thresholds, leads]``.
        valid_pixels: int64 ``[events, leads]``, pixels that are valid in observation and forecast.
        observed_pixels: int64 ``[events, leads]``, pixels that are valid in the observation.
        squared_error, absolute_error: float64 ``[events, leads]``, sums over valid pixels of [0, 1] fields.
        extra: further sums by name, int64 or float64 with the events first: what pools, FSS, SSIM, ensembles and
            spectra of the protocol need (:func:`~simcast_hpc.verification.counting.count` makes them).
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
                    f"statistics.extra[{name!r}] must be int64 or float64 with {rows} events first, got "
                    f"{tensor.dtype} {tuple(tensor.shape)}"
                )

    @property
    def sums(self) -> dict[str, Tensor]:
        """Return every sum by name, extra ones by theirs."""
        return {name: getattr(self, name) for name in SUMS} | dict(self.extra)

    @property
    def members(self) -> int:
        """Members of the ensemble that was counted; 1 for a single forecast."""
        return self.extra["ranks"].shape[-1] - 1 if "ranks" in self.extra else 1

    @property
    def leads(self) -> int:
        """Number of lead times."""
        return self.squared_error.shape[-1]

    def merge(self, other: "Statistics") -> "Statistics":
        """Return the sums of both; rows of equal key are added (see :func:`merge`)."""
        return merge([self, other])

    def select(self, rows: Sequence[int] | Tensor) -> "Statistics":
        """Return the given rows in the given order, repeats allowed: one draw of a bootstrap over events.

        Raises:
            IndexError: a row is outside ``0 .. events - 1``.
        """
        index = torch.as_tensor(rows, dtype=torch.int64).flatten()
        if ((index < 0) | (index >= len(self.events))).any():
            raise IndexError(
                f"rows {int(index.min())} to {int(index.max())} asked of {len(self.events)} events; "
                f"give rows within 0 to {len(self.events) - 1}"
            )
        on_device = index.to(self.hits.device)
        sums = {name: tensor.index_select(0, on_device) for name, tensor in self.sums.items()}
        return _from_sums(self.protocol, tuple(self.events[i] for i in index.tolist()), sums)

    def under(self, protocol: ScoreProtocol) -> "Statistics":
        """Return the same counts to be scored by another protocol that counts pixels in the same way.

        Raises:
            ValueError: the other protocol counts differently, so the frames must be read again.
        """
        if protocol.counting_hash != self.protocol.counting_hash:
            raise ValueError(
                f"counts made under {_named(self.protocol)} cannot be scored under {_named(protocol)}: thresholds, "
                "comparison or mask rule differ; count the frames again under the second"
            )
        return dataclasses.replace(self, protocol=protocol)

    def to(self, device: torch.device | str) -> "Statistics":
        """Return the sums on another device."""
        return _from_sums(self.protocol, self.events, {name: sums.to(device) for name, sums in self.sums.items()})

    def save(self, path: Path) -> None:
        """Write the sums as ``.npz``; the file appears whole or not at all."""
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
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file holds something else; the message names the file and what is missing.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                missing = {"protocol", "events", *SUMS} - set(arrays.files)
                if missing:
                    raise ValueError(f"it lacks {sorted(missing)}")
                sums = {
                    name: torch.from_numpy(arrays[name]) for name in arrays.files if name not in ("protocol", "events")
                }
                protocol = ScoreProtocol.from_json(str(arrays["protocol"]))
                return _from_sums(protocol, tuple(arrays["events"].tolist()), sums)
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path} does not hold verification statistics written by Statistics.save: {error}"
            ) from error


def merge(parts: Iterable[Statistics]) -> Statistics:
    """Sum statistics of batches or ranks; rows of equal key are added, rows come out in the order of their keys.

    Ordered rows make the result, and so a seeded bootstrap over it, independent of who counted which event.

    Raises:
        ValueError: nothing to merge, or protocols or numbers of leads differ; the message names both.
    """
    parts = list(parts)
    if not parts:
        raise ValueError("no statistics to merge; count at least one batch")
    first = parts[0]
    for part in parts[1:]:
        if part.protocol.hash != first.protocol.hash:
            raise ValueError(f"cannot merge statistics of {_named(first.protocol)} with {_named(part.protocol)}")
        if part.leads != first.leads:
            raise ValueError(f"cannot merge statistics of {first.leads} lead times with {part.leads} lead times")
        if part.members != first.members:
            raise ValueError(f"cannot merge statistics of {first.members} members with those of {part.members}")
        if part.extra.keys() != first.extra.keys():
            one_sided = sorted(part.extra.keys() ^ first.extra.keys())
            raise ValueError(
                f"cannot merge statistics of {_named(first.protocol)} with {_named(part.protocol)}: sums of "
                f"{', '.join(one_sided)} are on one side only; count both with the same pools and scores"
            )
    keys = [key for part in parts for key in part.events]
    device = first.hits.device
    sums = {name: torch.cat([part.sums[name].to(device) for part in parts]) for name in first.sums}
    return group_events(first.protocol, keys=keys, sums=sums)


def group_events(protocol: ScoreProtocol, *, keys: Sequence[str], sums: dict[str, Tensor]) -> Statistics:
    """Build statistics from one row of sums a window, adding the rows of one event; rows are ordered by key."""
    events = tuple(sorted(set(keys)))
    place = {key: row for row, key in enumerate(events)}
    rows = torch.tensor([place[key] for key in keys], dtype=torch.int64)
    grouped = {
        name: tensor.new_zeros(len(events), *tensor.shape[1:]).index_add_(0, rows.to(tensor.device), tensor)
        for name, tensor in sums.items()
    }
    return _from_sums(protocol, events, grouped)


def _from_sums(protocol: ScoreProtocol, events: tuple[str, ...], sums: Mapping[str, Tensor]) -> Statistics:
    extra = {name: tensor for name, tensor in sums.items() if name not in SUMS}
    return Statistics(protocol=protocol, events=events, extra=extra, **{name: sums[name] for name in SUMS})


def _named(protocol: ScoreProtocol) -> str:
    return f"{protocol.name!r} ({protocol.hash}, thresholds {', '.join(protocol.labels)} {protocol.unit})"


def _text(events: tuple[str, ...]) -> np.ndarray:
    return np.array(events, dtype=np.str_) if events else np.empty(0, dtype="<U1")
