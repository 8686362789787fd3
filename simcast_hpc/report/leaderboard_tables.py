"""Leaderboards of several evaluations: one table per protocol and set of windows."""

import csv
import difflib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from simcast_hpc.config import ConfigError
from simcast_hpc.config.text_files import LARGEST_JSON_BYTES, read_text_file
from simcast_hpc.storage.atomic_files import write_text
from simcast_hpc.verification.optional_scores import OPTIONAL_SCORES
from simcast_hpc.verification.scores import is_higher_better

from .example_window import ResultsError
from .pipeline_results import ScoreFile
from .score_tables import places
from .terminal_tables import plain_text

_COLUMNS = ("csi/mean", "csi_pool4/mean", "csi_pool16/mean", "hss/mean", "mse", "rmse", "mae", "crps", "ssim")
_CELL_FRAME = 3  # a border and a space on either side
_ONE_IS_BEST = ("frequency_bias", "spread_skill")
_ZERO_IS_BEST = ("mean_error", "sal_structure_signed", "sal_amplitude_signed")


@dataclass(frozen=True)
class BoardRow:
    """One forecast under one protocol."""

    name: str
    kind: str
    scores: dict[str, float | None]
    intervals: dict[str, tuple[float | None, float | None]]


@dataclass(frozen=True)
class Board:
    """Comparable rows, and what they have in common."""

    title: str
    protocol: str
    hash: str
    thresholds: tuple[str, ...]
    rows: tuple[BoardRow, ...]


def read_boards(paths: Sequence[Path], *, by: str = "csi/mean") -> list[Board]:
    """Return one board per data set, set of windows, protocol and set of averaged thresholds, best row first.

    Rows of equal name whose common scores are equal, such as a baseline in several files, are joined; other rows of
    equal name are prefixed with their folder. Forecasts without the score ``by`` are last, such as deterministic ones
    under a score of ensembles.

    Raises:
        ResultsError: a path contains no scores, or no forecast of a table has the score ``by``.
    """
    files = [(path, scores) for given in paths for path, scores in _score_files(given)]
    grouped: dict[tuple[object, ...], list[BoardRow]] = {}
    for path, scores in files:
        for protocol, used in scores.protocols.items():
            size = (
                f"{scores.windows} windows of {scores.events} events, {scores.frames_in} -> {scores.frames_out} frames"
            )
            title = f"{scores.title}, {scores.split}: {size}"
            key = (scores.fingerprint, title, protocol, used.hash, scores.supported_thresholds)
            rows = grouped.setdefault(key, [])
            for entry in scores.entries:
                by_key = scores.scores[entry.name][protocol]
                row = BoardRow(entry.name, entry.kind, by_key, scores.intervals.get(entry.name, {}).get(protocol, {}))
                same = [number for number, other in enumerate(rows) if _is_same(other, row)]
                if same:
                    old = rows[same[0]]
                    rows[same[0]] = replace(
                        old, scores={**row.scores, **old.scores}, intervals={**row.intervals, **old.intervals}
                    )
                    continue
                is_taken = any(other.name == row.name for other in rows)
                rows.append(replace(row, name=f"{path.parent.name}/{row.name}") if is_taken else row)
    for (_, _, protocol, *_), rows in grouped.items():
        if not any(by in row.scores for row in rows):
            raise ResultsError(_unknown_score(by, str(protocol), rows))
    return [
        Board(str(title), str(protocol), str(digest), tuple(supported), _sort(rows, by))  # type: ignore[arg-type]
        for (_, title, protocol, digest, supported), rows in grouped.items()
    ]


def _is_same(first: BoardRow, second: BoardRow) -> bool:
    common = first.scores.keys() & second.scores.keys()
    return first.name == second.name and all(first.scores[key] == second.scores[key] for key in common)


def _unknown_score(by: str, protocol: str, rows: Sequence[BoardRow]) -> str:
    """Return the message for a score that no row has: similar keys, else the names of the scores."""
    keys = list(dict.fromkeys(key for row in rows for key in row.scores if "/lead/" not in key))
    name = by.partition("/")[0]
    near = [key for key in keys if key.partition("/")[0] == name.lower()][:8] or difflib.get_close_matches(by, keys)
    is_requested = any(key.partition("/")[0] == name for key in keys)
    hint = f"; {name} is computed by --scores {name}" if name in OPTIONAL_SCORES and not is_requested else ""
    if not near:
        names = dict.fromkeys(key.partition("/")[0] + "/mean" * ("/" in key) for key in keys if "_pool" not in key)
        near = [*list(names)[:30], *["..."] * (len(names) > 30)]
    return f"no forecast has the score {by!r} under {protocol}; choose from {', '.join(near)}{hint}"


def _sort(rows: Sequence[BoardRow], by: str) -> tuple[BoardRow, ...]:
    def key(row: BoardRow) -> tuple[bool, float]:
        value = row.scores.get(by)
        return (value is None, 0.0 if value is None else _loss(by, value))

    return tuple(sorted(rows, key=key))


