"""Figures: color steps at thresholds, gaps for undefined scores, unchanged global state of matplotlib."""

import json
import subprocess
import sys

import numpy as np
import pytest

from simcast_hpc.report.colors import line_styles, steps_for
from simcast_hpc.report.ensemble_section import rank_chart, reliability_chart, spread_chart, threshold_styles
from simcast_hpc.report.lead_time_curves import csi_charts, mean_csi_chart, plain
from simcast_hpc.report.pipeline_results import read_results
from simcast_hpc.report.score_tables import stage_table
from simcast_hpc.report.spectra_figures import spectra_charts
from simcast_hpc.report.training_curves import baselines_of, loss_charts, throughput_charts, validation_charts
from tests.report.fake_run import CODES, ENSEMBLE, MEAN_CSI, RATES, WITH_ENSEMBLE, score_file, write_run

VIL = steps_for(tuple(CODES.values()), labels=tuple(CODES), unit="code")
RAIN = steps_for(tuple(RATES.values()), labels=tuple(RATES), unit="mm/h")


@pytest.mark.parametrize("scale", [VIL, RAIN], ids=["code", "mm/h"])
def test_value_at_threshold_has_its_color_in_uint8_and_float(scale):
    codes = np.arange(255, dtype=np.uint8)[None]
    expected = [sum(code >= level for level in scale.levels) for code in range(255)]
    assert scale.index(codes)[0].tolist() == expected
    assert scale.index(codes.astype(np.float32) / np.float32(255))[0].tolist() == expected
    assert len(scale.colors) == len(set(scale.colors)) == len(scale.levels) + 1 == len(scale.labels) + 1


def test_missing_pixels_are_masked():
    assert VIL.index(np.array([[0, 254, 255]], np.uint8)).mask.tolist() == [[False, False, True]]
    assert VIL.index(np.array([[0.0, 1.0, np.nan]], np.float32)).mask.tolist() == [[False, False, True]]


def test_other_thresholds_have_their_own_scale():
    assert set(CODES.values()) <= set(VIL.levels)
    own = steps_for((20.0, 90.0), labels=("20", "90"), unit="code")
    assert own.levels == (20.0, 90.0) and own.labels == ("20", "90")


def test_line_styles_are_distinct():
    names = ("persistence", "extrapolation", "teacher", "student", "direct", "direct-unweighted", "mine", "yours")
    styles = line_styles(names)
    assert len(set(styles.values())) == len(names)
    assert len({style.marker for style in styles.values()}) == len(names)


def test_undefined_scores_leave_gaps(tmp_path):
    student = (0.614, None, 0.461, 0.373, 0.318, 0.269)
    run = read_results(write_run(tmp_path / "run", test_sets=[score_file(mean_csi={**MEAN_CSI, "student": student})]))
    scores = run.test_sets[0].scores
    chart = mean_csi_chart(scores)
    (axes,) = chart.figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    assert set(lines) == set(MEAN_CSI)
    assert lines["student"].get_xdata().tolist() == [5, 10, 15, 20, 25, 30]
    assert np.isnan(lines["student"].get_ydata()).tolist() == [False, True, False, False, False, False]
    assert "student 0.269" in chart.alt and chart.png.startswith(b"\x89PNG")
    charts = csi_charts(scores)
    assert [one.title for one in charts] == [*(f"≥ {label}" for label in list(CODES)[:-1]), "≥ 219 (rare)"]
    assert np.isnan(charts[0].figure.axes[0].lines[2].get_ydata()[1])


def test_losses_have_separate_charts_and_axes(tmp_path):
    run = read_results(write_run(tmp_path / "run"))
    charts = loss_charts(run.stages)
    assert [chart.title for chart in charts] == ["teacher", "student", "direct"]
    panels = [chart.figure.axes[0] for chart in charts]
    assert [round(panel.get_xlim()[1] / 1.02) for panel in panels] == [500, 800, 1300]
    assert len({panel.get_ylim() for panel in panels}) == 3
    assert panels[0].lines[0].get_xdata()[-1] == 500
    assert [panel.get_yscale() for panel in panels] == ["log"] * 3
    speeds = throughput_charts(run.stages)
    assert [chart.title for chart in speeds] == ["teacher", "student", "direct"]
    assert set(speeds[0].figure.axes[0].lines[0].get_ydata()) == {66.7}


def test_loss_with_negative_values_has_a_linear_axis(tmp_path):
    """The loss of the autoencoder is a log-likelihood, which can be negative."""
    run_dir = write_run(tmp_path / "run", steps={"direct": 100})
    lines = '{"step": 20, "loss": 3.0}\n{"step": 40, "loss": -7.0}\n{"step": 60, "loss": null}\n'
    (run_dir / "direct" / "metrics.jsonl").write_text(lines, encoding="utf-8")
    stages = read_results(run_dir).stages
    (axes,) = loss_charts(stages)[0].figure.axes
    assert axes.get_yscale() == "linear" and axes.lines[0].get_ydata()[:2].tolist() == [3.0, -7.0]
    assert np.isnan(axes.lines[0].get_ydata()[2])
    assert throughput_charts(stages) == [], "throughput was not logged"


def test_validation_charts(tmp_path):
    run_dir = write_run(tmp_path / "run")
    assert validation_charts(read_results(run_dir).stages) == []
    with (run_dir / "student" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 400, "validation/crps": 0.07}\n{"step": 800, "validation/crps": 0.05}\n')
    (chart,) = validation_charts(read_results(run_dir).stages)
    assert chart.title == "student: fair CRPS" and "0.05 at the end" in chart.alt
    assert chart.figure.axes[0].lines[0].get_xdata().tolist() == [400, 800]


