"""``simcast data download``: download public data sets, resumable and verified."""

from pathlib import Path
from typing import Annotated

import typer

from simcast_hpc.config import ConfigError

_MANUAL = {
    "hko7": "HKO-7 is available to institutes on request; docs/reference/file-formats.md describes how, and the layout",
    "meteonet": "MeteoNet is downloaded by hand from https://meteonet.umr-cnrm.fr or Kaggle (katerpillar/meteonet); "
    "simcast data prepare reads its tar and npz files, see docs/reference/file-formats.md",
}


def download(
    dataset: Annotated[
        str, typer.Argument(help="sevir; for hko7 and meteonet the source is printed.", show_default=False)
    ],
    root: Annotated[Path, typer.Argument(help="Folder to download to.", show_default=False)],
    year: Annotated[
        list[int] | None, typer.Option(help="Year to download (repeatable; default: all).", show_default=False)
    ] = None,
    image_type: Annotated[str, typer.Option(help="SEVIR image type.")] = "vil",
    bucket: Annotated[str, typer.Option(help="S3 bucket in the layout of SEVIR.")] = "sevir",
    endpoint: Annotated[
        str | None, typer.Option(help="URL of another S3 server (default: AWS).", show_default=False)
    ] = None,
    stall_seconds: Annotated[float, typer.Option(help="Reconnect after this many seconds without data.")] = 30.0,
    tries: Annotated[int, typer.Option(min=1, help="Consecutive failures before the download ends.")] = 8,
) -> None:
    """Download a public data set; the same command resumes an interrupted download.

    Example: simcast data download sevir /raw/sevir --year 2018 --year 2019
    """
    if dataset != "sevir":
        unknown = f"{dataset!r} cannot be downloaded; choose sevir, or {' or '.join(_MANUAL)} for their source"
        raise ConfigError(_MANUAL.get(dataset, unknown))
    import logging

    from simcast_hpc.data.download.s3_transfer import RetryPolicy
    from simcast_hpc.data.download.sevir_download import Store, download
    from simcast_hpc.monitoring.log import set_up_logging
    from simcast_hpc.monitoring.progress import Progress

    set_up_logging(0)
    logger = logging.getLogger(__name__)

    def start_progress(missing_bytes: int):
        return Progress(logger, "download", missing_bytes, unit="B").advance

    store = Store(bucket, endpoint, stall_seconds)
    objects = download(
        store, root, image_type=image_type, years=year, retry=RetryPolicy(tries=tries), on_start=start_progress
    )
    size = sum(one.size for one in objects) / 1e9
    print(f"{root}: {len(objects)} files, {size:.1f} GB, verified; next: simcast data prepare {root} SHARDS")
