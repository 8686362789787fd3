"""``simcast data``: create, download, import, prepare and inspect data."""

from pathlib import Path
from typing import Annotated

import typer

from simcast_hpc.config import SynthesisConfig, from_mapping

from .data_download import download
from .data_import import import_
from .data_inspect import inspect
from .data_prepare import prepare
from .options import CommandGroup

app = CommandGroup(
    help="Create, download, import, prepare and inspect data.", no_args_is_help=True, rich_markup_mode=None
)
app.command("download")(download)
app.command("import")(import_)
app.command("inspect")(inspect)
app.command("prepare")(prepare)
_DEFAULTS = SynthesisConfig()


@app.command("synth")
def synth(
    root: Annotated[Path, typer.Argument(help="Folder to write CATALOG.csv and data/ to.", show_default=False)],
    seed: Annotated[int, typer.Option(help="Seed of the generator.")] = _DEFAULTS.seed,
    size: Annotated[int, typer.Option(help="Height and width of a frame in pixels.")] = _DEFAULTS.size,
    frames: Annotated[int, typer.Option(help="Frames per event, 5 minutes apart.")] = _DEFAULTS.frames_per_event,
    train: Annotated[int, typer.Option(help="Number of training events.")] = _DEFAULTS.train_events,
    val: Annotated[int, typer.Option(help="Number of validation events.")] = _DEFAULTS.val_events,
    test: Annotated[int, typer.Option(help="Number of test events.")] = _DEFAULTS.test_events,
) -> None:
    """Write a synthetic archive of storms in the layout of SEVIR.

    The name of its data set description is synthetic. Equal options give equal bytes.

    Example: simcast data synth storms --train 6 --val 2 --test 3
    """
    from simcast_hpc.data.synthetic import write_archive

    synthesis = from_mapping(
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
    written = write_archive(
        root,
        seed=synthesis.seed,
        size=synthesis.size,
        frames_per_event=synthesis.frames_per_event,
        events={"train": train, "val": val, "test": test},
    )
    archive = f"{train} + {val} + {test} events of {frames} frames of {size} x {size}"
    print(f"{archive} {'written to' if written else 'exist already in'} {root}")
