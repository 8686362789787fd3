"""Print score tables and findings in the terminal."""

from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from simcast_hpc.config import from_mapping
from simcast_hpc.config.text_files import printable

from .additional_scores import additional_table
from .baseline_findings import baseline_findings
from .findings_text import findings, headlines, run_findings, thresholds_of_the_mean
from .pipeline_results import ScoreFile, read_json, read_results
from .score_tables import Table, lead_table

_CELL_FRAME = 3  # a border and a space on either side


def print_tables(run_dir: Path, *, console: Console | None = None) -> None:
    """Print mean CSI by lead time for every test set of a finished pipeline run, and its findings.

    Raises:
        ResultsError: a result is missing or damaged.
        ConfigError: the configuration or a score file has an invalid or missing key.
    """
    console = console or Console()
    run = read_results(run_dir)
    for test_set in run.test_sets:
        scores = test_set.scores
        size = f"{scores.windows} windows of {scores.events} events"
        console.print(plain_text(f"\n{scores.title}: {size}", style="bold"))
        console.print(_rich_table(lead_table(scores), width=console.width))
        is_first = test_set is run.test_sets[0]
        for sentence in findings(run, scores) if is_first else headlines(run, scores):
            console.print(plain_text(f"- {sentence}"))
        _print_baselines(scores, console)
    console.print(plain_text("\nRun", style="bold"))
    for sentence in run_findings(run):
        console.print(plain_text(f"- {sentence}"))


def print_scores(path: Path, *, console: Console | None = None) -> None:
    """Print mean CSI by lead time, and requested scores, from one score file of ``simcast evaluate``.

    Raises:
        ConfigError: the file has an invalid or missing key.
    """
    console = console or Console()
    scores = from_mapping(ScoreFile, read_json(path, hint="give a score file of `simcast evaluate`"), where=str(path))
    console.print(plain_text(f"\n{scores.title}: {scores.windows} windows of {scores.events} events", style="bold"))
    console.print(_rich_table(lead_table(scores), width=console.width))
    additional = additional_table(scores, next(iter(scores.protocols)))
    if additional is not None:
        console.print(_rich_table(additional, width=console.width, transposed_heading="Score"))
    console.print(plain_text(f"- {thresholds_of_the_mean(scores)}"))
    _print_baselines(scores, console)


def _print_baselines(scores: ScoreFile, console: Console) -> None:
    """Print the scores over all thresholds in which a baseline is better; single thresholds are in the report."""
    found = baseline_findings(scores)
    more = f" {len(found.thresholds)} scores of single thresholds are in the report." if found.thresholds else ""
    for sentence in (f"{found.count}{more}", *found.overall):
        console.print(plain_text(f"- {sentence}"))


def plain_text(content: str, style: str = "") -> Text:
    """Return a text for rich, without markup or characters that control the terminal."""
    return Text(printable(content, keep="\n"), style)


def _rich_table(content: Table, *, width: int, transposed_heading: str = "Lead time") -> RichTable:
    """Return the table for rich; transposed if it is wider than ``width`` and the transposed table is narrower."""
    rows = [
        [
            plain_text(row.heading),
            *(plain_text(cell, "bold" if k in row.best else "") for k, cell in enumerate(row.cells)),
        ]
        for group in content.groups
        for row in group.rows
    ]
    grid = [[plain_text(column) for column in content.columns], *rows]
    transposed = [list(column) for column in zip(*grid, strict=True)]
    transposed[0][0] = plain_text(transposed_heading)
    heads, *rows = transposed if width < _width(grid) > _width(transposed) else grid
    table = RichTable(caption=plain_text(content.caption), caption_justify="left")
    for k, head in enumerate(heads):
        table.add_column(head, justify="left" if k == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _width(grid: list[list[Text]]) -> int:
    return sum(max(cell.cell_len for cell in column) + _CELL_FRAME for column in zip(*grid, strict=True)) + 1
