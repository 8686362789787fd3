"""``simcast data``: making, fetching and looking at data."""

from pathlib import Path
from typing import Annotated

import typer

from simcast_hpc.config import SynthesisConfig, from_mapping

from .data_download import download
from .data_inspect import inspect
from .data_prepare import PREPARE_HELP, prepare

app = typer.Typer(help="Make and look at data.", no_args_is_help=True)
app.command("download")(download)
app.command("inspect")(inspect)
app.command("prepare", help=PREPARE_HELP)(prepare)
_DEFAULTS = SynthesisConfig()


@app.callback()
def data() -> None:
    """Make and look at data."""


@app.command("synth")
def synth(
    root: Annotated[Path, typer.Argument(help="Folder to write; it gets CATALOG.csv and data/.", show_default=False)],
    seed: Annotated[int, typer.Option(help="Another seed, other storms.")] = _DEFAULTS.seed,
    size: Annotated[int, typer.Option(help="Pixels on a side.")] = _DEFAULTS.size,
    frames: Annotated[int, typer.Option(help="Frames of an event, 5 minutes apart.")] = _DEFAULTS.frames_per_event,
    train: Annotated[int, typer.Option(help="Training events.")] = _DEFAULTS.train_events,
    val: Annotated[int, typer.Option(help="Validation events.")] = _DEFAULTS.val_events,
    test: Annotated[int, typer.Option(help="Test events.")] = _DEFAULTS.test_events,
) -> None:
    """Write a synthetic archive in SEVIR's layout; the same call gives the same bytes.

    Commands take it with --dataset synthetic, configurations with data.dataset: synthetic.

    Example: simcast data synth storms --train 6 --val 2 --test 3
    """
    from simcast_hpc.data.synthetic import write_archive

    asked = from_mapping(
        SynthesisConfig,
        {
            "seed": seed,
            "size": size,
            "frames_per_event": frames,
            "train_events": train,
            "val_events": val,
            "test_events": test,
        },
        where="simcast data synth",
    )
    made = write_archive(
        root,
        seed=asked.seed,
        size=asked.size,
        frames_per_event=asked.frames_per_event,
        events={"train": train, "val": val, "test": test},
    )
    said = f"{train} + {val} + {test} events of {frames} frames of {size} x {size}"
    print(f"{said} {'written to' if made else 'stand already in'} {root}")
