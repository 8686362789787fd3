"""``simcast data download``: download public data, resumable and verified."""

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
    archive: Annotated[
        str,
        typer.Argument(
            help="sevir, or an open radar archive: opera, knmi, fmi, mch, mrms, uk, radklim, dmi, fr, it, or a Zarr "
            "store of the mlcast catalog, such as dmi_10_minutes. For hko7 and meteonet, print how to obtain the data.",
            show_default=False,
        ),
    ],
    target: Annotated[Path, typer.Argument(help="Folder to download to.", show_default=False)],
    begin: Annotated[
        str | None,
        typer.Option("--from", help="First time (UTC), such as 2024-06-01 or 2024-06-01T12:00.", show_default=False),
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", help="End of the period (UTC), not included.", show_default=False)
    ] = None,
    product: Annotated[
        str | None, typer.Option(help="Product of the archive (default: its first one).", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count files and bytes, and write nothing.")] = False,
    connections: Annotated[int, typer.Option(min=1, max=16, help="Number of files transferred at once.")] = 4,
    endpoint: Annotated[
        str | None, typer.Option(help="URL of a mirror (default: the provider's host).", show_default=False)
    ] = None,
    stall_seconds: Annotated[
        float, typer.Option(min=0.1, help="Reconnect if no data arrives for this many seconds.")
    ] = 30.0,
    tries: Annotated[
        int, typer.Option(min=1, help="Number of consecutive failures after which the download ends with an error.")
    ] = 8,
    year: Annotated[
        list[int] | None, typer.Option(help="sevir: year to download (repeatable; default: all).", show_default=False)
    ] = None,
    image_type: Annotated[str, typer.Option(help="sevir: image type.")] = "vil",
    bucket: Annotated[str, typer.Option(help="sevir: S3 bucket with the layout of SEVIR.")] = "sevir",
) -> None:
    """Download a public data set; the same command resumes an interrupted download.

    Radar archives need a period. Files are stored in TARGET/YYYY/MM/DD, the license in TARGET/license.json. For sevir,
    the layout is that of simcast data prepare.

    Example: simcast data download fmi /raw/fmi --from 2024-06-01 --to 2024-07-01
    """
    if archive in _MANUAL:
        raise ConfigError(_MANUAL[archive])
    import logging

    from simcast_hpc.data.download.archive_description import parse_period
    from simcast_hpc.data.download.archive_download import ArchiveDownload, TransferOptions
    from simcast_hpc.data.download.object_transfer import RetryPolicy
    from simcast_hpc.data.download.open_archives import find_archive
    from simcast_hpc.monitoring.log import set_up_logging
    from simcast_hpc.monitoring.progress import Progress

    set_up_logging(0)
    logger = logging.getLogger(__name__)

    def start_progress(total: int, unit: str = "B"):
        return Progress(logger, "download", total, unit=unit).advance

    # 1. SEVIR
    if archive == "sevir":
        from simcast_hpc.data.download.sevir_download import Store
        from simcast_hpc.data.download.sevir_download import download as download_sevir

        if begin or end or product or dry_run:
            raise ConfigError("--from, --to, --product and --dry-run do not apply to sevir; choose years by --year")
        objects = download_sevir(
            Store(bucket, endpoint, stall_seconds),
            target,
            image_type=image_type,
            years=year,
            retry=RetryPolicy(tries=tries),
            on_start=start_progress,
        )
        size = sum(one.size or 0 for one in objects) / 1e9
        print(f"{target}: {len(objects)} files, {size:.1f} GB, verified; next: simcast data prepare {target} SHARDS")
        return
    # 2. Radar archives
    found = find_archive(archive)
    if year:
        raise ConfigError("--year applies only to sevir; choose a period by --from and --to")
    product_name, description = found.product(product, archive=archive)
    period = parse_period(begin, end)
    options = TransferOptions(endpoint, connections, stall_seconds, RetryPolicy(tries=tries))
    for line in _terms(found):
        print(line)
    if description.service == "zarr":
        from simcast_hpc.data.download.zarr_download import StoreDownload

        store_download = StoreDownload(archive, found, period, target, options)
        store = store_download.open()
        steps = store_download.plan(store)
        print(
            f"{archive}: {steps.end - steps.begin} times, {steps.copied} of them copied, "
            f"{steps.raw_bytes / 1e9:.2f} GB to copy (uncompressed)"
        )
        if not dry_run:
            store_download.run(store, steps, on_start=lambda total: start_progress(total, "times"))
            print(f"{steps.into}: {steps.end - steps.begin} times; {description.next_step(target)}")
        return
    job = ArchiveDownload(archive, found, product_name, period, target, options)
    plan = job.plan()
    about = "about " if plan.is_estimate else ""
    print(
        f"{archive} {product_name}: {len(plan.files)} files, {len(plan.files) - len(plan.pending)} of them downloaded; "
        f"{about}{plan.pending_bytes / 1e9:.3f} GB to download"
    )
    missing = plan.missing if dry_run else job.run(plan, on_start=start_progress)
    _print_missing([f"{time:%Y-%m-%dT%H:%MZ}" for time in missing], target, dry_run=dry_run)
    if not dry_run:
        print(f"{target}: complete; {description.next_step(target)}")


def _terms(archive) -> list[str]:
    """Return the lines about the license of an archive."""
    from simcast_hpc.data.data_license import share_alike_notice

    lines = [f"{archive.title}", f"License: {archive.license} ({archive.terms})", f"Attribution: {archive.attribution}"]
    notice = share_alike_notice(archive.license)
    return [*lines, notice] if notice else lines


def _print_missing(missing: list[str], target: Path, *, dry_run: bool) -> None:
    if not missing:
        return
    from simcast_hpc.data.download.archive_download import MISSING_TIMES

    rest = f", ... ({len(missing) - 10} more" if len(missing) > 10 else ""
    where = "" if dry_run else f"{', ' if rest else ' ('}all in {target / MISSING_TIMES}"
    end = ")" if rest or where else ""
    print(f"{len(missing)} times have no file: {', '.join(missing[:10])}{rest}{where}{end}")
