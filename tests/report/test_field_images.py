"""Images of fields: pixel colors, missing pixels, and color scales for color-blind readers."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from simcast_hpc.report.animation import animation
from simcast_hpc.report.colors import MISSING_FACE, MISSING_HATCH, map_steps, probability_steps, steps_for
from simcast_hpc.report.field_images import as_png, field_image
from simcast_hpc.report.field_viewer import Panel, in_minutes, viewer
from simcast_hpc.report.frame_overview import frame_indices, overview
from tests.report.fake_run import CODES, RATES, moving_storm

VIL = steps_for(tuple(CODES.values()), labels=tuple(CODES), unit="code")
SCALES = {
    "VIL": VIL,
    "mm/h": steps_for(tuple(RATES.values()), labels=tuple(RATES), unit="mm/h"),
    "dBZ": steps_for((100.0, 120.0, 132.0, 142.0, 157.0), labels=("19", "28", "35", "40", "47"), unit="dBZ"),
    "eight steps of dBZ": steps_for(tuple(20.0 * k for k in range(1, 9)), labels=tuple("abcdefgh"), unit="dBZ"),
    "probability": probability_steps(),
    "map of dBZ": map_steps("dBZ", lowest_threshold=20.0),
    "map of mm/h": map_steps("mm/h", lowest_threshold=0.5),
    "map of kg/m^2": map_steps("kg/m^2", lowest_threshold=0.15),
}
# Dichromatic vision, on linear RGB: Machado, Oliveira and Fernandes 2009, table 1, severity 1.
SEEN = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}  # fmt: skip


def lab(color: str, seen: object) -> np.ndarray:
    """Return CIE L*a*b* (D65) of a color as it is seen."""
    coded = np.array(to_rgb(color))
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    xyz = np.array(to_xyz) @ np.clip(np.array(seen) @ linear, 0, 1) / [0.95047, 1.0, 1.08883]
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eyes", SEEN)
@pytest.mark.parametrize("scale", SCALES)
def test_steps_are_distinguishable_and_ordered_for_color_blind_readers(scale, eyes):
    """All colors differ by several just noticeable differences (2.3), and lightness orders them."""
    seen = np.stack([lab(color, SEEN[eyes]) for color in SCALES[scale].colors])
    between = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
    assert between[np.triu_indices(len(seen), 1)].min() > 7
    lightness = np.diff(seen[:, 0])
    assert (lightness > 2).all() or (lightness < -2).all()


def test_pixel_colors_and_hatching_of_missing_pixels():
    codes = np.array([[0, 16, 74], [133, 254, 255]], np.uint8)
    image = field_image(codes, VIL, side=30)
    assert image.size == (30, 20) and image.mode == "P"
    pixels = np.asarray(Image.open(io.BytesIO(as_png(image))).convert("RGB"))
    colors = {tuple(round(255 * part) for part in to_rgb(color)): k for k, color in enumerate(VIL.colors)}
    shown = [[colors[tuple(pixels[10 * row + 5, 10 * column + 5])] for column in range(3 - row)] for row in (0, 1)]
    assert shown == [[0, 1, 4], [6, 9]]
    missing = {tuple(pixel) for pixel in pixels[10:, 20:].reshape(-1, 3)}
    assert missing == {tuple(round(255 * part) for part in to_rgb(grey)) for grey in (MISSING_FACE, MISSING_HATCH)}
    assert not missing & set(colors), "colors of missing pixels differ from all steps"


def test_large_field_is_not_enlarged():
    assert field_image(np.zeros((384, 300), np.uint8), VIL).size == (300, 384)


def panels(leads: int, size: int = 48) -> list[Panel]:
    frames = moving_storm(leads, first=0, size=size)
    return [Panel(name, frames, VIL) for name in ("observed", "student", "a very long name of a forecast that is cut")]


def test_animation_has_a_frame_for_the_input_and_each_lead_time():
    moving = Image.open(
        io.BytesIO(animation(panels(4), lead_minutes=(5, 10, 15, 20), start=moving_storm(1, first=0)[0]))
    )
    assert (moving.format, moving.n_frames) == ("GIF", 5)  # type: ignore[attr-defined]
    scenes = []
    for scene in range(5):
        moving.seek(scene)
        scenes.append(np.asarray(moving.convert("RGB")))
    assert all((scenes[k] != scenes[k + 1]).any() for k in range(1, 4))


@pytest.mark.parametrize(("leads", "shown"), [(1, [0]), (6, [0, 1, 2, 3, 4, 5]), (12, [0, 2, 4, 7, 9, 11])])
def test_overview_has_at_most_six_frames_including_the_last(leads, shown):
    assert frame_indices(leads) == shown
    minutes = [5.0 * (k + 1) for k in range(leads)]
    rows = panels(leads)
    whole = overview(rows[0], rows, minutes_in=[-5.0, 0.0][:leads], minutes_out=minutes, title="VIL, code")
    assert whole.width > 150 * len(shown) and whole.height > 150 * 4


def test_alternative_texts_describe_the_maximum():
    fields = np.zeros((3, 10, 10), np.uint8)
    fields[1, 0, 0], fields[2] = 140, 255
    page = viewer([Panel("observed", fields, VIL)], lead_minutes=(5, 10, 15), label="Lead time")
    assert 'alt="observed at +5 min: no pixel at or above 16"' in page
    assert 'alt="observed at +10 min: maximum at or above 133, on 1 % of the pixels"' in page
    assert 'alt="observed at +15 min: all missing"' in page
    assert [in_minutes(minutes) for minutes in (-10, 0, 2.5)] == ["−10 min", "0 min", "+2.5 min"]
