"""``simcast score-issued``: verify issued forecasts against the radar frames that came."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from simcast_hpc.config import ConfigError

from .options import DATASETS, MissingMembersOption, Quiet, Scores
from .predict_options import ZR, AnyInterval, OdimDataset


def score_issued(
    products: Annotated[
        Path,
        typer.Argument(
            help="Folder of forecasts (netCDF, Zarr) of simcast predict, with its subfolders.", show_default=False
        ),
    ],
    radar: Annotated[
        list[Path], typer.Argument(help="Folders of the radar frames that came, or files.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Output folder; it also contains the cache of counts.")] = Path(
        "issued-scores"
    ),
    since: Annotated[
        str | None,
        typer.Option(
            help="First issue time in UTC, for example 2025-01-01 or 2025-01-01T06:00 (default: all).",
            show_default=False,
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(help="Last issue time in UTC; a date includes its day (default: all).", show_default=False),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Description of the model's data, which defines encoding and thresholds (default: dataset.yaml in a "
            f"folder of RADAR or next to the forecast, or the one that the forecast names): {DATASETS}.",
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        list[float] | None,
        typer.Option(
            help="Threshold in the unit of the description's thresholds (repeatable; default: its thresholds).",
            show_default=False,
        ),
    ] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            help="Verification protocol (repeatable; default: global and pysteps, which has the FSS).",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            help="Baseline to forecast from the same frames and to score, for example persistence or extrapolation "
            "(repeatable; default: none).",
            show_default=False,
        ),
    ] = None,
    scores: Scores = None,
    missing_members: MissingMembersOption = "mask",
    cadence: Annotated[
        float | None,
        typer.Option(
            help="Expected minutes between issue times (default: the time step of the forecasts).", show_default=False
        ),
    ] = None,
    pattern: Annotated[str, typer.Option(help="Read only frames in folders whose names match.")] = "**/*",
    z_r: ZR = None,
    any_interval: AnyInterval = False,
    odim_dataset: OdimDataset = None,
    importer: Annotated[
        list[str] | None,
        typer.Option(
            help="Reader of the frames and its options, NAME key=value, as for simcast predict (default: detected by "
            "the content).",
            show_default=False,
        ),
    ] = None,
    encoded: Annotated[
        bool,
        typer.Option(
            "--encoded",
            help="Round the frames to the model's pixel values and compare these, as simcast evaluate does (default: "
            "thresholds are compared in physical units; an imported folder is always encoded).",
        ),
    ] = False,
    draws: Annotated[
        int, typer.Option(help="Bootstrap resamples of days for 95 % intervals; 0: no intervals.", min=0)
    ] = 1000,
    quiet: Quiet = False,
) -> None:
    """Score issued forecasts by month, lead time and threshold against the frames that came.

    Writes index.html, scores.csv, issues.csv and issued.json to --out: scores of each model and version with intervals
    over days, reliability of the probabilities, missing issue times, latency and the share of fallbacks. Counts of a
    forecast are cached, so that a later run reads only new forecasts and frames. With several ranks of MPI the
    forecasts are distributed.

    Example: simcast score-issued /products /radar/incoming --since 2025-01-01 --baseline persistence
    """
    from simcast_hpc.data.dataset_spec import ZRRelation
    from simcast_hpc.distributed.ranks import join_mpi_ranks
    from simcast_hpc.evaluation.issued import IssuedSettings
    from simcast_hpc.evaluation.issued import score_issued as score
    from simcast_hpc.evaluation.issued.score_issued import PROTOCOLS
    from simcast_hpc.monitoring.log import set_up_logging
    from simcast_hpc.radar.importer_choice import parse_importer
    from simcast_hpc.report.issued_page import issued_table, write_issued_page

    if z_r is not None and min(z_r) <= 0:
        raise ConfigError(f"--z-r {z_r[0]:g} {z_r[1]:g}: both must be above 0, for example 200 1.6 (Marshall-Palmer)")
    if cadence is not None and not cadence > 0:
        raise ConfigError(f"--cadence {cadence:g} must be above 0 minutes")
    ranks = join_mpi_ranks()
    set_up_logging(ranks.rank, quiet=quiet)
    settings = IssuedSettings(
        dataset=dataset,
        protocols=tuple(protocol or PROTOCOLS),
        scores=tuple(scores or ()),
        missing_members=missing_members,
        thresholds=None if not threshold else tuple(sorted(set(threshold))),
        baselines=tuple(dict.fromkeys(baseline or ())),
        since=None if since is None else parse_time(since, "--since"),
        until=None if until is None else parse_time(until, "--until", last=True),
        cadence_minutes=cadence,
        draws=draws,
        pattern=pattern,
        z_r=None if z_r is None else ZRRelation(a=z_r[0], b=z_r[1]),
        any_interval=any_interval,
        odim_dataset=odim_dataset,
        importer=parse_importer(importer),
        encoded=encoded,
    )
    if settings.since and settings.until and settings.since > settings.until:
        raise ConfigError(f"--since {since} is after --until {until}")
    result = score(products, radar, settings=settings, out=out, ranks=ranks)
    if ranks.is_first:
        page = write_issued_page(result, out)
        print(issued_table(result))
        print(f"scores: {out / 'scores.csv'}, {out / 'issues.csv'} and {page}")
    ranks.leave()


def parse_time(text: str, option: str, *, last: bool = False) -> datetime:
    """Return a time in UTC; ``last`` is the end of the day of a date.

    Raises:
        ConfigError: the text is not a time.
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"{option} {text!r} is not a time; expected UTC such as 2025-01-01T06:00") from error
    if last and len(text) <= len("2025-01-01"):
        time += timedelta(days=1, microseconds=-1)
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
