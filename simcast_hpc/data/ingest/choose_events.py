"""Choice of events (slots of UTC time, and tiles) by rain: a pure function of frames, seed, slot and tile."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simcast_hpc.data.dataset_spec import DatasetSpec
from simcast_hpc.data.shards.shard_format import SPLITS
from simcast_hpc.radar.radar_frame import RadarGrid

from .default_splits import WINDOW_FRAMES
from .frame_selection import Selection
from .import_recipe import Recipe
from .scan_frames import moment
from .scan_table import ScanTable
from .wet_rule import parse_wet_rule, tile_slices

DAY = 86_400_000_000  # microseconds
_FRAMES_AT_ONCE = 200_000


@dataclass(frozen=True, eq=False)
class EventChoice:
    """The events of an import, ascending by time, then tile.

    Attributes:
        begin: start of the slot in microseconds since 1970 UTC, int64 ``[E]``.
        tile: number of the tile, int32 ``[E]``.
        split: number in ``SPLITS``, uint8 ``[E]``.
        is_wet: whether the wet rule is met, bool ``[E]``.
        probability: with which the event was kept, float32 ``[E]``; its reciprocal weights undo the choice.
        tiles: rows and columns of all tiles.
        slots: start of each slot that has a frame, int64 ``[S]``.
        frames: row of the table of each nominal time of each slot, -1 where missing, int64 ``[S, T]``.
        counts: candidates, wet candidates, kept and kept dry events, and candidates in a gap between splits.
    """

    begin: np.ndarray
    tile: np.ndarray
    split: np.ndarray
    is_wet: np.ndarray
    probability: np.ndarray
    tiles: list[tuple[slice, slice]]
    slots: np.ndarray
    frames: np.ndarray
    counts: dict[str, int]

    def of_day(self, day: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of the events and of the slots of a day (number since 1970)."""
        rows = slice(*np.searchsorted(self.begin, [day * DAY, (day + 1) * DAY]))
        slots = slice(*np.searchsorted(self.slots, [day * DAY, (day + 1) * DAY]))
        return np.arange(rows.start, rows.stop), np.arange(slots.start, slots.stop)

    @property
    def days(self) -> list[int]:
        """Days with events, as numbers since 1970."""
        return np.unique(self.begin // DAY).tolist()


def choose_events(table: ScanTable, selection: Selection, recipe: Recipe, spec: DatasetSpec) -> EventChoice:
    """Choose the events of an import.

    An event with at least one wet frame is kept. Another one is kept with the probability ``keep_dry``. With
    ``importance`` (minimum m, weight w) the probability is ``min(1, m + w rate)`` of the mean rate of the event, also
    of dry ones if there is no wet rule. Events whose missing share exceeds ``max_missing`` or is 1 are dropped, as are
    those between two splits.
    """
    tiles = tile_slices(RadarGrid(**recipe.grid).shape, recipe.tile)
    # 1. Frames of each slot
    used = selection.used
    step, length = recipe.series.step, round(recipe.event_minutes * 60e6)
    nominal = selection.slot[used] * step
    slots, slot_of = np.unique(nominal // length * length, return_inverse=True)
    frames = np.full((len(slots), recipe.frames), -1, np.int64)
    frames[slot_of, (nominal - slots[slot_of]) // step] = used
    # 2. Rain of each slot and tile
    wet_share, rate, missing = _slot_statistics(table, used, slot_of, len(slots), len(tiles))
    rule = None if recipe.wet is None else parse_wet_rule(recipe.wet)
    is_wet = np.ones(wet_share.shape, bool) if rule is None else wet_share >= np.float32(rule.share)
    probability = np.where(is_wet, 1.0, recipe.keep_dry)
    if recipe.importance is not None:
        least, weight = recipe.importance
        by_rate = np.minimum(1.0, least + weight * rate)
        probability = np.where(is_wet, by_rate, recipe.keep_dry)
    # 3. Candidates, and their splits
    candidates = (missing <= recipe.max_missing) & (missing < 1)
    splits = np.array([_split(spec, int(begin), length - step) for begin in slots], np.int16)
    in_gap = candidates & (splits == SPLITS.index(""))[:, None]
    candidates &= ~in_gap
    kept = candidates & (probability > 0)
    for slot, tile in np.argwhere(kept & (probability < 1)):
        rows, columns = tiles[tile]
        kept[slot, tile] = uniform(recipe.seed, int(slots[slot]), rows.start, columns.start) < probability[slot, tile]
    slot, tile = np.nonzero(kept)
    counts = {
        "candidates": int(candidates.sum()), "wet": int((candidates & is_wet).sum()), "kept": len(slot),
        "kept_dry": int((kept & ~is_wet).sum()), "between_splits": int(in_gap.sum()),
    }  # fmt: skip
    return EventChoice(
        slots[slot], tile.astype(np.int32), splits[slot].astype(np.uint8), is_wet[slot, tile],
        probability[slot, tile].astype(np.float32), tiles, slots, frames, counts,
    )  # fmt: skip


def window_counts(choice: EventChoice, frames: int = WINDOW_FRAMES) -> dict[str, int]:
    """Return the number of windows of consecutive frames of the events of each split, with any start."""
    exists = choice.frames >= 0
    per_slot = np.zeros(len(exists), np.int64)
    if exists.shape[1] >= frames:
        per_slot = np.lib.stride_tricks.sliding_window_view(exists, frames, axis=1).all(axis=2).sum(axis=1)
    of_event = per_slot[np.searchsorted(choice.slots, choice.begin)]
    return {split: int(of_event[choice.split == number].sum()) for number, split in enumerate(SPLITS) if split}


def window_warnings(counts: dict[str, int], event_frames: int) -> list[str]:
    """Return a warning that names the splits without a window, if there are any."""
    empty = [split for split, count in counts.items() if not count]
    if not empty:
        return []
    return [
        f"no window of {WINDOW_FRAMES} frames in the split{'s' if len(empty) > 1 else ''} {', '.join(empty)} (events "
        f"have {event_frames} frames): change --event, --gap-days, or --train-until and --val-until"
    ]


def uniform(seed: int, begin: int, top: int, left: int) -> float:
    """Return a number from 0 to below 1 that depends only on the seed, the start of the slot and the tile."""
    text = f"{seed} {begin // 1_000_000} {top} {left}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def event_id(begin: int, tile: tuple[slice, slice], recipe: Recipe) -> str:
    """Return the id of an event: its time and, of tiles, the upper left pixel."""
    time = f"{moment(begin):%Y%m%dT%H%M}"
    return time if recipe.tile is None else f"{time}_y{tile[0].start:04d}x{tile[1].start:04d}"


def _split(spec: DatasetSpec, begin: int, duration: int) -> int:
    """Return the split of a slot; none if its last frame is in another one."""
    of_time = spec.splits.chooser(Path())  # splits by date read no file
    first, last = (of_time("", moment(time).replace(tzinfo=None)) for time in (begin, begin + duration))
    return SPLITS.index(first if first == last else "")


def _slot_statistics(
    table: ScanTable, used: np.ndarray, slot_of: np.ndarray, slots: int, tiles: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return largest wet share, mean rate and mean missing share over the frames of each slot, each ``[S, tiles]``."""
    wet = np.zeros((slots, tiles), np.float32)
    total, count, missing, frames = (np.zeros((slots, tiles)) for _ in range(4))
    for begin in range(0, len(used), _FRAMES_AT_ONCE):
        rows, slot = used[begin : begin + _FRAMES_AT_ONCE], slot_of[begin : begin + _FRAMES_AT_ONCE]
        statistics = table.statistics[table.first[rows][:, None] + np.arange(tiles)]
        valid = ~np.isnan(statistics[..., 0])
        np.maximum.at(wet, slot, np.where(valid, statistics[..., 1], np.float32(0)))
        np.add.at(total, slot, np.where(valid, statistics[..., 0], 0.0))
        np.add.at(count, slot, valid)
        np.add.at(missing, slot, statistics[..., 2])
        np.add.at(frames, slot, 1)
    return wet, total / np.maximum(count, 1), missing / np.maximum(frames, 1)