def test_validation_of_a_forecasting_stage_shows_baselines_and_the_best_step(tmp_path):
    run_dir = write_run(tmp_path / "run")
    lines = [
        {"step": 0, "baseline/persistence/csi/mean": 0.2, "baseline/extrapolation/csi/mean": 0.45},
        *({"step": step, "validation/csi/mean": csi, "validation/loss": loss, "validation/mse": 0.01}
          for step, csi, loss in ((400, 0.5, 0.02), (800, 0.4, 0.5))),
    ]  # fmt: skip
    with (run_dir / "student" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
    path = run_dir / "student" / "DONE.json"
    selection = {"score": "csi/mean", "best_step": 400, "best_value": 0.5, "export": "best", "exported_step": 400}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"validation": selection}), encoding="utf-8")
    run = read_results(run_dir)
    csi, mse = validation_charts(run.stages)
    assert (csi.title, mse.title) == ("student: mean CSI", "student: MSE")
    drawn = [line.get_xydata().tolist() for line in csi.figure.axes[0].lines]
    assert drawn[0] == [[400, 0.5], [800, 0.4]]
    assert [[y for _, y in line] for line in drawn[1:3]] == [[0.2, 0.2], [0.45, 0.45]]
    assert [x for x, _ in drawn[3]] == [400, 400]
    assert "persistence 0.2." in csi.alt and "Best csi/mean at step 400." in csi.alt
    assert list(baselines_of(run.stages)) == ["persistence", "extrapolation"]
    loss = loss_charts(run.stages)[1].figure.axes[0]
    assert loss.lines[1].get_xydata().tolist() == [[400, 0.02], [800, 0.5]] and loss.get_ylim()[1] > 0.5
    (student,) = (row for row in stage_table(run).groups[0].rows if row.heading == "student")
    assert student.cells[1:3] == ("800", "400")


def test_dollar_signs_are_escaped():
    assert plain("a $x$ b") == r"a \$x\$ b"


def test_report_does_not_change_global_state_of_matplotlib(tmp_path):
    mean_csi = {name: leads[:1] for name, leads in MEAN_CSI.items()}
    write_run(tmp_path / "run", steps={"direct": 100}, test_sets=[score_file(mean_csi=mean_csi, frames_in=1)])
    script = (
        "import sys, matplotlib\n"
        "matplotlib.rcParams['backend'] = 'svg'\n"
        "before = dict(matplotlib.rcParams)\n"
        "from pathlib import Path\n"
        "from simcast_hpc.report import write_report\n"
        "write_report(Path(sys.argv[1]))\n"
        "assert dict(matplotlib.rcParams) == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_reliability_has_the_counted_thresholds(tmp_path):
    """Reliability is counted only under the first protocol, which may have fewer thresholds."""
    scores_json = score_file(mean_csi=WITH_ENSEMBLE)
    reliability = scores_json["diagrams"][ENSEMBLE]["reliability"]
    scores_json["diagrams"][ENSEMBLE]["reliability"] = {label: reliability[label] for label in ("16", "74", "219")}
    scores = read_results(write_run(tmp_path / "run", test_sets=[scores_json])).test_sets[0].scores
    chart = reliability_chart(scores, ENSEMBLE)
    assert (
        [line.get_label() for line in chart.figure.axes[0].lines[1:]]
        == ["≥ 16", "≥ 74"]
        == list(threshold_styles(scores, ENSEMBLE))
    )
    assert "≥ 16 observed in 85 %" in chart.alt


def test_spread_is_corrected_for_the_number_of_members(tmp_path):
    scores_json = score_file(mean_csi=WITH_ENSEMBLE)
    scores = read_results(write_run(tmp_path / "run", test_sets=[scores_json])).test_sets[0].scores
    spread, error = (line.get_ydata() for line in spread_chart(scores, ENSEMBLE).figure.axes[0].lines)
    assert spread[0] == pytest.approx(0.05 * 1.1 * np.sqrt(6 / 5))
    assert error[0] == pytest.approx(spread[0] / (0.9 * 1.1))
    (bars,) = rank_chart(scores, ENSEMBLE).figure.axes[0].containers
    assert [bar.get_height() for bar in bars] == pytest.approx(np.array([300, 200, 150, 150, 200, 320]) / 220)


def test_spectra_of_members_and_mean(tmp_path):
    scores_json = score_file(mean_csi=WITH_ENSEMBLE)
    scores = read_results(write_run(tmp_path / "run", test_sets=[scores_json])).test_sets[0].scores
    first, last, relative = spectra_charts(scores)
    assert (first.title, last.title, relative.title) == (
        "+5 min, power",
        "+30 min, power",
        "+30 min, relative power",
    )
    lines = {line.get_label(): line for line in relative.figure.axes[0].lines}
    assert lines["observed"].get_ydata() == pytest.approx(np.ones(23))
    members, mean = (lines[f"diffusion, {kind}"].get_ydata()[-1] for kind in ("members", "mean"))
    assert members == pytest.approx(np.exp(-0.1 * 5 * 22 / 23)) and mean == pytest.approx(np.exp(-0.6 * 5 * 22 / 23))
    left, right = relative.figure.axes[0].get_xlim()
    assert left > 8 * 48 > 8 * 48 / 23 > right, "kilometers, long wavelengths first"
