"""Synthetic radar files (ODIM composites and volumes, CF netCDF), and small models that forecast from them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyproj
import torch
import xarray as xr
from typer.testing import CliRunner

from simcast_hpc.cli import app
from tests.archives import tiny_config, write_trained

LAEA = "+proj=laea +lat_0=55.0 +lon_0=10.0 +x_0=1950000.0 +y_0=-2100000.0 +units=m +ellps=WGS84"
NODATA, UNDETECT = -9999000.0, -8888000.0
START = datetime(2024, 11, 26, 1, 0, tzinfo=UTC)


def moment(number: int, *, minutes: float = 5.0) -> datetime:
    return START + timedelta(minutes=minutes * number)


def write_odim(
    path: Path,
    values: np.ndarray,
    time: datetime,
    *,
    quantity: str = "DBZH",
    projection: str = LAEA,
    left: float = 2_640_000.0,
    top: float = -944_000.0,
    spacing: float = 1000.0,
    object_: str = "COMP",
    minutes: int = 5,
) -> Path:
    """Write an ODIM composite of ``values`` ``[H, W]``: NaN as nodata, minus infinity as undetect."""
    height, width = values.shape
    stored = np.where(np.isnan(values), NODATA, np.where(np.isneginf(values), UNDETECT, values))
    to_degrees = pyproj.Proj(projection)
    with h5py.File(path, "w") as file:
        file.attrs["Conventions"] = np.bytes_("ODIM_H5/V2_4")
        date, clock = np.bytes_(f"{time:%Y%m%d}"), np.bytes_(f"{time:%H%M%S}")
        begin = time - timedelta(minutes=minutes)
        file.create_group("what").attrs.update(
            {"object": np.bytes_(object_), "date": date, "time": clock, "source": np.bytes_("ORG:247")}
        )
        where = file.create_group("where").attrs
        where["projdef"] = np.bytes_(projection)
        where.update({"xsize": width, "ysize": height, "xscale": spacing, "yscale": spacing})
        for name, x, y in (("UL", 0, 0), ("UR", width, 0), ("LL", 0, height), ("LR", width, height)):
            where[f"{name}_lon"], where[f"{name}_lat"] = to_degrees(left + x * spacing, top - y * spacing, inverse=True)
        file.create_group("dataset1/what").attrs.update(
            {
                "startdate": np.bytes_(f"{begin:%Y%m%d}"),
                "starttime": np.bytes_(f"{begin:%H%M%S}"),
                "enddate": date,
                "endtime": clock,
                "product": np.bytes_("MAX"),
            }
        )
        data = file.create_group("dataset1/data1")
        data.create_dataset("data", data=stored, compression="gzip", compression_opts=1)
        data.create_group("what").attrs.update(
            {
                "gain": 1.0, "offset": 0.0, "nodata": NODATA, "undetect": UNDETECT,
                "quantity": np.bytes_(quantity),
            }
        )  # fmt: skip
    return path


def write_volume(path: Path, sweeps: dict[float, np.ndarray], *, quantity: str = "DBZH") -> Path:
    """Write an ODIM polar volume at 55 N 10 E, 1 km gates: dBZ ``[rays, gates]`` per elevation, -32 undetected."""
    date, clock = np.bytes_(f"{START:%Y%m%d}"), np.bytes_(f"{START:%H%M%S}")
    with h5py.File(path, "w") as file:
        file.attrs["Conventions"] = np.bytes_("ODIM_H5/V2_3")
        file.create_group("what").attrs.update(
            {"object": np.bytes_("PVOL"), "date": date, "time": clock, "source": np.bytes_("NOD:deess")}
        )
        file.create_group("where").attrs.update({"lon": 10.0, "lat": 55.0, "height": 100.0})
        file.create_group("how")
        for number, (elevation, values) in enumerate(sweeps.items(), 1):
            rays, gates = values.shape
            span = {"startdate": date, "starttime": clock, "enddate": date, "endtime": np.bytes_("010030")}
            sweep = file.create_group(f"dataset{number}")
            sweep.create_group("what").attrs.update({"product": np.bytes_("SCAN"), **span})
            sweep.create_group("where").attrs.update(
                {"elangle": elevation, "nrays": rays, "nbins": gates, "rscale": 1000.0, "rstart": 0.0, "a1gate": 0}
            )
            sweep.create_group("how")
            stored = np.where(np.isnan(values), 255, np.nan_to_num(2 * (values + 32))).astype(np.uint8)
            sweep.create_dataset("data1/data", data=stored)
            sweep.create_group("data1/what").attrs.update(
                {"quantity": np.bytes_(quantity), "gain": 0.5, "offset": -32.0, "nodata": 255.0, "undetect": 0.0}
            )
    return path


def write_cf(
    path: Path,
    values: np.ndarray,
    times: list[datetime],
    *,
    name: str = "rainfall_rate",
    units: str = "mm h-1",
    northward: bool = False,
    **attributes: Any,
) -> Path:
    """Write CF netCDF of ``values`` ``[T, H, W]`` on a 1 km polar stereographic grid, rows southward or northward."""
    _, height, width = values.shape
    crs = pyproj.CRS.from_user_input("+proj=stere +lat_0=90 +lat_ts=60 +lon_0=25 +ellps=WGS84")
    y = -2_000_500.0 - 1000.0 * np.arange(height)
    x = 500_500.0 + 1000.0 * np.arange(width)
    rows = slice(None, None, -1) if northward else slice(None)
    field_attributes = {"units": units, "standard_name": name, "grid_mapping": "crs", **attributes}
    dataset = xr.Dataset(
        {"field": (("time", "y", "x"), values[:, rows], field_attributes), "crs": ((), 0, crs.to_cf())},
        {
            "time": ("time", [np.datetime64(time.replace(tzinfo=None), "s") for time in times]),
            "y": ("y", y[rows], {"standard_name": "projection_y_coordinate", "units": "m"}),
            "x": ("x", x, {"standard_name": "projection_x_coordinate", "units": "m"}),
        },
    )
    dataset.to_netcdf(path, engine="h5netcdf")
    return path


def small_model(run_dir: Path, **over: Any) -> Path:
    """Write a finished run of a small SimVP with random weights: 3 frames in, 4 out, dBZ, 1 km pixels."""
    torch.manual_seed(4)
    sections = {"data": {"dataset": "fmi", "crop": 32}} | over
    return write_trained(tiny_config(run_dir, **sections))


def storm(number: int, *, shape: tuple[int, int] = (40, 52)) -> np.ndarray:
    """Return a reflectivity field ``[H, W]``: a cell that moves east, surrounded by no echo, with a missing corner."""
    row, column = np.mgrid[: shape[0], : shape[1]]
    distance = np.hypot(row - shape[0] / 2, column - 10.0 - 1.5 * number)
    field = np.where(distance < 12, 50.0 - 3 * distance, -np.inf)
    field[:3, -4:] = np.nan
    return field.round(1)


def predict(*arguments: object) -> list[Path]:
    """Run `simcast predict` and return the paths that it prints."""
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return [Path(line) for line in result.stdout.splitlines() if line]


def compliance_errors(path: Path, standard: str = "cf:1.8") -> str:
    """Return the report of the CF checker, empty if the file passes."""
    from compliance_checker.runner import CheckSuite, ComplianceChecker

    CheckSuite.load_all_available_checkers()
    report = path.with_suffix(".report.txt")
    passed, errors = ComplianceChecker.run_checker(
        str(path), [standard], 0, "strict", output_filename=str(report), output_format="text"
    )
    return "" if passed and not errors else report.read_text(encoding="utf-8")
