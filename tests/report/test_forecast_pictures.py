"""Pictures of forecasts: map grid, times, omitted lead times, light rain."""

from datetime import UTC, datetime

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from simcast_hpc.forecast.forecast_fields import Forecast
from simcast_hpc.radar.radar_frame import RadarGrid
from simcast_hpc.report.colors import map_steps
from simcast_hpc.report.forecast_pictures import forecast_figure
from simcast_hpc.report.map_axes import MapAxes

DEGREES = RadarGrid("+proj=longlat +datum=WGS84", 4.0, 54.0, 0.02, 0.01, 200, 150, "degree")
STEREO = RadarGrid(
    "+proj=stere +lat_0=90 +lon_0=0 +lat_ts=60 +a=6378137 +b=6356752", 0.0, -3.65e6, 1000.0, 1000.0, 765, 700
)


def forecast(*, leads: int = 4, grid: RadarGrid = DEGREES, issue: str = "2024-06-11 23:50", **more) -> Forecast:
    field = np.zeros(grid.shape, np.float32)
    field[: grid.height // 2] = 0.15  # light rain, far below the lowest threshold
    field[:, :5] = np.nan
    moment = datetime.fromisoformat(issue).replace(tzinfo=UTC)
    values = np.repeat(field[None, None], leads, axis=1)
    given = {"provenance": {"simcast_run": "mine"}} | more
    return Forecast(moment, 5.0, grid, "mm/h", -32.0, field, (0.5, 2.0, 5.0), values, **given)


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def test_panels_have_valid_and_lead_times_and_the_figure_its_issue_time():
    figure = forecast_figure(forecast())
    assert titles(figure) == [
        "23:50 UTC, observed",
        "23:55 UTC, +5 min",
        *(f"2024-06-12 00:{minute:02d} UTC, +{minute + 10} min" for minute in (0, 5, 10)),
    ]
    assert figure.get_suptitle() == "Forecast issued 2024-06-11 23:50 UTC by mine"
    assert "lead times" not in figure.get_supxlabel() and "missing" in figure.get_supxlabel()


def test_omitted_lead_times_are_stated():
    figure = forecast_figure(forecast(leads=12, issue="2024-06-11 12:00"))
    assert len(titles(figure)) == 8 and titles(figure)[-1] == "13:00 UTC, +60 min"
    assert "7 of 12 lead times are shown; the data file contains all of them, +5 to +60 min" in figure.get_supxlabel()


def test_ensembles_have_probabilities():
    one = forecast()
    chances = np.full((3, 4, *DEGREES.shape), 0.5, np.float32)
    figure = forecast_figure(forecast(mean=one.values[0], probability=chances))
    assert len(titles(figure)) == 9
    assert {axes.get_xlabel() for axes in figure.axes} >= {"rain rate, mm/h", "probability of ≥ 2 mm/h"}
    assert figure.get_suptitle().startswith("Ensemble mean issued")


def test_light_rain_is_visible_and_missing_pixels_are_grey():
    axes = forecast_figure(forecast()).axes[0]
    (image,) = axes.images
    steps = map_steps("mm/h", lowest_threshold=0.5)
    index = image.get_array()
    assert np.asarray(index[0, -1]) == 1 and np.asarray(index[-1, -1]) == 0 and index.mask[:, :5].all()
    assert steps.colors[0] != steps.colors[1] and image.cmap(0) == to_rgba(steps.colors[0])
    assert axes.get_facecolor()[:3] == pytest.approx([0.788] * 3, abs=0.01)


@pytest.mark.parametrize(
    ("unit", "threshold", "first"), [("mm/h", 0.5, 0.1), ("dBZ", 20.0, 5.0), ("kg/m^2", 0.15, 0.05)]
)
def test_scale_begins_below_the_lowest_threshold(unit, threshold, first):
    assert map_steps(unit, lowest_threshold=threshold).levels[0] == first
    low = map_steps(unit, lowest_threshold=first)
    assert low.levels[0] < first and list(low.levels) == sorted(low.levels)


def test_lines_of_a_grid_in_degrees():
    axes = forecast_figure(forecast()).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["4°E", "5°E", "6°E", "7°E"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["52°N", "52.5°N", "53°N", "53.5°N", "54°N"]
    assert axes.get_xticks() == pytest.approx([4, 5, 6, 7])
    assert axes.get_aspect() == pytest.approx(1 / np.cos(np.deg2rad(53)))


def test_ticks_of_a_projection_are_on_their_lines():
    pyproj = pytest.importorskip("pyproj")
    to_degrees = pyproj.Transformer.from_crs(STEREO.projection, "EPSG:4326", always_xy=True)
    axes = Figure().subplots()
    mapped = MapAxes(STEREO)
    mapped.draw(axes)
    left, _, bottom, _ = mapped.extent
    meridians = {tick.get_text(): x for tick, x in zip(axes.get_xticklabels(), axes.get_xticks(), strict=True)}
    assert set(meridians) == {"2°E", "4°E", "6°E", "8°E"}
    for label, x in meridians.items():
        assert to_degrees.transform(x, bottom)[0] == pytest.approx(float(label[:-2]), abs=0.01)
    for tick, y in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True):
        assert to_degrees.transform(left, y)[1] == pytest.approx(float(tick.get_text()[:-2]), abs=0.01)


def test_map_across_180_degrees():
    axes = Figure().subplots()
    MapAxes(RadarGrid("", 178.0, 10.0, 0.01, 0.01, 400, 400, "degree")).draw(axes)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["178°E", "179°E", "180°W", "179°W", "178°W"]


@pytest.mark.parametrize("projection", ["", "+proj=nonsense"])
def test_axes_are_pixels_without_projection(projection):
    grid = RadarGrid(projection, 0.0, 0.0, 1.0, 1.0, 30, 40)
    figure = forecast_figure(forecast(grid=grid))
    assert figure.axes[0].get_xlim() == (0, 40) and figure.axes[0].get_ylim() == (30, 0)
    assert figure.axes[0].get_xlabel() == "pixel" and "axes in pixels" in figure.get_supxlabel()
