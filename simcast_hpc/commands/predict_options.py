"""Arguments and options of ``simcast predict``."""

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[
    Path,
    typer.Argument(
        help="Run directory of a finished teacher, student, direct or diffusion stage, or a baseline: persistence, "
        "extrapolation, pysteps-lk, darts, s-prog, steps, linda or anvil.",
        show_default=False,
    ),
]
FramePaths = Annotated[
    list[Path] | None, typer.Argument(help="Radar files, or folders of radar files.", show_default=False)
]
Out = Annotated[Path, typer.Option(help="Output folder. File names start with forecast_ and the issue time.")]
Write = Annotated[
    list[str] | None,
    typer.Option(
        help="Format: nc or zarr (one is required), and png, gif, cog, overlay, odim, csv or geojson (repeatable; "
        "default: nc and png).",
        show_default=False,
    ),
]
At = Annotated[
    str | None,
    typer.Option(
        help="Issue time in UTC, for example 2024-06-11T12:05 (default: the newest frame).", show_default=False
    ),
]
Pattern = Annotated[str, typer.Option(help="Read only files in folders whose names match, for example '*.h5'.")]
Bridge = Annotated[
    int,
    typer.Option(
        help="Interpolate pixels, or complete frames, that are missing in up to this many consecutive frames; "
        "0 rejects missing frames.",
        min=0,
    ),
]
ZR = Annotated[
    tuple[float, float] | None,
    typer.Option(
        "--z-r",
        help="A and B of the Z-R relation Z = A R^B, to convert between dBZ and mm/h, for example 200 1.6.",
        metavar="A B",
        show_default=False,
    ),
]
AnySpacing = Annotated[
    bool, typer.Option("--any-spacing", help="Accept a pixel spacing other than that of the training data.")
]
AnyInterval = Annotated[
    bool,
    typer.Option(
        "--any-interval",
        help="Accept accumulations over more than 1.5 time steps of the model; the mean rate is used.",
    ),
]
OdimDataset = Annotated[
    int | None,
    typer.Option(
        help="Number N of datasetN that is read from ODIM files (default: the lowest level, or the first).",
        min=1,
        show_default=False,
    ),
]
Tile = Annotated[
    tuple[int, int] | None,
    typer.Option(
        help="Height and width of tiles in pixels (default: the training grid).",
        metavar="HEIGHT WIDTH",
        show_default=False,
    ),
]
Overlap = Annotated[
    int | None,
    typer.Option(help="Overlap of tiles in pixels (default: a quarter of a tile).", show_default=False),
]
Batch = Annotated[int, typer.Option(help="Tiles that are forecast together; memory grows with it.", min=1)]
NoMembers = Annotated[
    bool,
    typer.Option("--no-members", help="Write only the mean and the probabilities of an ensemble, not its members."),
]
SamplingOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Override a field of the section sampling of an ensemble, for example members=20 (repeatable); for the "
        "baseline steps only members.",
        metavar="KEY=VALUE",
        show_default=False,
    ),
]
Institution = Annotated[str, typer.Option(help="Issuing institution, stored in the attributes of the file.")]
Watch = Annotated[
    Path | None,
    typer.Option(help="Folder to watch instead of FRAMES: forecast from every new frame.", show_default=False),
]
Every = Annotated[float, typer.Option(help="With --watch, seconds between scans of the folder.", min=0.05)]
Late = Annotated[
    float,
    typer.Option(
        help="With --watch, issue or update forecasts up to this many minutes older than the newest frame.", min=0
    ),
]
Keep = Annotated[
    int | None,
    typer.Option(
        help="With --watch, number of newest issue times whose files are kept (default: all).",
        min=1,
        show_default=False,
    ),
]
Importer = Annotated[
    list[str] | None,
    typer.Option(
        help="Reader of the radar files and its options, for example 'pysteps:dwd_radolan product_name=RY' (default: "
        "by the content of the file).",
        metavar="'NAME KEY=VALUE ...'",
        show_default=False,
    ),
]
Like = Annotated[
    Path | None,
    typer.Option(
        help="For a baseline: run directory whose encoding, pixels, time step and numbers of frames are used.",
        show_default=False,
    ),
]
Description = Annotated[
    str | None,
    typer.Option(
        "--dataset-description",
        help="For a baseline: data set description (name or YAML file) whose encoding, pixels and time step are used "
        "(default: unit and pixels of the frames, unrounded).",
        metavar="NAME|FILE",
        show_default=False,
    ),
]
Step = Annotated[
    float | None,
    typer.Option(
        help="For a baseline: minutes between frames (default: inferred from the frames).", show_default=False
    ),
]
FramesIn = Annotated[
    int | None,
    typer.Option(help="For a baseline: largest number of input frames.", min=1, show_default=False),
]
FramesOut = Annotated[int | None, typer.Option(help="For a baseline: number of lead times.", min=1, show_default=False)]
Minutes = Annotated[
    float | None,
    typer.Option(help="For a baseline: last lead time in minutes (default: 120).", show_default=False),
]
Fallback = Annotated[
    str | None,
    typer.Option(
        help="Forecast by extrapolation or persistence if the model cannot be loaded, fails, or lacks input frames; "
        "the product states it.",
        metavar="BASELINE",
        show_default=False,
    ),
]
MaskInflow = Annotated[
    bool,
    typer.Option("--mask-inflow", help="Set pixels to missing whose back-trajectory starts outside the observed area."),
]
BlendBorder = Annotated[
    float,
    typer.Option(
        help="Blend the forecast of a model with extrapolation within this distance in km of the border of the "
        "observed area; 0 for none.",
        min=0,
        max=1000,
    ),
]
NoValidity = Annotated[
    bool, typer.Option("--no-validity", help="Do not compute the variable validity, which marks these pixels.")
]
Stale = Annotated[
    float,
    typer.Option(
        help="With --watch, report the state stale if the newest frame is older than this number of time steps.", min=1
    ),
]
Prometheus = Annotated[
    Path | None,
    typer.Option(help="With --watch, text file with the status for Prometheus (*.prom).", show_default=False),
]
