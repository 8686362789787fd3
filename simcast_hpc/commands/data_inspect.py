"""``simcast data inspect``: every problem of prepared or raw data by file and event, statistics, pictures."""

import json
from pathlib import Path
from typing import Annotated

import typer

from simcast_hpc.data.data_errors import KINDS

from .options import Dataset


def inspect(
    root: Annotated[Path, typer.Argument(help="Folder of prepared shards or of raw data.", show_default=False)],
    dataset: Dataset = "sevir",
    allow: Annotated[
        list[str] | None,
        typer.Option(help=f"A kind of problem that is known; may be repeated: {', '.join(KINDS)}.", show_default=False),
    ] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder for PNG pictures of a few events.")] = None,
) -> None:
    """Look at data as a whole; the exit status is 1 where there is a problem that is not allowed.

    Example: simcast data inspect /data/sevir --allow repeated-id --pictures look
    """
    from simcast_hpc.config import ConfigError
    from simcast_hpc.data.dataset_spec import read_spec
    from simcast_hpc.data.inspection import inspect
    from simcast_hpc.report.event_strip import draw_event

    allowed = set(allow or ())
    unknown = sorted(allowed - set(KINDS))
    if unknown:
        raise ConfigError(f"--allow {unknown[0]}: the kinds of problems are {', '.join(KINDS)}")
    spec = read_spec(dataset)
    found = inspect(spec, root)
    for name, fact in found.facts.items():
        print(f"{name}: {json.dumps(fact)}")
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        for picture in found.pictures:
            path = pictures / f"{picture.event}.png"
            draw_event(spec, picture.event, picture.codes).savefig(path)
            print(path)
    for problem in found.problems:
        print(f"{'allowed ' if problem.kind in allowed else ''}{problem}")
    wrong = sum(problem.kind not in allowed for problem in found.problems)
    print(f"{root}: {wrong} problems, {len(found.problems) - wrong} allowed")
    if wrong:
        raise typer.Exit(1)
