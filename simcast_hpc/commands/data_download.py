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
        str,
        typer.Argument(
            help="Data set: sevir. For hko7 and meteonet, print how to obtain the data.", show_default=False
        ),
    ],
    root: Annotated[Path, typer.Argument(help="Folder to download to.", show_default=False)],
    year: Annotated[
        list[int] | None, typer.Option(help="Year to download (repeatable; default: all).", show_default=False)
    ] = None,
    image_type: Annotated[str, typer.Option(help="Image type of SEVIR.")] = "vil",
    bucket: Annotated[str, typer.Option(help="S3 bucket with the layout of SEVIR.")] = "sevir",
    endpoint: Annotated[
        str | None, typer.Option(help="URL of the S3 server (default: AWS).", show_default=False)
    ] = None,
    stall_seconds: Annotated[float, typer.Option(help="Reconnect if no data arrives for this many seconds.")] = 30.0,
    tries: Annotated[
        int, typer.Option(min=1, help="Number of consecutive failures after which the download ends with an error.")
    ] = 8,
) -> None:
    """Download a public data set; the same command resumes an interrupted download.

    Writes the catalog and HDF5 files to ROOT, in the layout that simcast data prepare reads, and verifies checksums.

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
