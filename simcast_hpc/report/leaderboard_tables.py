"""Results of several evaluations side by side: only numbers of one protocol on the same windows share a table."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from simcast_hpc.config import ConfigError
from simcast_hpc.storage.atomic_files import write_text

from .example_window import ResultsError
from .pipeline_results import ScoreFile

_COLUMNS = ("csi/mean", "csi_pool4/mean", "csi_pool16/mean", "hss/mean", "mse", "mae", "crps", "ssim")
_LOWER_IS_BETTER = ("mse", "mae", "crps", "far", "brier", "balanced")


@dataclass(frozen=True)
class BoardRow:
    """One forecast under one protocol."""

    name: str
    kind: str
    scores: dict[str, float | None]
    intervals: dict[str, tuple[float | None, float | None]]


@dataclass(frozen=True)
class Board:
    """Rows that may be compared, and what they share."""

    title: str
    protocol: str
    hash: str
    thresholds: tuple[str, ...]
    rows: tuple[BoardRow, ...]


def read_boards(paths: Sequence[Path], *, by: str = "csi/mean") -> list[Board]:
    """Return one board for each data set, set of windows, protocol and set of averaged thresholds, best row first.

    A baseline that stands in several files with the same scores stands once. Rows of equal name from several folders
    are told apart by the folder.

    Raises:
        ResultsError: a path holds no scores, or nothing has the score ``by``.
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
                found = scores.scores[entry.name][protocol]
                if by not in found:
                    raise ResultsError(
                        f"{path} has no score {by!r} under {protocol}; it has {', '.join(list(found)[:8])}, ..."
                    )
                row = BoardRow(entry.name, entry.kind, found, scores.intervals.get(entry.name, {}).get(protocol, {}))
                if not any(other.name == row.name and other.scores == row.scores for other in rows):
                    taken = any(other.name == row.name for other in rows)
                    rows.append(BoardRow(f"{path.parent.name}/{row.name}", *_rest(row)) if taken else row)
    return [
        Board(str(title), str(protocol), str(digest), tuple(supported), _ordered(rows, by))  # type: ignore[arg-type]
        for (_, title, protocol, digest, supported), rows in grouped.items()
    ]


def _rest(row: BoardRow) -> tuple[str, dict[str, float | None], dict[str, tuple[float | None, float | None]]]:
    return row.kind, row.scores, row.intervals


def _ordered(rows: Sequence[BoardRow], by: str) -> tuple[BoardRow, ...]:
    sign = 1 if by.startswith(_LOWER_IS_BETTER) else -1

    def place(row: BoardRow) -> tuple[bool, float]:
        value = row.scores[by]
        return (value is None, 0.0 if value is None else sign * value)

    return tuple(sorted(rows, key=place))


def _score_files(path: Path) -> list[tuple[Path, ScoreFile]]:
    folders = (path, path / "scores") if path.is_dir() else ()
    candidates = [file for folder in folders for file in sorted(folder.glob("*.json"))] if folders else [path]
    found = []
    for candidate in candidates:
        try:
            found.append((candidate, ScoreFile.model_validate_json(candidate.read_text(encoding="utf-8"))))
        except (OSError, ValidationError) as error:
            if not path.is_dir():
                raise ResultsError(f"{path} holds no scores of `simcast evaluate`: {error}") from error
    if not found:
        raise ResultsError(f"{path} holds no scores; give the folder that `simcast evaluate --out` wrote, or its JSON")
    return found


def print_leaderboard(
    paths: Sequence[Path], *, by: str = "csi/mean", csv_path: Path | None = None, console: Console | None = None
) -> None:
    """Print boards, and write them as CSV if asked.

    Raises:
        ResultsError: see :func:`read_boards`.
        ConfigError: the CSV cannot be written.
    """
    console = console or Console()
    boards = read_boards(paths, by=by)
    for board in boards:
        console.print(Text(f"\n{board.title}", style="bold"))
        console.print(_rendered(board, by))
    if csv_path is not None:
        try:
            write_text(csv_path, _as_csv(boards))
        except OSError as error:
            raise ConfigError(f"{csv_path} cannot be written: {error.strerror}") from error


def _rendered(board: Board, by: str) -> Table:
    top = [f"{name}/{label}" for label in board.thresholds[-2:] for name in ("csi", "pod", "far", "frequency_bias")]
    wanted = [by, *(key for key in (*_COLUMNS, *top) if key != by)]
    keys = [key for key in wanted if any(row.scores.get(key) is not None for row in board.rows)]
    means = f"means over thresholds {', '.join(board.thresholds)}; " if board.thresholds else ""
    caption = f"Protocol {board.protocol} ({board.hash}); {means}brackets: 95 % of resamples of events."
    shown = Table(caption=caption, caption_justify="left")
    shown.add_column("score", overflow="fold")
    for row in board.rows:
        shown.add_column(row.name, justify="right", overflow="fold")
    for key in keys:
        shown.add_row(key, *(_cell(row, key) for row in board.rows))
    return shown


def _cell(row: BoardRow, key: str) -> str:
    value = row.scores.get(key)
    if value is None:
        return "-"
    places = 5 if key in ("mse", "mae", "crps") else 3
    low, high = row.intervals.get(key, (None, None))
    bounds = "" if low is None or high is None else f" [{low:.{places}f}, {high:.{places}f}]"
    return f"{value:.{places}f}{bounds}"


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
