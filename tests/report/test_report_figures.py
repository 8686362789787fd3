"""Figures: colours step where scores step, gaps stay gaps, and an importer's matplotlib is left as it was."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from simcast_hpc.report.colours import line_styles, steps_for
from simcast_hpc.report.figures import draw_csi_by_threshold, draw_losses, draw_mean_csi, plain
from simcast_hpc.report.frames import draw_frames
from simcast_hpc.report.results import read_results
from tests.report.fake_run import CODES, MEAN_CSI, RATES, radar_file, score_file, write_run

VIL = steps_for(tuple(CODES.values()), labels=tuple(CODES), unit="code")
RAIN = steps_for(tuple(RATES.values()), labels=tuple(RATES), unit="mm/h")


@pytest.mark.parametrize("scale", [VIL, RAIN], ids=["code", "mm/h"])
def test_a_pixel_on_a_threshold_has_its_colour_in_codes_and_in_floats(scale):
    codes = np.arange(255, dtype=np.uint8)[None]
    expected = [sum(code >= level for level in scale.levels) for code in range(255)]
    assert scale.index(codes)[0].tolist() == expected
    assert scale.index(codes.astype(np.float32) / np.float32(255))[0].tolist() == expected
    assert len(scale.colours) == len(set(scale.colours)) == len(scale.levels) + 1 == len(scale.labels) + 1


def test_missing_pixels_are_masked():
    assert VIL.index(np.array([[0, 254, 255]], np.uint8)).mask.tolist() == [[False, False, True]]
    assert VIL.index(np.array([[0.0, 1.0, np.nan]], np.float32)).mask.tolist() == [[False, False, True]]


def test_thresholds_that_vil_is_not_stepped_at_make_their_own_scale():
    assert set(CODES.values()) <= set(VIL.levels)
    own = steps_for((20.0, 90.0), labels=("20", "90"), unit="code")
    assert own.levels == (20.0, 90.0) and own.labels == ("20", "90")


def test_every_line_differs_from_every_other():
    names = ("persistence", "extrapolation", "teacher", "student", "direct", "direct-unweighted", "mine", "yours")
    styles = line_styles(names)
    assert len(set(styles.values())) == len(names)
    assert len({style.marker for style in styles.values()}) == len(names)


def test_undefined_scores_leave_gaps(tmp_path):
    student = (0.614, None, 0.461, 0.373, 0.318, 0.269)
    run = read_results(write_run(tmp_path / "run", test_sets=[score_file(mean_csi={**MEAN_CSI, "student": student})]))
    scores = run.test_sets[0].scores
    (axes,) = draw_mean_csi(scores).axes
    lines = {line.get_label(): line for line in axes.lines}
    assert set(lines) == set(MEAN_CSI)
    assert lines["student"].get_xdata().tolist() == [5, 10, 15, 20, 25, 30]
    assert np.isnan(lines["student"].get_ydata()).tolist() == [False, True, False, False, False, False]
    panels = draw_csi_by_threshold(scores).axes
    assert [panel.get_title() for panel in panels] == [*(f"≥ {label}" for label in list(CODES)[:-1]), "≥ 219 (rare)"]
    assert np.isnan(panels[0].lines[2].get_ydata()[1])


def test_losses_have_a_panel_and_a_scale_of_their_own(tmp_path):
    run = read_results(write_run(tmp_path / "run"))
    panels = draw_losses(run.stages).axes
    assert [panel.get_title() for panel in panels] == ["teacher", "student", "direct"]
    assert [panel.get_xlim()[1] for panel in panels] == [500, 800, 1300]
    assert len({panel.get_ylim() for panel in panels}) == 3
    assert panels[0].lines[0].get_xdata()[-1] == 500


def test_a_loss_that_no_logarithm_takes_is_left_out(tmp_path):
    run_dir = write_run(tmp_path / "run", steps={"direct": 100})
    (run_dir / "direct" / "metrics.jsonl").write_text('{"step": 20, "loss": 0.0}\n{"step": 40}\n', encoding="utf-8")
    figure = draw_losses(read_results(run_dir).stages)
    figure.canvas.draw()
    assert np.isnan(figure.axes[0].lines[0].get_ydata()).all()


@pytest.mark.parametrize("leads", [1, 6, 12])
def test_frames_show_the_last_lead_and_at_most_six(tmp_path, leads):
    mean_csi = {name: (values * 2)[:leads] for name, values in MEAN_CSI.items()}
    run = read_results(write_run(tmp_path / "run", test_sets=[radar_file("test", mean_csi=mean_csi)]))
    scores, example = run.test_sets[0].scores, run.test_sets[0].example
    assert example is not None
    figure = draw_frames(scores, example)
    rows = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]
    assert rows == ["inputs", "observed", *MEAN_CSI]
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles[:6] == ["−25 min", "−20 min", "−15 min", "−10 min", "−5 min", "0 min"]
    assert len(titles[6:]) == min(leads, 6) and titles[-1] == f"+{leads * 5} min"
    assert isinstance(figure.canvas, FigureCanvasAgg)
    observed = figure.axes[6 + min(leads, 6) - 1] if leads > 1 else figure.axes[6]
    shown = observed.images[0].get_array()
    assert shown.mask[-1, -1] and not shown.mask[0, 0]
    assert shown.compressed().tolist() == RAIN.index(example.observed[-1]).compressed().tolist()


def test_dollar_signs_are_no_mathematics():
    assert plain("a $x$ b") == r"a \$x\$ b"


def test_importing_and_drawing_leave_the_importers_matplotlib_alone(tmp_path):
    mean_csi = {name: leads[:1] for name, leads in MEAN_CSI.items()}
    write_run(tmp_path / "run", steps={"direct": 100}, test_sets=[score_file(mean_csi=mean_csi, frames_in=1)])
    script = (
        "import sys, matplotlib\n"
        "matplotlib.rcParams['backend'] = 'svg'\n"
        "before = dict(matplotlib.rcParams)\n"
        "from pathlib import Path\n"
        "from simcast_hpc.report import write_page\n"
        "write_page(Path(sys.argv[1]))\n"
        "assert dict(matplotlib.rcParams) == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
