"""Series at points and in polygons: pixels against brute force, statistics per member, files, and invalid files."""

import csv
import json
from dataclasses import replace

import numpy as np
import pyproj
import pytest
from shapely.geometry import Point, Polygon

from simcast_hpc.config import ConfigError
from simcast_hpc.data.dataset_spec import ZRRelation
from simcast_hpc.forecast.forecast_files import Publisher
from simcast_hpc.forecast.products.accumulation import accumulation_groups, amounts, time_axis
from simcast_hpc.forecast.products.place_series import (
    PlaceSettings,
    SeriesRow,
    series_of,
    weighted_percentile,
    write_series_csv,
)
from simcast_hpc.forecast.products.places import Place, pixels_of, read_places
from simcast_hpc.forecast.products.product_settings import ProductSettings
from simcast_hpc.radar import RadarGrid
from tests.forecast.products.made_forecasts import GRID, made_forecast

SETTINGS = ProductSettings(accumulate=(15.0,), percentiles=(90.0,), accumulation_thresholds=(1.0,))
# Corners in columns and rows of the grid.
TRIANGLE = [(4.3, 6.2), (17.8, 8.1), (9.4, 16.7)]


def degrees(column: float, row: float) -> list[float]:
    to_degrees = pyproj.Transformer.from_crs(GRID.projection, "EPSG:4326", always_xy=True)
    return list(to_degrees.transform(GRID.left + 1000 * column, GRID.top - 1000 * row))


def area(name: str, corners: list[tuple[float, float]]) -> Place:
    ring = [degrees(*corner) for corner in [*corners, corners[0]]]
    return Place(name, {"type": "Polygon", "coordinates": [ring]})


def station(name: str, column: float, row: float) -> Place:
    return Place(name, {"type": "Point", "coordinates": degrees(column, row)})


def brute_weights(corners: list[tuple[float, float]], parts: int = 40) -> np.ndarray:
    """Share of each pixel in a triangle by sampling, float64 ``[H, W]``."""
    rows, columns = ((np.arange(size * parts) + 0.5) / parts for size in GRID.shape)
    inside = np.ones((len(rows), len(columns)), bool)
    for (x, y), (x_next, y_next) in zip(corners, [*corners[1:], corners[0]], strict=True):
        inside &= (x_next - x) * (rows[:, None] - y) - (y_next - y) * (columns - x) > 0
    return inside.reshape(GRID.height, parts, GRID.width, parts).mean(axis=(1, 3))


def test_pixels_of_a_polygon_equal_brute_force():
    (pixels,) = pixels_of((area("catchment", TRIANGLE),), GRID, "coverage")
    weights = np.zeros(GRID.shape)
    weights[pixels.rows, pixels.columns] = pixels.weights
    np.testing.assert_allclose(weights, brute_weights(TRIANGLE), atol=0.02)
    assert weights.sum() == pytest.approx(Polygon(TRIANGLE).area, rel=1e-3)
    assert pixels.area_share == pytest.approx(1.0, abs=1e-6)
    (centers,) = pixels_of((area("catchment", TRIANGLE),), GRID, "center")
    # Edges are straight in longitude and latitude, so centers within 0.02 pixels of an edge are not compared.
    found = set(zip(centers.rows.tolist(), centers.columns.tolist(), strict=True))
    inner, outer = (
        {
            (r, c)
            for r in range(20)
            for c in range(30)
            if Polygon(TRIANGLE).buffer(margin).contains(Point(c + 0.5, r + 0.5))
        }
        for margin in (-0.02, 0.02)
    )
    assert inner <= found <= outer and len(outer) - len(inner) < 10 < len(inner)


