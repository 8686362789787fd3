"""A small valid file of every radar format, from which fuzzing starts, and Zarr stores as one byte string."""

import struct
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import pyproj
import rasterio
import xarray as xr
from PIL import Image

from tests.radar.grib_files import grib_message
from tests.radar.radolan_files import write_radolan

TIME = datetime(2024, 11, 26, 1, 0, tzinfo=UTC)
LAEA = "+proj=laea +lat_0=55 +lon_0=10 +x_0=1950000 +y_0=-2100000 +units=m +ellps=WGS84"
_SEPARATOR = b"\n-- next file of the store --\n"
_STEREO = "+proj=stere +lat_0=90 +lon_0=0 +lat_ts=60 +a=6378.137 +b=6356.752 +x_0=0 +y_0=0"


def _odim(path: Path, quantity: str = "DBZH", offset: float = -32.0) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["Conventions"] = np.bytes_("ODIM_H5/V2_3")
        file.create_group("what").attrs.update(
            {"object": np.bytes_("COMP"), "date": np.bytes_("20241126"), "time": np.bytes_("010000")}
        )
        where = file.create_group("where").attrs
        where.update({"projdef": np.bytes_(LAEA), "xsize": 6, "ysize": 4, "xscale": 1000.0, "yscale": 1000.0})
        to_degrees = pyproj.Proj(LAEA)
        for name, x, y in (("UL", 0, 0), ("UR", 6, 0), ("LL", 0, 4), ("LR", 6, 4)):
            corner = to_degrees(2_640_000.0 + 1000 * x, -944_000.0 - 1000 * y, inverse=True)
            where[f"{name}_lon"], where[f"{name}_lat"] = corner
        file.create_group("dataset1/what").attrs.update(
            {"startdate": np.bytes_("20241126"), "starttime": np.bytes_("005500"), "enddate": np.bytes_("20241126"),
             "endtime": np.bytes_("010000"), "product": np.bytes_("MAX"), "prodpar": 0.0}
        )  # fmt: skip
        file["dataset1/data1/data"] = np.arange(24, dtype=np.uint8).reshape(4, 6)
        file.create_group("dataset1/data1/what").attrs.update(
            {"gain": 0.5, "offset": offset, "nodata": 255.0, "undetect": 0.0, "quantity": np.bytes_(quantity)}
        )


