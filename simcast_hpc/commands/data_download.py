"""``simcast data download``: public data, resumable and verified; how to come by what is not public."""

from pathlib import Path
from typing import Annotated

import typer

from simcast_hpc.config import ConfigError

_ELSEWHERE = {
    "hko7": "HKO-7 is given to institutes on a signed undertaking; docs/data.md says how to apply, and its layout",
    "meteonet": "MeteoNet is fetched by hand from https://meteonet.umr-cnrm.fr or Kaggle (katerpillar/meteonet); "
    "simcast data prepare reads its tar and npz files as they are, see docs/data.md",
}


def download(
    dataset: Annotated[str, typer.Argument(help="sevir; for hko7 and meteonet it is said where they are.")],
    root: Annotated[Path, typer.Argument(help="Folder to fill.", show_default=False)],
    year: Annotated[list[int] | None, typer.Option(help="A year; may be repeated. All without it.")] = None,
    image_type: Annotated[str, typer.Option(help="Kind of image.")] = "vil",
    bucket: Annotated[str, typer.Option(help="Bucket of SEVIR's layout.")] = "sevir",
    endpoint: Annotated[str | None, typer.Option(help="URL of another S3 server.")] = None,
    stall_seconds: Annotated[float, typer.Option(help="A connection silent for so long is made anew.")] = 30.0,
    tries: Annotated[int, typer.Option(min=1, help="Failures in a row before giving up.")] = 8,
) -> None:
    """Fetch a public data set; started again, it goes on where it stopped.

    Example: simcast data download sevir /raw/sevir --year 2018 --year 2019
    """
    import logging

    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from simcast_hpc.data.download.s3_transfer import RetryPolicy
    from simcast_hpc.data.download.sevir_download import Store, download
    from simcast_hpc.monitoring.log import set_up_logging

    if dataset != "sevir":
        known = f"{dataset!r} cannot be fetched; sevir can, and it is said where {' and '.join(_ELSEWHERE)} are"
        raise ConfigError(_ELSEWHERE.get(dataset, known))
    set_up_logging(0)
    bar = Progress(BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with bar:
        task = bar.add_task("SEVIR")

        def started(missing: int):
            bar.update(task, total=missing)
            return lambda count: bar.advance(task, count)

        store = Store(bucket, endpoint, stall_seconds)
        objects = download(
            store, root, image_type=image_type, years=year, patience=RetryPolicy(tries=tries), started=started
        )
    logging.getLogger(__name__).info("%d files, %.1f GB", len(objects), sum(o.size for o in objects) / 1e9)
    print(f"{root}: {len(objects)} files stand as they are on the server; next: simcast data prepare {root} SHARDS")