def _loss(by: str, value: float) -> float:
    """Return a number that is lower for better scores."""
    if by.startswith(_ONE_IS_BEST):
        return abs(math.log(value)) if value > 0 else math.inf
    if by.startswith(_ZERO_IS_BEST):
        return abs(value)
    return value if is_higher_better(by) is False else -value


def _direction(by: str) -> str:
    if by.startswith(_ONE_IS_BEST):
        return "1 is best"
    if by.startswith(_ZERO_IS_BEST):
        return "0 is best"
    return {True: "higher is better", False: "lower is better", None: "highest first"}[is_higher_better(by)]


def _score_files(path: Path) -> list[tuple[Path, ScoreFile]]:
    folders = (path, path / "scores") if path.is_dir() else ()
    candidates = [file for folder in folders for file in sorted(folder.glob("*.json"))] if folders else [path]
    files = []
    for candidate in candidates:
        try:
            text = read_text_file(candidate, error=ResultsError, what="the file", most_bytes=LARGEST_JSON_BYTES)
            files.append((candidate, ScoreFile.model_validate_json(text)))
        except (ResultsError, ValidationError) as error:
            if not path.is_dir():
                raise ResultsError(f"{path} does not contain scores of `simcast evaluate`: {error}") from error
    if not files:
        raise ResultsError(
            f"{path} contains no scores; give the output folder of `simcast evaluate --out` or a score file"
        )
    return files


def print_leaderboard(
    paths: Sequence[Path], *, by: str = "csi/mean", csv_path: Path | None = None, console: Console | None = None
) -> None:
    """Print leaderboards with the scores that fit the console; write all scores to ``csv_path`` if it is given.

    Raises:
        ResultsError: see :func:`read_boards`.
        ConfigError: the CSV file cannot be written.
    """
    console = console or Console()
    boards = read_boards(paths, by=by)
    for board in boards:
        console.print(plain_text(f"\n{board.title}", style="bold"))
        console.print(_table(board, by, width=console.width, shows_csv=csv_path is not None))
    if csv_path is not None:
        try:
            write_text(csv_path, _as_csv(boards))
        except OSError as error:
            raise ConfigError(f"cannot write {csv_path}: {error.strerror}") from error


def _table(board: Board, by: str, *, width: int, shows_csv: bool) -> Table:
    """Return a table with one row per forecast, best first: rank, name, score ``by`` with its interval, more scores.

    Further scores are added, without intervals, as long as the table is not wider than ``width``.
    """
    # 1. Columns that fit
    columns = {"rank": [str(rank) for rank, _ in enumerate(board.rows, start=1)]}
    columns["forecast"] = [row.name for row in board.rows]
    columns[by] = [_cell(row, by) for row in board.rows]
    top = [f"{name}/{board.thresholds[-1]}" for name in ("csi", "frequency_bias")] if board.thresholds else []
    requested = [key for name in OPTIONAL_SCORES for key in (f"{name}/mean", name)]
    available = [
        key
        for key in (*_COLUMNS, *top, *requested)
        if key != by and any(row.scores.get(key) is not None for row in board.rows)
    ]
    for key in available:
        cells = [_cell(row, key, bounds=False) for row in board.rows]
        if _width({**columns, key: cells}) > width:
            break
        columns[key] = cells
    # 2. Table and caption
    means = f" Means over thresholds {', '.join(board.thresholds)}." if board.thresholds else ""
    every = "" if shows_csv else " --csv FILE writes every score with its interval."
    caption = (
        f"Protocol {board.protocol} ({board.hash}), sorted by {by} ({_direction(by)}); in brackets 95 % intervals over "
        f"events.{means}{every}"
    )
    table = Table(caption=plain_text(caption), caption_justify="left")
    for title in columns:
        is_name = title == "forecast"
        table.add_column(
            plain_text(title), justify="left" if is_name else "right", overflow="fold", no_wrap=not is_name
        )
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*(plain_text(cell) for cell in cells))
    return table


def _width(columns: Mapping[str, Sequence[str]]) -> int:
    return sum(max(len(cell) for cell in (title, *cells)) + _CELL_FRAME for title, cells in columns.items()) + 1


def _cell(row: BoardRow, key: str, *, bounds: bool = True) -> str:
    value = row.scores.get(key)
    if value is None:
        return "-"
    count = places(key)
    low, high = row.intervals.get(key, (None, None)) if bounds else (None, None)
    interval = "" if low is None or high is None else f" [{low:.{count}f}, {high:.{count}f}]"
    return f"{value:.{count}f}{interval}"


def _as_csv(boards: Sequence[Board]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["windows", "protocol", "hash", "place", "name", "kind", "key", "value", "low", "high"])
    for board in boards:
        for place, row in enumerate(board.rows, start=1):
            for key, value in row.scores.items():
                numbers = (value, *row.intervals.get(key, (None, None)))
                cells = ["" if number is None else f"{number:.12g}" for number in numbers]
                writer.writerow([board.title, board.protocol, board.hash, place, row.name, row.kind, key, *cells])
    return text.getvalue()