def test_polygon_mean_of_every_member_equals_brute_force():
    forecast = made_forecast(members=5)
    places = PlaceSettings((area("catchment", TRIANGLE),), statistics=("mean", "max", "p50"))
    rows = list(series_of(forecast, SETTINGS, places))
    weights = brute_weights(TRIANGLE)
    means = (forecast.values * weights)[..., weights > 0].sum(axis=-1) / weights.sum()
    found = {(row.product, row.pixels, row.statistic, row.lead_minutes): row.value for row in rows}
    for k, lead in enumerate(forecast.leads_minutes):
        key = ("rainfall_rate", "mean")
        assert found[(*key, "mean", lead)] == pytest.approx(means[:, k].mean(), rel=5e-3)
        assert found[(*key, "percentile", lead)] == pytest.approx(np.percentile(means[:, k], 90), rel=5e-3)
        highest = forecast.values[:, k][:, weights > 0].max(axis=-1)
        assert found[("rainfall_rate", "max", "mean", lead)] == pytest.approx(highest.mean(), rel=1e-5)
    # The maximum of amounts, not the amount of maxima.
    (sums,) = amounts(forecast, accumulation_groups([15.0], [], time_axis(forecast)), slice(None))
    highest = sums[:, 2][:, weights > 0].max(axis=-1)
    key = ("rainfall_amount_15min", "max")
    assert found[(*key, "mean", 15.0)] == pytest.approx(highest.mean(), rel=1e-5)
    assert found[(*key, "probability", 15.0)] == pytest.approx((highest >= 1.0).mean())


def test_points_have_the_values_of_their_pixels():
    forecast = made_forecast(unit="dBZ", z_r=ZRRelation(a=200.0, b=1.6))
    places = PlaceSettings((station("A", 12.9, 7.1), station("in no radar", 29.5, 0.5), station("away", 31.0, 4.0)))
    rows = list(series_of(forecast, ProductSettings(accumulate=(15.0,)), places))
    at = {(row.place, row.product, row.lead_minutes): row for row in rows}
    assert at["A", "reflectivity", 10.0].value == pytest.approx(forecast.values[0, 1, 7, 12], rel=1e-5)
    assert at["A", "reflectivity", 10.0].valid_share == 1.0 and at["A", "reflectivity", 10.0].statistic == "forecast"
    amount = at["A", "rainfall_amount_15min", 5.0]
    assert (amount.start_time, amount.valid_time) == ("2024-06-11T11:55:00Z", "2024-06-11T12:10:00Z")
    for name in ("in no radar", "away"):
        assert at[name, "reflectivity", 10.0].value is None and at[name, "reflectivity", 10.0].valid_share == 0.0


def test_means_of_reflectivity_are_of_linear_z():
    forecast = made_forecast(unit="dBZ", missing=False)
    square = area("square", [(2, 2), (4, 2), (4, 4), (2, 4)])
    (row, *_others) = series_of(forecast, ProductSettings(), PlaceSettings((square,), "center"))
    linear = 10 ** (forecast.values[0, 0, 2:4, 2:4] / 10)
    assert row.value == pytest.approx(10 * np.log10(linear.mean()), rel=1e-4)


def test_places_on_a_grid_in_degrees_across_the_date_line():
    grid = RadarGrid("+proj=longlat +datum=WGS84", 175.0, 62.0, 0.5, 0.5, 8, 20, "degree")
    ring = [[-179, 59], [-178, 59], [-178, 61], [-179, 61], [-179, 59]]
    (pixels,) = pixels_of((Place("box", {"type": "Polygon", "coordinates": [ring]}),), grid, "coverage")
    assert set(pixels.columns) == {12, 13} and set(pixels.rows) == {2, 3, 4, 5}
    assert pixels.weights.max() / pixels.weights.min() == pytest.approx(
        np.cos(np.deg2rad(59.25)) / np.cos(np.deg2rad(60.75))
    )


def test_a_polygon_across_the_western_edge_of_a_grid_in_degrees_is_cut():
    grid = RadarGrid("+proj=longlat +datum=WGS84", 5.0, 62.0, 0.5, 0.5, 8, 20, "degree")
    ring = [[4, 59], [6, 59], [6, 61], [4, 61], [4, 59]]
    (pixels,) = pixels_of((Place("box", {"type": "Polygon", "coordinates": [ring]}),), grid, "coverage")
    assert set(pixels.columns) == {0, 1} and pixels.area_share == pytest.approx(0.5)


