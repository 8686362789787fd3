"""Archives of small radar files for the import benchmark: one template per format, copied with another time.

The fields are smoothed noise with rain in a quarter of the domain. Times in the templates have the same length in every
copy, so that writing 10,000 files takes seconds. Grids are 96 x 100 pixels of 1 km, except for formats of one service
whose readers require its grid (MeteoSwiss 640 x 710, RADOLAN 900 x 900).
"""

import io
import struct
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import h5py
import numpy as np

BEGIN = datetime(2023, 1, 1, 0, 5, tzinfo=UTC)
STEP = timedelta(minutes=5)
SHAPE = (96, 100)
_LAEA = "+proj=laea +lat_0=55 +lon_0=10 +x_0=1950000 +y_0=-2100000 +units=m +ellps=WGS84"
_STEREO = "+proj=stere +lat_0=90 +lon_0=0 +lat_ts=60 +a=6378.137 +b=6356.752 +x_0=0 +y_0=0"
_FMI = "+proj=stere +lon_0=25E +lat_0=90N +lat_ts=60 +a=6371288 +x_0=380886.310 +y_0=3395677.920 +no_defs"
_SECONDS = 0x1122334455667788  # placeholder of the time in netCDF files
_MARK = datetime(1987, 6, 5, 4, 30, tzinfo=UTC)  # placeholder of the time elsewhere; 156th day of the year
Change = tuple[bytes, Callable[[datetime], bytes]]


def write_files(name: str, folder: Path, frames: int) -> Path:
    """Write ``frames`` frames of a format, and return what to import: the folder, or a Zarr store."""
    folder.mkdir(parents=True)
    if name == "zarr":
        return _write_zarr(folder, frames)
    template, changes = _TEMPLATES[name](folder / "template")
    for old, _ in changes:
        if old not in template:
            raise AssertionError(f"the template of {name} does not contain {old!r}")
    for number, time in enumerate(_times(frames)):
        content = template
        for old, new in changes:
            if len(new(time)) != len(old):
                raise AssertionError(f"{new(time)!r} has another length than {old!r}")
            content = content.replace(old, new(time))
        (folder / f"{number:06d}").write_bytes(content)
    (folder / "template").unlink(missing_ok=True)
    return folder


