"""Projections in radar files name no other file: PROJ opens grids of shifts and files of definitions."""

from pathlib import Path

import h5py
import numpy as np
import pyproj
import pytest

from simcast_hpc.config import DataError
from simcast_hpc.radar import frame_messages, read_frames
from simcast_hpc.radar.projection_text import check_projection
from simcast_hpc.radar.radar_frame import RadarGrid
from tests.radar.radar_files import LAEA, START, storm, write_cf, write_odim

FILE = "/etc/hostname"
MERCATOR = pyproj.CRS("EPSG:3857")
VALID = [
    LAEA,
    "+proj=stere +lon_0=25E +lat_0=90N +lat_ts=60 +a=6371288 +x_0=380886.310 +y_0=3395677.920 +no_defs",
    "+proj=stere +lon_0=10d30'E +lat_0=90 +ellps=WGS84 +to_meter=1000",
    "proj=aeqd lat_0=50 lon_0=5 ellps=WGS84",
    "+proj=merc +a=6378137 +b=6378137 +lat_ts=0 +lon_0=0 +x_0=0 +y_0=0 +k=1 +units=m +nadgrids=@null +wktext +no_defs",
    "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18 +datum=WGS84 +no_defs +type=crs",
    "+proj=somerc +lat_0=46.95 +lon_0=7.44 +k_0=1 +ellps=bessel +towgs84=674.374,15.056,405.346,0,0,0,0 +units=m",
    "+init=epsg:3035",
    "EPSG:3035",
    "urn:ogc:def:crs:EPSG::3035",
    pyproj.CRS("EPSG:3067").to_wkt(),
    MERCATOR.to_wkt("WKT1_GDAL"),  # contains a PROJ string with +nadgrids=@null
    pyproj.CRS("+proj=longlat +a=6370000 +b=6370000 +towgs84=1,2,3").to_wkt(),
    pyproj.CRS("EPSG:28992").to_wkt("WKT1_ESRI"),
]
INVALID = [
    f"{LAEA} +nadgrids={FILE}",
    f"{LAEA} +nadgrids=@{FILE}",
    f"{LAEA} nadgrids={FILE}",
    f"{LAEA} +geoidgrids=a.gtx",
    f"+init={FILE}:secret",
    "+init=other:3035",
    f"+proj=pipeline +step +proj=hgridshift +grids={FILE}",
    f"+proj=gridshift +grids={FILE}",
    f"+proj=deformation +grids={FILE} +dt=1 +ellps=WGS84",
    f"+proj=tinshift +file={FILE}",
    f"+proj=defmodel +model={FILE}",
    f"+proj=longlat +datum={FILE}",
    "+proj=aeqd " + "+lat_0=50 " * 20_000,
    "+proj=aeqd " + "+lat_0=50 " * 100,
    FILE,
    "laea",
    "http://localhost/crs",
    pyproj.CRS("EPSG:3035").to_json(),
    MERCATOR.to_wkt("WKT1_GDAL").replace("@null", FILE),
    MERCATOR.to_wkt("WKT1_GDAL").replace("+nadgrids=@null", f"nadgrids={FILE}"),
    pyproj.CRS("+proj=longlat +datum=WGS84 +nadgrids=a.gsb").to_wkt(),
    pyproj.CRS("+proj=utm +zone=33 +datum=WGS84").to_wkt().replace("Transverse Mercator", f"+proj=x +grids={FILE}"),
]


@pytest.mark.filterwarnings("ignore:.*init=")
@pytest.mark.parametrize("projection", VALID)
def test_projections_of_radar_files_are_accepted(projection):
    assert check_projection(projection, Path("a.h5")) == projection
    assert pyproj.CRS.from_user_input(projection) is not None


@pytest.mark.parametrize("projection", INVALID)
def test_projections_that_name_a_file_are_rejected(projection):
    says = r"a\.h5: the projection (contains|has|'.*' is not a valid projection)"
    with pytest.raises(DataError, match=says):
        check_projection(projection, Path("a.h5"))


@pytest.mark.parametrize("projection", [f"{LAEA} +nadgrids={FILE}", f"+init={FILE}:a", f"+proj=tinshift +file={FILE}"])
def test_every_reader_checks_the_projection(tmp_path, projection):
    path = write_odim(tmp_path / "a.h5", storm(0), START)
    with h5py.File(path, "r+") as file:
        file["where"].attrs["projdef"] = np.bytes_(projection)
    with pytest.raises(DataError, match=r"a\.h5: where/projdef contains"):
        read_frames(path)
    for key in ("proj4", "proj4_params", "proj4text", "crs_wkt", "spatial_ref"):
        path = write_cf(tmp_path / "a.nc", np.ones((1, 4, 6), np.float32), [START])
        with h5py.File(path, "r+") as file:
            file["crs"].attrs[key] = np.bytes_(projection)
        with pytest.raises(DataError, match=rf"a\.nc: crs:{key} contains"):
            read_frames(path)


def test_names_of_a_geoid_in_a_cf_file_are_not_used(tmp_path):
    path = write_cf(tmp_path / "a.nc", np.ones((1, 4, 6), np.float32), [START])
    (expected,) = read_frames(path)
    with h5py.File(path, "r+") as file:
        file["crs"].attrs["geoid_name"] = FILE
        file["crs"].attrs["geopotential_datum_name"] = FILE
    assert FILE not in read_frames(path)[0].grid.projection
    assert read_frames(path)[0].grid.spacing_x == expected.grid.spacing_x


def test_the_calling_process_checks_the_projection_again():
    for projection in (LAEA, f"{LAEA} +nadgrids={FILE}"):
        grid = RadarGrid(projection, 0.0, 0.0, 1000.0, 1000.0, 2, 2)
        _, header, *_ = frame_messages.pack(grid)
        if projection == LAEA:
            assert frame_messages.unpack(bytes(header), bytearray()) == grid
        else:
            with pytest.raises(DataError, match=f"contains 'nadgrids={FILE}'|contains '.nadgrids={FILE}'"):
                frame_messages.unpack(bytes(header), bytearray())