@pytest.mark.parametrize("rule", ["coverage", "center"])
def test_places_outside_the_grid_are_named(caplog, rule):
    """A point exactly on any edge is in the pixel there; every grid is reported once."""
    edges = [station("NW", 0, 0), station("NE", GRID.width, 0), station("SE", GRID.width, GRID.height)]
    edges.append(station("SW", 0, GRID.height))
    beyond = [
        station("west", -0.01, 5),
        station("south", 5, GRID.height + 0.01),
        area("far", [(-9, 0), (-5, 0), (-5, 4)]),
    ]
    half = area("half", [(-2, 10), (2, 10), (2, 12), (-2, 12)])
    with caplog.at_level("WARNING", logger="simcast_hpc"):
        for _ in range(2):
            found = pixels_of((*edges, *beyond, half), GRID, rule)
    places = [(one.rows.tolist(), one.columns.tolist()) for one in found]
    last_row, last_column = GRID.height - 1, GRID.width - 1
    assert places[:4] == [([0], [0]), ([0], [last_column]), ([last_row], [last_column]), ([last_row], [0])]
    assert places[4:7] == [([], [])] * 3 and found[7].area_share == pytest.approx(0.5, abs=0.01)
    assert len(caplog.messages) == 2
    assert "3 of 8 places outside the grid, their series are empty: west, south, far" in caplog.text
    assert "1 of 8 places partly outside the grid" in caplog.text and "half (50 % inside)" in caplog.text


def test_share_outside_the_grid_and_missing_pixels_are_stated():
    forecast = made_forecast()
    half = area("half", [(-2, 10), (2, 10), (2, 12), (-2, 12)])
    corner = area("corner", [(24, 0), (28, 0), (28, 2), (24, 2)])  # columns from 26 are missing
    rows = list(series_of(forecast, ProductSettings(), PlaceSettings((half, corner), statistics=("mean",))))
    shares = {row.place: row.valid_share for row in rows}
    assert shares == {"half": pytest.approx(0.5, abs=0.01), "corner": pytest.approx(0.5, abs=0.01)}
    assert all(row.value is not None for row in rows)


def test_weighted_percentile_counts_weights():
    values, weights = np.array([[5.0, 1.0, np.nan, 3.0]]), np.array([[1.0, 2.0, 0.0, 1.0]])
    for percent, expected in {0: 1.0, 50: 1.0, 51: 3.0, 75: 3.0, 76: 5.0, 100: 5.0}.items():
        assert weighted_percentile(values, weights, percent)[0] == expected


@pytest.mark.parametrize("are_means", [True, False])
def test_share_of_the_area_without_observations(are_means):
    validity = np.ones((4, *GRID.shape), bool)
    validity[1, :, :10] = False  # at 10 minutes, the western pixels
    forecast = replace(made_forecast(leads=4, missing=False, are_means=are_means), validity=validity)
    places = PlaceSettings((area("box", [(5, 5), (15, 5), (15, 10), (5, 10)]),), statistics=("mean",))
    settings = ProductSettings(windows=((5.0, 10.0), (10.0, 20.0), (15.0, 20.0)))
    rows = list(series_of(forecast, settings, places))
    shares = {(row.product, row.start_time[11:16], row.lead_minutes): row.undetermined_share for row in rows}
    rates = [shares["rainfall_rate", "", lead] for lead in (5.0, 10.0, 15.0, 20.0)]
    assert rates == pytest.approx([0, 0.5, 0, 0], abs=0.01)
    amounts_ = {key[1:]: share for key, share in shares.items() if key[0] != "rainfall_rate"}
    assert amounts_ == pytest.approx(
        {("12:10", 10.0): 0.5, ("12:15", 20.0): 0.0 if are_means else 0.5, ("12:20", 20.0): 0.0}, abs=0.01
    )
    assert all(row.undetermined_share is None for row in series_of(made_forecast(leads=4), settings, places))


