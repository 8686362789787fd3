"""The score tables of a run in the terminal."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from simcast_hpc.config import from_mapping

from .findings_text import claims, general_claims, headlines, thresholds_in_the_mean
from .pipeline_results import ScoreFile, read_results
from .score_tables import Table, lead_table

_CELL_FRAME = 3  # a border and a space on either side


def print_tables(run_dir: Path, *, console: Console | None = None) -> None:
    """Print mean CSI by lead time for every test set of a finished pipeline run, and what it says.

    Raises:
        ResultsError: a result is absent or damaged.
        ConfigError: the configuration or a score file has a wrong or missing key.
    """
    console = console or Console()
    run = read_results(run_dir)
    for test_set in run.test_sets:
        scores = test_set.scores
        size = f"{scores.windows} windows of {scores.events} events"
        console.print(Text(f"\n{scores.title}: {size}", style="bold"))
        console.print(_rendered(lead_table(scores), width=console.width))
        is_first = test_set is run.test_sets[0]
        for sentence in claims(run, scores) if is_first else headlines(run, scores):
            console.print(Text(f"- {sentence}"))
    console.print(Text("\nThe whole run", style="bold"))
    for sentence in general_claims(run):
        console.print(Text(f"- {sentence}"))


def print_scores(path: Path, *, console: Console | None = None) -> None:
    """Print mean CSI by lead time from one score file, as ``simcast evaluate`` writes it.

    Raises:
        ConfigError: the file has a wrong or missing key.
    """
    console = console or Console()
    scores = from_mapping(ScoreFile, json.loads(path.read_text(encoding="utf-8")), where=str(path))
    console.print(Text(f"\n{scores.title}: {scores.windows} windows of {scores.events} events", style="bold"))
    console.print(_rendered(lead_table(scores), width=console.width))
    console.print(Text(f"- {thresholds_in_the_mean(scores)}"))


def _rendered(content: Table, *, width: int) -> RichTable:
    """Return the table for rich; on its side where it is wider than ``width`` and narrower so."""
    rows = [
        [Text(row.heading), *(Text(cell, "bold" if k in row.best else "") for k, cell in enumerate(row.cells))]
        for group in content.groups
        for row in group.rows
    ]
    grid = [[Text(column) for column in content.columns], *rows]
    turned = [list(column) for column in zip(*grid, strict=True)]
    turned[0][0] = Text("Lead time")
    heads, *rows = turned if width < _width(grid) > _width(turned) else grid
    shown = RichTable(caption=Text(content.caption), caption_justify="left")
    for k, head in enumerate(heads):
        shown.add_column(head, justify="left" if k == 0 else "right", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    return shown


def _width(grid: list[list[Text]]) -> int:
    return sum(max(cell.cell_len for cell in column) + _CELL_FRAME for column in zip(*grid, strict=True)) + 1