def _polar(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["Conventions"] = np.bytes_("ODIM_H5/V2_3")
        date, clock = np.bytes_("20241126"), np.bytes_("010000")
        file.create_group("what").attrs.update(
            {"object": np.bytes_("PVOL"), "date": date, "time": clock, "source": np.bytes_("NOD:deess")}
        )
        file.create_group("where").attrs.update({"lon": 10.0, "lat": 55.0, "height": 100.0})
        for number, elevation in enumerate((0.5, 2.0), 1):
            sweep = file.create_group(f"dataset{number}")
            sweep.create_group("what").attrs.update(
                {"product": np.bytes_("SCAN"), "startdate": date, "starttime": clock, "enddate": date,
                 "endtime": np.bytes_("010030")}
            )  # fmt: skip
            sweep.create_group("where").attrs.update(
                {"elangle": elevation, "nrays": 36, "nbins": 5, "rscale": 1000.0, "rstart": 0.0, "a1gate": 0}
            )
            sweep["data1/data"] = np.full((36, 5), 80, np.uint8)
            sweep.create_group("data1/what").attrs.update(
                {"quantity": np.bytes_("DBZH"), "gain": 0.5, "offset": -32.0, "nodata": 255.0, "undetect": 0.0}
            )


def _knmi(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_group("overview").attrs.update(
            {"product_datetime_start": np.bytes_("26-NOV-2024;00:55:00.000"),
             "product_datetime_end": np.bytes_("26-NOV-2024;01:00:00.000")}
        )  # fmt: skip
        file.create_group("geographic").attrs.update(
            {"geo_column_offset": np.float32([0]), "geo_row_offset": np.float32([3650]),
             "geo_pixel_size_x": np.float32([1]), "geo_pixel_size_y": np.float32([-1]),
             "geo_number_columns": np.int32([6]), "geo_number_rows": np.int32([4]),
             "geo_dim_pixel": np.bytes_("KM,KM"), "geo_pixel_def": np.bytes_("LU")}
        )  # fmt: skip
        file.create_group("geographic/map_projection").attrs["projection_proj4_params"] = np.bytes_(_STEREO)
        image = file.create_group("image1")
        image.attrs["image_geo_parameter"] = np.bytes_("ACCUMULATED_PRECIPITATION_[MM]")
        image.create_group("calibration").attrs.update(
            {"calibration_formulas": np.bytes_("GEO=0.01*PV+0.0"), "calibration_missing_data": np.int32([65534]),
             "calibration_out_of_image": np.int32([65535])}
        )  # fmt: skip
        image["image_data"] = np.arange(24, dtype=np.uint16).reshape(4, 6)


def _mrms(path: Path) -> None:
    path.write_bytes(grib_message(np.linspace(0, 20, 24).reshape(4, 6)))


def _mrms_png(path: Path) -> None:
    path.write_bytes(grib_message(np.linspace(0, 20, 24).reshape(4, 6), packing=41))


def _fmi(path: Path) -> None:
    header = {
        "obstime": "202411260100", "param": "CorrectedReflectivity", "type": "stereographic",
        "projection": "stereographic", "centrallongitude": "25", "centrallatitude": "90", "truelatitude": "60",
        "bottomleft": "18.600000 57.930000", "topright": "34.903000 69.005000", "metersperpixel_x": "999.674053",
        "metersperpixel_y": "999.62859", "producttype": "CAPPI", "missingval": "255",
    }  # fmt: skip
    lines = ["P5", *(f"# {key} {value}" for key, value in header.items()), "760 1226", "255", ""]
    path.write_bytes("\n".join(lines).encode() + bytes(760 * 1226))


def _mch(path: Path) -> None:
    image = Image.fromarray(np.zeros((640, 710), np.uint8), "P")
    image.putpalette(bytes(value for code in range(255) for value in (255, 255 - code, 255 - code)) + bytes(3))
    image.save(path, "GIF", comment=b"PRDT=AQC243310100 ACCUm=000005")


def cf_dataset() -> xr.Dataset:
    """Return rain rates at two times."""
    crs = pyproj.CRS.from_user_input("+proj=stere +lat_0=90 +lat_ts=60 +lon_0=25 +ellps=WGS84").to_cf()
    field = np.linspace(0, 20, 48, dtype=np.float32).reshape(2, 4, 6)
    attributes = {"units": "mm h-1", "standard_name": "rainfall_rate", "grid_mapping": "crs"}
    return xr.Dataset(
        {"rate": (("time", "y", "x"), field, attributes), "crs": ((), 0, crs)},
        {
            "time": ("time", np.array(["2024-11-26T00:55", "2024-11-26T01:00"], "datetime64[s]")),
            "y": ("y", -2e6 - 1000.0 * np.arange(4), {"standard_name": "projection_y_coordinate", "units": "m"}),
            "x": ("x", 5e5 + 1000.0 * np.arange(6), {"standard_name": "projection_x_coordinate", "units": "m"}),
        },
    )


def _cf(path: Path) -> None:
    cf_dataset().to_netcdf(path, engine="h5netcdf")


def _cf_classic(path: Path) -> None:
    cf_dataset().to_netcdf(path, engine="scipy")


def _zarr(path: Path) -> None:
    store = path.with_suffix(".store")
    cf_dataset().to_zarr(store, consolidated=False)
    path.write_bytes(_SEPARATOR.join(one.read_bytes() for one in sorted(store.rglob("*")) if one.is_file()))


def _radolan(path: Path) -> None:
    write_radolan(path, np.zeros((900, 900), np.uint8), TIME, "RX", precision="+00")


def _geotiff(path: Path) -> None:
    transform = rasterio.Affine(1000.0, 0.0, 4e6, 0.0, -1000.0, 3e6)
    options: dict = {"count": 1, "dtype": "uint8", "crs": "EPSG:3035", "transform": transform, "compress": "deflate"}
    with rasterio.open(path, "w", driver="GTiff", height=4, width=6, **options) as file:
        file.write(np.arange(24, dtype=np.uint8).reshape(4, 6), 1)
        file.update_tags(time="2024-11-26T01:00:00Z", units="mm/h")


def _iris(path: Path) -> None:
    content = bytearray(640) + bytes(range(24))
    for form, place, values in (
        ("<hhi", 0, (27, 8, len(content))), ("<hhi", 12, (26, 6, 320)), ("<H", 24, (1,)),
        ("<iHHHH", 44, (3600, 0x0800, 2024, 11, 26)), ("<8i", 100, (100_000, 100_000, 0, 6, 4, 1, 3000, 2000)),
        ("<H", 142, (2,)), ("<2I", 440, (round(55 / 360 * 2**32), round(10 / 360 * 2**32))),
    ):  # fmt: skip
        struct.pack_into(form, content, place, *values)
    path.write_bytes(content)


_WRITERS: dict[str, tuple[Callable[[Path], None], ...]] = {
    "odim": (_odim, lambda path: _odim(path, "ACRR", 0.0)),
    "polar": (_polar,),
    "knmi": (_knmi,),
    "mrms": (_mrms, _mrms_png),
    "fmi": (_fmi,),
    "mch": (_mch,),
    "cf": (_cf,),
    "cf-classic": (_cf_classic,),
    "zarr": (_zarr,),
    "radolan": (_radolan,),
    "geotiff": (_geotiff,),
    "iris": (_iris,),
}
READERS = tuple(_WRITERS)
HDF5_READERS = ("odim", "polar", "knmi", "cf")


def write_valid_files(reader: str, folder: Path) -> list[bytes]:
    """Write the valid files of a reader into an empty folder, and return their bytes."""
    for number, write in enumerate(_WRITERS[reader]):
        write(folder / f"{reader}-{number}")
    return [path.read_bytes() for path in sorted(folder.glob(f"{reader}-?"))]


def place(reader: str, content: bytes, path: Path, names: list[str]) -> Path:
    """Write a file, or for Zarr the store of ``names``, and return the path to read."""
    if reader != "zarr":
        path.write_bytes(content)
        return path
    for name, part in zip(names, content.split(_SEPARATOR), strict=False):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(part)
    return path


def names_of_store(folder: Path) -> list[str]:
    """Return the names of the files of the store that :func:`write_valid_files` wrote into a folder."""
    store = folder / "zarr-0.store"
    return [str(one.relative_to(store)) for one in sorted(store.rglob("*")) if one.is_file()]