def test_names_are_no_formulas_in_a_spreadsheet(tmp_path):
    names = ("=HYPERLINK(1)", "+1", "@SUM(A1)", "-2", "Köln, Dom", 'said "x"', "plain")
    row = SeriesRow(
        "", "point", "rainfall_rate", "value", "forecast", None, "", "", "", "", 5.0, -1.5, "mm h-1", 1.0, None
    )
    write_series_csv(tmp_path / "series.csv", [row._replace(place=name) for name in names])
    with (tmp_path / "series.csv").open(encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    assert [one["place"] for one in written] == [f"'{name}" for name in names[:4]] + list(names[4:])
    assert written[0]["value"] == "-1.5", "numbers are unchanged"


def test_csv_and_geojson_have_the_same_values(tmp_path):
    forecast = made_forecast(members=3)
    places = PlaceSettings((station("A", 12.9, 7.1), area("Ä, b", TRIANGLE)))
    publisher = Publisher(tmp_path, ("nc", "csv", "geojson"), products=SETTINGS, places=places)
    paths = publisher.publish(forecast)
    with paths["csv"].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    content = json.loads(paths["geojson"].read_text(encoding="utf-8"))
    assert content["attributes"]["license"] == "CC BY 4.0" and len(content["features"]) == 2
    for feature in content["features"]:
        own = [row for row in rows if row["place"] == feature["properties"]["name"]]
        series = feature["properties"]["series"]
        assert len(own) == len(series) > 20
        for row, entry in zip(own, series, strict=True):
            assert float(row["value"]) == pytest.approx(entry["value"], rel=1e-5)
            assert row["valid_time"] == entry["valid_time"] and row["unit"] == entry["unit"]
    assert publisher.identity != replace(publisher, places=replace(places, rule="center")).identity
    assert Publisher(tmp_path, ("nc",)).identity == ""


@pytest.mark.parametrize(
    "text",
    ["name,lon,lat\nA,10.5,55.25\n", "\ufefflatitude;Longitude;ID\n55.25;10.5;A\n", "lat, lon, name\n55.25, 10.5, A"],
)
def test_points_are_read_from_csv(tmp_path, text):
    (tmp_path / "points.csv").write_text(text, encoding="utf-8")
    (place,) = read_places(tmp_path / "points.csv", option="--points", kinds=("Point",))
    assert place.name == "A" and place.geometry["coordinates"] == [10.5, 55.25]


def test_quoted_names_may_contain_any_separator(tmp_path):
    """Line breaks, also of Unicode, and the delimiter; a name of several lines becomes one line."""
    text = 'name,lon,lat\r\n"A\r\n B",10,55\r\n"C\u2028D",11,55\r\n"E;F\x1cG, H",12,55\r\nI\x85J,13,55\r\n'
    (tmp_path / "points.csv").write_bytes(text.encode())
    places = read_places(tmp_path / "points.csv", option="--points", kinds=("Point",))
    assert [place.name for place in places] == ["A B", "C D", "E;F G, H", "I J"]
    assert [place.geometry["coordinates"][0] for place in places] == [10, 11, 12, 13]


BOX = {"type": "Polygon", "coordinates": [[[10, 55], [11, 55], [11, 56], [10, 55]]]}
BOWTIE = {"type": "Polygon", "coordinates": [[[10, 55], [11, 56], [11, 55], [10, 56], [10, 55]]]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name;x\nA;1\n", "it must have name, lon and lat"),
        ("name,lon,lat\nA,east,55\n", "line 2: lon and lat must be numbers"),
        ("name,lon,lat\nA,10,55\nA,11,55\n", "contains the name 'A' more than once"),
        ("name,lon,lat\nA,2640000,-944000\n", "line 2: longitude 2.64e\\+06 and latitude -944000 must be degrees"),
        ("name,lon,lat\n,10,55\n", "line 2 has no name"),
        ("name,lon,lat\n", "contains no places"),
        ("{", "is not a GeoJSON FeatureCollection"),
        ({"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": BOX}]}, "feature 1 has no name"),
        ({"type": "Feature", "properties": {"name": "A"}, "geometry": BOWTIE}, "'A' is invalid: Self-intersection"),
        ({"type": "Feature", "properties": {"name": "A"}, "geometry": None}, "has the geometry None; it must be"),
        ({"type": "Feature", "id": 7, "geometry": {"type": "Point"}}, "of '7' (is|are) invalid"),
        (
            {"type": "FeatureCollection", "crs": "EPSG:3035", "features": []},
            "coordinates must be longitude and latitude",
        ),
    ],
)
def test_invalid_places_are_rejected(tmp_path, content, message):
    path = tmp_path / "places"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_places(path, option="--points", kinds=("Point", "Polygon"))


def test_invalid_choices_are_rejected(tmp_path):
    with pytest.raises(ConfigError, match="--polygon-statistic 'median' must be mean, max, or p0 to p100"):
        PlaceSettings(statistics=("median",))
    with pytest.raises(ConfigError, match="--polygon-pixels 'edge' must be coverage or center"):
        PlaceSettings(rule="edge")
    with pytest.raises(ConfigError, match="--write csv requires places"):
        Publisher(tmp_path, ("nc", "csv"))
    with pytest.raises(ConfigError, match="require --write csv or --write geojson"):
        Publisher(tmp_path, ("nc",), places=PlaceSettings((station("A", 1.0, 1.0),)))