def field(shape: tuple[int, int], largest: int) -> np.ndarray:
    """Return stored values from 0 to ``largest`` ``[H, W]``, float64, 0 outside of the rain."""
    noise = np.random.default_rng(0).random((shape[0] // 8 + 2, shape[1] // 8 + 2))
    smooth = np.kron(noise, np.ones((8, 8)))[: shape[0], : shape[1]]
    return np.where(smooth > 0.75, (smooth - 0.75) * 4 * largest, 0).round()


def _times(frames: int) -> Iterator[datetime]:
    return (BEGIN + number * STEP for number in range(frames))


def _format(pattern: str, *, minutes: int = 0) -> Change:
    """Return the text of the time of the template, and how that of a frame is written."""

    def text(time: datetime) -> bytes:
        return (time - timedelta(minutes=minutes)).strftime(pattern).encode().upper()

    return text(_MARK), text


def _odim(path: Path) -> tuple[bytes, list[Change]]:
    import pyproj

    height, width = SHAPE
    date, clock = np.bytes_(f"{_MARK:%Y%m%d}"), np.bytes_(f"{_MARK:%H%M%S}")
    with h5py.File(path, "w") as file:
        file.attrs["Conventions"] = np.bytes_("ODIM_H5/V2_4")
        file.create_group("what").attrs.update({"object": np.bytes_("COMP"), "date": date, "time": clock})
        where = file.create_group("where").attrs
        where.update({"projdef": np.bytes_(_LAEA), "xsize": width, "ysize": height, "xscale": 1e3, "yscale": 1e3})
        to_degrees = pyproj.Proj(_LAEA)
        for name, x, y in (("UL", 0, 0), ("UR", width, 0), ("LL", 0, height), ("LR", width, height)):
            corner = to_degrees(2_640_000.0 + 1000 * x, -944_000.0 - 1000 * y, inverse=True)
            where[f"{name}_lon"], where[f"{name}_lat"] = corner
        span = {"startdate": date, "starttime": clock, "enddate": date, "endtime": clock}
        file.create_group("dataset1/what").attrs.update(span)
        codes = field(SHAPE, 180).astype(np.uint8)
        file.create_dataset("dataset1/data1/data", data=codes, compression="gzip")
        packing = {"gain": 0.5, "offset": -32.0, "nodata": 255.0, "undetect": 0.0}
        file.create_group("dataset1/data1/what").attrs.update({"quantity": np.bytes_("DBZH"), **packing})
    return path.read_bytes(), [_format("%Y%m%d"), _format("%H%M%S")]


def _knmi(path: Path) -> tuple[bytes, list[Change]]:
    height, width = SHAPE
    pattern = "%d-%b-%Y;%H:%M:%S.000"
    start, end = _format(pattern, minutes=5), _format(pattern)
    with h5py.File(path, "w") as file:
        file.create_group("overview").attrs.update(
            {"product_datetime_start": np.bytes_(start[0]), "product_datetime_end": np.bytes_(end[0])}
        )
        file.create_group("geographic").attrs.update(
            {"geo_column_offset": np.float32([0]), "geo_row_offset": np.float32([3650]),
             "geo_pixel_size_x": np.float32([1]), "geo_pixel_size_y": np.float32([-1]),
             "geo_number_columns": np.int32([width]), "geo_number_rows": np.int32([height]),
             "geo_dim_pixel": np.bytes_("KM,KM"), "geo_pixel_def": np.bytes_("LU")}
        )  # fmt: skip
        file.create_group("geographic/map_projection").attrs["projection_proj4_params"] = np.bytes_(_STEREO)
        image = file.create_group("image1")
        image.attrs["image_geo_parameter"] = np.bytes_("ACCUMULATED_PRECIPITATION_[MM]")
        image.create_group("calibration").attrs.update(
            {"calibration_formulas": np.bytes_("GEO=0.01*PV+0.0"), "calibration_missing_data": np.int32([65534]),
             "calibration_out_of_image": np.int32([65535])}
        )  # fmt: skip
        image.create_dataset("image_data", data=field(SHAPE, 300).astype(np.uint16), compression="gzip")
    return path.read_bytes(), [start, end]


def _mrms(path: Path) -> tuple[bytes, list[Change]]:
    from PIL import Image

    height, width = SHAPE
    buffer = io.BytesIO()
    Image.fromarray((30 + field(SHAPE, 400)).astype(np.uint16)).save(buffer, "PNG")
    first, last = (40_995_000, 260_005_000), (40_995_000 - (height - 1) * 10_000, 260_005_000 + (width - 1) * 10_000)

    def moment(time: datetime) -> bytes:
        return struct.pack(">HBBBBB", time.year, time.month, time.day, time.hour, time.minute, time.second)

    content = {
        1: struct.pack(">HHBBB", 161, 0, 255, 1, 3) + moment(_MARK) + struct.pack(">BB", 0, 2),
        3: struct.pack(
            ">BIBBHBBIBIBIIIIIiIBiIIIB", 0, height * width, 0, 0, 0, 2, 1, 6367470, 1, 6378160, 1, 6356775,
            width, height, 0, 0xFFFFFFFF, *first, 48, *last, 10_000, 10_000, 0,
        ),
        4: struct.pack(">HHBBBBBHBBIBBIBBI", 0, 0, 6, 1, 8, 0, 97, 0, 0, 0, 0, 102, 0, 0, 255, 1, 0),
        5: struct.pack(">IHfhhBB", height * width, 41, -30.0, 0, 1, 16, 0),
        6: b"\xff",
        7: buffer.getvalue(),
    }  # fmt: skip
    body = b"".join(struct.pack(">IB", len(part) + 5, key) + part for key, part in content.items())
    message = struct.pack(">4sHBBQ", b"GRIB", 0, 209, 2, 16 + len(body) + 4) + body + b"7777"
    return message, [(moment(_MARK), moment)]


def _fmi(path: Path) -> tuple[bytes, list[Change]]:
    import pyproj

    height, width = SHAPE
    to_degrees = pyproj.Proj(_FMI)
    corners = [to_degrees(1e5 + 1e3 * x, 1e5 + 1e3 * y, inverse=True) for x, y in ((0, 0), (width, height))]
    header = {
        "obstime": f"{_MARK:%Y%m%d%H%M}", "param": "CorrectedReflectivity", "metersperpixel_x": "1000.0",
        "metersperpixel_y": "1000.0", "projection": "radar {", "type": "stereographic", "centrallongitude": "25",
        "centrallatitude": "90", "truelatitude": "60", "bottomleft": "{:.9f} {:.9f}".format(*corners[0]),
        "topright": "{:.9f} {:.9f}".format(*corners[1]),
    }  # fmt: skip
    lines = ["P5", *(f"# {key} {value}" for key, value in header.items()), "# }", f"{width} {height}", "255", ""]
    return "\n".join(lines).encode() + field(SHAPE, 180).astype(np.uint8).tobytes(), [_format("%Y%m%d%H%M")]


def _mch(path: Path) -> tuple[bytes, list[Change]]:
    from PIL import Image

    image = Image.fromarray(field((640, 710), 140).astype(np.uint8)).convert("P")
    image.putpalette([*(value for code in range(255) for value in (255, 255 - code, 255 - code)), 0, 0, 0])
    change = _format("%y%j%H%M")
    comment = b"VERSION=1\nPRDT=AQC" + change[0] + b" SCALE=mm ACCUm=000005 DeltaT=000005"
    image.save(path, "GIF", comment=comment, optimize=False)
    return path.read_bytes(), [change]


def _netcdf(path: Path) -> tuple[bytes, list[Change]]:
    _dataset(np.array([_SECONDS], np.int64)).to_netcdf(path, engine="h5netcdf")

    def seconds(time: datetime) -> bytes:
        return struct.pack("<q", round(time.timestamp()))

    return path.read_bytes(), [(struct.pack("<q", _SECONDS), seconds)]


def _dataset(seconds: np.ndarray):
    import pyproj
    import xarray as xr

    height, width = SHAPE
    crs = pyproj.CRS.from_user_input("+proj=stere +lat_0=90 +lat_ts=60 +lon_0=25 +ellps=WGS84").to_cf()
    values = np.broadcast_to(field(SHAPE, 40).astype(np.float32), (len(seconds), height, width))
    about = {"units": "mm h-1", "standard_name": "rainfall_rate", "grid_mapping": "crs"}
    return xr.Dataset(
        {"rate": (("time", "y", "x"), values, about), "crs": ((), 0, crs)},
        {
            "time": ("time", seconds, {"units": "seconds since 1970-01-01", "standard_name": "time"}),
            "y": ("y", -2e6 - 1000.0 * np.arange(height), {"standard_name": "projection_y_coordinate", "units": "m"}),
            "x": ("x", 5e5 + 1000.0 * np.arange(width), {"standard_name": "projection_x_coordinate", "units": "m"}),
        },
    )


def _write_zarr(folder: Path, frames: int) -> Path:
    seconds = np.array([round(time.timestamp()) for time in _times(frames)])
    chunks = {"rate": {"chunks": (1, *SHAPE)}, "time": {"chunks": (frames,)}}
    _dataset(seconds).to_zarr(folder / "radar.zarr", zarr_format=2, consolidated=False, encoding=chunks)
    return folder / "radar.zarr"


def _radolan(path: Path) -> tuple[bytes, list[Change]]:
    data = field((900, 900), 300).astype("<u2").tobytes()
    day, month = _format("%d%H%M"), _format("%m%y")
    start = f"RY{day[0].decode()}10000{month[0].decode()}BY"
    rest = "VS 3SW   2.21.0PR E-02INT   5GP 900x 900MS 58<asb,boo,ros,hnr,umd,pro,ess,fld,drs,neu,nhb,oft,eis,tur,isn> "
    header = f"{start}{len(start) + 7 + len(rest) + 1 + len(data):7d}{rest}".encode() + b"\x03"
    old = start.encode()

    def text(time: datetime) -> bytes:
        return b"RY" + day[1](time) + b"10000" + month[1](time) + b"BY"

    return header + data, [(old, text)]


def _geotiff(path: Path) -> tuple[bytes, list[Change]]:
    import rasterio

    transform = rasterio.Affine(1000.0, 0.0, 4e6, 0.0, -1000.0, 3e6)
    height, width = SHAPE
    options = {"count": 1, "dtype": "float32", "crs": "EPSG:3035", "transform": transform, "compress": "deflate"}
    change = _format("%Y-%m-%dT%H:%M:%SZ")
    with rasterio.open(path, "w", driver="GTiff", height=height, width=width, **options) as file:
        file.write(field(SHAPE, 40).astype(np.float32), 1)
        file.update_tags(time=change[0].decode(), units="mm/h")
    return path.read_bytes(), [change]


_TEMPLATES: dict[str, Callable[[Path], tuple[bytes, list[Change]]]] = {
    "odim": _odim, "knmi": _knmi, "mrms": _mrms, "fmi": _fmi, "mch": _mch, "netcdf": _netcdf, "radolan": _radolan,
    "geotiff": _geotiff,
}  # fmt: skip
FORMATS = (*_TEMPLATES, "zarr")
