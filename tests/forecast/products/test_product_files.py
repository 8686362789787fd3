"""Files of products: equal values in netCDF, packed netCDF, GeoTIFF, ODIM and overlays; atomic sets; CF compliance."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
import xarray as xr
from PIL import Image

from simcast_hpc.config import ConfigError
from simcast_hpc.data.dataset_spec import ZRRelation
from simcast_hpc.forecast.forecast_files import Publisher
from simcast_hpc.forecast.products.odim_writer import grid_attributes
from simcast_hpc.forecast.products.packing import pack, scale_and_offset
from simcast_hpc.forecast.products.product_fields import fields_of, layers_of
from simcast_hpc.forecast.products.product_settings import ProductSettings
from simcast_hpc.radar import RadarGrid, read_frames
from simcast_hpc.report.forecast_pictures import forecast_figure
from simcast_hpc.report.map_overlay import write_overlays
from tests.forecast.products.made_forecasts import GRID, ISSUE, made_forecast
from tests.radar.radar_files import compliance_errors

SETTINGS = ProductSettings(
    accumulate=(15.0,), windows=((-10.0, 20.0),), percentiles=(10.0, 90.0), accumulation_thresholds=(0.5, 2.0),
    matched_mean=True, neighborhood_km=2.0,
)  # fmt: skip
RELATION = ZRRelation(a=200.0, b=1.6)
NAME = "forecast_20240611T1205Z"


@pytest.fixture(scope="module", params=["mm/h", "dBZ"])
def written(request, tmp_path_factory):
    """An ensemble forecast with its products, and its files."""
    forecast = made_forecast(members=5, leads=4, unit=request.param, z_r=RELATION, are_means=request.param == "mm/h")
    publisher = Publisher(
        tmp_path_factory.mktemp("out"), ("nc", "cog", "odim", "overlay"), draw_overlays=write_overlays,
        institution="Us", products=SETTINGS,
    )  # fmt: skip
    paths = publisher.publish(forecast)
    return publisher.derive(forecast), paths


def test_netcdf_of_products_is_cf_compliant(written, tmp_path):
    forecast, paths = written
    assert compliance_errors(paths["nc"]) == ""
    with xr.open_dataset(paths["nc"], decode_timedelta=False) as dataset:
        assert dataset.attrs["license"] == "CC BY 4.0" and dataset.attrs["attribution"] == "Radar service, 2024"
        for field in forecast.products:
            np.testing.assert_array_equal(dataset[field.name].values, field.values)
        amount = dataset.rainfall_amount_15min_percentile
        assert amount.dims == ("percentile", "time_15min", "y", "x")
        assert amount.attrs["standard_name"] == "thickness_of_rainfall_amount" and amount.attrs["units"] == "mm"
        assert amount.attrs["cell_methods"] == "time_15min: sum"
        bounds = dataset.time_15min_bounds.values
        moment = np.datetime64(ISSUE.replace(tzinfo=None))
        expected = moment + np.array([[-10, 5], [-5, 10], [0, 15], [5, 20]]) * np.timedelta64(1, "m")
        np.testing.assert_array_equal(bounds, expected)
        np.testing.assert_array_equal(dataset.time_15min.values, expected[:, 1])
        if forecast.unit == "dBZ":
            np.testing.assert_allclose(
                10 * np.log10(200 * dataset.threshold_rate.values**1.6), dataset.threshold.values
            )
        else:
            assert dataset.rainfall_rate.attrs["cell_methods"] == "time: mean"
            assert dataset.time.attrs["bounds"] == "time_bounds"


def test_packed_fields_differ_by_at_most_the_stated_error(tmp_path):
    forecast = made_forecast(members=5)
    packed, plain = (
        Publisher(tmp_path / dtype, ("nc",), products=replace(SETTINGS, dtype=dtype)).publish(forecast)["nc"]
        for dtype in ("int16", "float32")
    )
    assert compliance_errors(packed) == ""
    with xr.open_dataset(packed) as ours, xr.open_dataset(plain) as exact, h5py.File(packed) as file:
        for name in exact.data_vars:
            if exact[name].ndim < 3:
                continue
            stored = file[name]
            assert stored.dtype == np.int16 and stored.attrs["_FillValue"] == -32768
            error = np.abs(ours[name].values - exact[name].values)
            assert np.nanmax(error) <= stored.attrs["simcast_packing_error"] * (1 + 1e-3) + 1e-6
            np.testing.assert_array_equal(np.isnan(ours[name].values), np.isnan(exact[name].values))
            assert (ours[name].values[exact[name].values == 0] == 0).all()
        assert file["rainfall_rate"].attrs["simcast_packing_error"] == 0.005
        assert file["probability_of_exceedance"].attrs["simcast_packing_error"] == 0.00005
    assert packed.stat().st_size < 0.75 * plain.stat().st_size


@pytest.mark.parametrize("highest", [0.0, 100.0, 647.66, 647.68, 3000.0, 1e7])
def test_any_rate_fits_into_int16(highest):
    values = np.array([0.0, 0.004, 0.5, np.nan, highest], np.float32)
    scale, offset = scale_and_offset("mm h-1", values)
    codes = pack(values, scale, offset)
    assert codes[3] == -32768 and codes.dtype == np.int16
    decoded = codes * scale + offset
    assert decoded[0] == pytest.approx(0.0, abs=1e-9 * max(highest, 1.0))
    np.testing.assert_allclose(decoded[[0, 1, 2, 4]], values[[0, 1, 2, 4]], atol=scale / 2 * (1 + 1e-3))
    assert scale == (0.01 if highest < 647.67 else 0.02 if highest < 700 else scale)


def test_geotiffs_have_values_place_and_tags(written):
    forecast, paths = written
    names = {path.name for path in paths["cog"].iterdir()}
    layers = [layer for field in fields_of(forecast) for layer in layers_of(forecast, field)]
    assert names == {f"{layer.stem}.tif" for layer in layers} and len(names) == len(layers)
    assert "rainfall_amount_m10_to_20min_percentile_90_020min.tif" in names
    for layer in layers[:: max(1, len(layers) // 12)]:
        with rasterio.open(paths["cog"] / f"{layer.stem}.tif") as file:
            np.testing.assert_array_equal(file.read(1), layer.values)
            assert np.isnan(file.nodata) and file.crs.to_wkt() and file.units == (layer.field.unit,)
            assert (file.transform.c, file.transform.f) == (GRID.left, GRID.top) and file.res == (1000.0, 1000.0)
            tags = file.tags()
            assert tags["license"] == "CC BY 4.0" and tags["institution"] == "Us"
            assert tags["valid_time"] == f"{layer.valid:%Y-%m-%dT%H:%M:%SZ}"
            assert tags["issue_time"] == "2024-06-11T12:05:00Z"
            assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


def test_geotiffs_of_validity(tmp_path):
    validity = np.ones((2, *GRID.shape), bool)
    validity[1, :, :5] = False
    forecast = replace(made_forecast(leads=2), validity=validity)
    folder = Publisher(tmp_path, ("nc", "cog")).publish(forecast)["cog"]
    for lead, expected in zip(("005", "010"), validity, strict=True):
        with rasterio.open(folder / f"validity_{lead}min.tif") as file:
            assert file.dtypes == ("uint8",) and file.nodata is None and file.tags()["lead_minutes"] == lead.lstrip("0")
            np.testing.assert_array_equal(file.read(1), expected)


def test_odim_files_are_read_back_equal(written):
    forecast, paths = written
    fields = [field for field in fields_of(forecast) if not field.is_probability]
    layers = [layer for field in fields for layer in layers_of(forecast, field)]
    assert {path.name for path in paths["odim"].iterdir()} == {f"{layer.stem}.h5" for layer in layers}
    for layer in layers:
        (frame,) = read_frames(paths["odim"] / f"{layer.stem}.h5", prefer=forecast.unit)
        assert frame.time == layer.valid and frame.grid.difference(GRID) == ""
        expected = layer.values
        if layer.field.unit == "mm":  # the reader returns the mean rate of an accumulation
            assert frame.start == layer.start and frame.unit == "mm/h"
            minutes = (layer.valid - layer.start).total_seconds() / 60
            expected = expected * np.float32(60 / minutes)
        elif layer.field.unit == "mm/h":
            assert frame.interval_minutes == 5.0  # the frames are mean rates
        else:
            expected = np.where(expected <= forecast.no_echo_dbz, -np.inf, expected)
        np.testing.assert_allclose(frame.values, expected, rtol=1e-6)


def test_odim_files_are_read_by_pysteps(written):
    from pysteps.io.importers import import_odim_hdf5

    forecast, paths = written
    name, quantity = ("rainfall_rate", "RATE") if forecast.unit == "mm/h" else ("reflectivity", "DBZH")
    values, _, about = import_odim_hdf5(str(paths["odim"] / f"{name}_mean_010min.h5"), qty=quantity)
    assert about["unit"] == forecast.unit and about["xpixelsize"] == pytest.approx(1000.0)
    assert about["x1"] == pytest.approx(GRID.left, abs=0.1) and about["y2"] == pytest.approx(GRID.top, abs=0.1)
    expected = forecast.mean[1]
    echo = np.isfinite(values) & (expected > (forecast.no_echo_dbz if forecast.unit == "dBZ" else 0))
    np.testing.assert_allclose(values[echo], expected[echo], rtol=1e-6)
    np.testing.assert_array_equal(np.isnan(expected), np.isnan(values) & np.isnan(expected))
    assert echo.sum() > 500


def test_netcdf_in_dbz_is_read_by_pysteps(tmp_path):
    from pysteps.io.nowcast_importers import import_netcdf_pysteps

    forecast = made_forecast(members=3, unit="dBZ", z_r=RELATION)
    publisher = Publisher(tmp_path, ("nc",), products=replace(SETTINGS, dtype="int16"))
    values, about = import_netcdf_pysteps(str(publisher.publish(forecast)["nc"]), onerror="raise")
    np.testing.assert_allclose(values, forecast.values, atol=0.0051)
    assert about["unit"] == "dBZ" and about["x1"] == GRID.left and about["accutime"] == 5.0


def test_overlays_have_the_colors_of_the_nearest_pixels(written):
    forecast, paths = written
    about = json.loads((paths["overlay"] / "overlay.json").read_text())
    entry = next(one for one in about["layers"] if one["product"].startswith("rainfall_amount_15min_mean"))
    image = Image.open(paths["overlay"] / entry["file"])
    codes = np.asarray(image)
    alpha = np.asarray(image.convert("RGBA"))[..., 3]
    # 1. World file and bounds describe the same place
    a, d, b, e, x, y = map(float, (paths["overlay"] / entry["file"]).with_suffix(".pgw").read_text().split())
    assert (d, b) == (0, 0) and e == -a
    left, top = about["bounds_projected"]["left"], about["bounds_projected"]["top"]
    assert (x, y) == pytest.approx((left + a / 2, top - a / 2))
    west, east = about["bounds_degrees"]["west"], about["bounds_degrees"]["east"]
    assert west == pytest.approx(left / 6378137 * 180 / np.pi) and west < east
    # 2. Colors of the pixels at the positions of the overlay
    import pyproj

    row, column = np.mgrid[2 : codes.shape[0] - 2, 2 : codes.shape[1] - 2]
    to_map = pyproj.Transformer.from_crs("EPSG:3857", GRID.projection, always_xy=True)
    east, north = to_map.transform(x + a * column, y + e * row)
    source = np.floor((GRID.top - north) / 1000).astype(int), np.floor((east - GRID.left) / 1000).astype(int)
    near = [np.abs((value + 0.5) % 1 - 0.5) > 0.15 for value in ((GRID.top - north) / 1000, (east - GRID.left) / 1000)]
    inside = (source[0] >= 0) & (source[0] < 20) & (source[1] >= 0) & (source[1] < 30) & near[0] & near[1]
    field = next(one for one in forecast.products if one.name == "rainfall_amount_15min_mean")
    values = field.values[0][source[0][inside], source[1][inside]]
    levels = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
    expected = np.where(np.isnan(values), 1, np.searchsorted(levels, np.nan_to_num(values), side="right") + 2)
    np.testing.assert_array_equal(codes[row[inside], column[inside]], expected)
    assert inside.sum() > 100
    assert alpha[codes == 0].max(initial=0) == 0 and set(alpha[codes > 2]) == {255} and set(alpha[codes == 1]) == {128}
    assert (paths["overlay"] / entry["legend"]).is_file() and entry["legend"] == "legend_mm.png"


def test_figure_shows_the_windows_of_amounts(tmp_path):
    figure = forecast_figure(Publisher(tmp_path, ("nc",), products=SETTINGS).derive(made_forecast(members=3)))
    titles = {axes.get_title() for axes in figure.axes}
    assert {"12:05 to 12:20 UTC", "11:55 to 12:25 UTC"} <= titles


def test_overlay_in_degrees(tmp_path):
    write_overlays(made_forecast(leads=1), tmp_path, projection="EPSG:4326")
    about = json.loads((tmp_path / "overlay.json").read_text())
    assert about["bounds_projected"]["left"] == pytest.approx(about["bounds_degrees"]["west"])


def test_files_of_an_issue_time_are_replaced_and_removed_together(tmp_path):
    publisher = Publisher(tmp_path, ("nc", "cog", "odim"), products=ProductSettings(accumulate=(15.0,)))
    publisher.publish(made_forecast(leads=6))
    paths = publisher.publish(made_forecast(leads=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{NAME}.cog", f"{NAME}.nc", f"{NAME}.odim"]
    assert len(list(paths["cog"].iterdir())) == 4  # of the second forecast only
    publisher.remove(ISSUE)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    publisher = Publisher(tmp_path, ("nc", "cog"))
    publisher.publish(made_forecast(leads=2))
    before = sorted(path.name for path in (tmp_path / f"{NAME}.cog").iterdir())

    def fail(*_given, **_named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("simcast_hpc.forecast.forecast_files.write_geotiffs", fail)
    with pytest.raises(OSError, match="No space"):
        publisher.publish(made_forecast(leads=4))
    assert sorted(path.name for path in (tmp_path / f"{NAME}.cog").iterdir()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{NAME}.cog", f"{NAME}.nc"]


def test_odim_places_in_degrees_and_grids_without_proj_string():
    import pyproj

    degrees = RadarGrid("+proj=longlat +datum=WGS84", 5.0, 55.0, 0.01, 0.01, 10, 20, "degree")
    where = grid_attributes(degrees)
    assert (where["UL_lon"], where["UL_lat"]) == (5.0, 55.0) and where["LR_lon"] == pytest.approx(5.2)
    as_wkt = replace(GRID, projection=pyproj.CRS.from_user_input(GRID.projection).to_wkt())
    corner = grid_attributes(as_wkt)["UL_lon"]
    assert corner == pytest.approx(grid_attributes(GRID)["UL_lon"], abs=1e-9)
    pole = "+proj=ob_tran +o_proj=longlat +o_lon_p=-162 +o_lat_p=39.25 +lon_0=180 +to_meter=0.0174532925199433"
    with pytest.raises(ConfigError, match="rotated pole"):
        grid_attributes(replace(degrees, projection=pole))


def test_odim_rejects_units_without_a_quantity(tmp_path):
    forecast = made_forecast(unit="kg/m^2")
    with pytest.raises(ConfigError, match="ODIM has no quantity in kg/m"):
        Publisher(tmp_path, ("nc", "odim")).publish(forecast)


def test_members_are_omitted_and_still_used(tmp_path):
    forecast = made_forecast(members=4)
    path = Publisher(tmp_path, ("nc",), products=replace(SETTINGS, members=False)).publish(forecast)["nc"]
    with xr.open_dataset(path) as dataset:
        assert "rainfall_rate" not in dataset and "rainfall_rate_percentile" in dataset


def test_unknown_kinds_are_rejected_with_the_choices(tmp_path):
    for kinds in (("cog",), ("nc", "grib")):
        with pytest.raises(ConfigError, match="choose nc or zarr or both, and optionally png, gif, cog, overlay, odim"):
            Publisher(Path(tmp_path), kinds)
