"""Findings follow the scores: other scores give other sentences."""

from pathlib import Path

import pytest

from simcast_hpc.report.findings_text import (
    findings,
    findings_of_scores,
    headlines,
    persistence_comparison,
    run_findings,
)
from simcast_hpc.report.pipeline_results import RunResults, read_results
from tests.report.fake_run import MEAN_CSI, STEPS, WITH_ENSEMBLE, radar_file, score_file, write_run


def _read(tmp_path: Path, scores: dict | None = None, **options) -> RunResults:
    return read_results(write_run(tmp_path / "run", test_sets=None if scores is None else [scores], **options))


def _findings(run: RunResults) -> str:
    return " ".join(findings(run, run.test_sets[0].scores))


def test_student_better_than_persistence_after_the_first_lead_time(tmp_path):
    text = headlines(run := _read(tmp_path), run.test_sets[0].scores)
    assert text == [
        "The mean CSI of student is higher than that of persistence at every lead time after the first (lead times 2 "
        "to 6; 0.269 versus 0.227 at 30 minutes). At the first lead time it is lower than persistence (0.614 versus "
        "0.658)."
    ]


@pytest.mark.parametrize("at_lead_3", [0.361, 0.362], ids=["below", "equal"])
def test_student_not_better_than_persistence_at_one_lead_time(tmp_path, at_lead_3):
    student = (0.7, 0.573, at_lead_3, 0.373, 0.318, 0.269)
    text = _findings(_read(tmp_path, score_file(mean_csi={**MEAN_CSI, "student": student})))
    assert "student does not beat persistence at every lead time after the first" in text
    assert f"at lead time 3 (15 minutes: {at_lead_3} versus 0.362)." in text
    assert "At the first lead time it is higher than persistence (0.700 versus 0.658)" in text
    assert "is higher than that of persistence at every lead" not in text


def test_student_better_than_persistence_at_every_lead_time(tmp_path):
    student = (0.7, 0.573, 0.448, 0.373, 0.318, 0.269)
    run = _read(tmp_path, score_file(mean_csi={**MEAN_CSI, "student": student}))
    assert persistence_comparison(run.test_sets[0].scores, "student") == (
        "The mean CSI of student is higher than that of persistence at every lead time (0.700 versus 0.658 at "
        "5 minutes; 0.269 versus 0.227 at 30 minutes)."
    )


def test_undefined_lead_time_is_not_better(tmp_path):
    student = (0.7, 0.573, None, 0.373, 0.318, 0.269)
    run = _read(tmp_path, score_file(mean_csi={**MEAN_CSI, "student": student}))
    text = persistence_comparison(run.test_sets[0].scores, "student")
    assert "does not beat" in text and "At lead time 3 the mean CSI is undefined." in text


def test_single_lead_time(tmp_path):
    run = _read(tmp_path, score_file(mean_csi={name: leads[:1] for name, leads in MEAN_CSI.items()}))
    text = persistence_comparison(run.test_sets[0].scores, "student")
    assert text == "At the first lead time it is lower than persistence (0.614 versus 0.658)."


def test_direct_better_than_student(tmp_path):
    text = _findings(_read(tmp_path))
    assert "The direct model has a higher mean CSI over the lead times than the student model" in text
    assert "0.4368 versus 0.4347, a difference of 0.0021." in text
    assert "With one seed this does not show" in text
    assert "Both used 1300 optimizer steps in total: 500 (teacher) + 800 (student) versus 1300 (direct)." in text


def test_student_better_than_direct(tmp_path):
    student = tuple(value + 0.1 for value in MEAN_CSI["direct"])
    steps = {**STEPS, "direct": 900}
    text = _findings(_read(tmp_path, score_file(mean_csi={**MEAN_CSI, "student": student}), steps=steps))
    assert "The student model has a higher mean CSI over the lead times than the direct model" in text
    assert "0.5368 versus 0.4368, a difference of 0.1000. With one seed this does not show" in text
    assert "Their numbers of optimizer steps differ: 500 (teacher) + 800 (student) = 1300 versus 900 (direct)." in text
    assert "Highest mean CSI over the lead times in this run: student (0.5368)." in text


def test_equal_means(tmp_path):
    run = _read(tmp_path, score_file(mean_csi={**MEAN_CSI, "student": MEAN_CSI["direct"]}))
    assert "The student and direct have the same mean CSI over the lead times (0.4368)" in _findings(run)


def test_baseline_with_highest_mean_csi(tmp_path):
    run = _read(tmp_path, score_file(mean_csi={**MEAN_CSI, "extrapolation": (0.9,) * 6}))
    assert "Highest mean CSI over the lead times in this run: extrapolation (0.9000)." in _findings(run)


def test_means_are_over_lead_times_defined_for_all(tmp_path):
    run = _read(
        tmp_path, score_file(mean_csi={"persistence": (0.6, 0.2), "student": (None, 0.4), "direct": (0.5, 0.3)})
    )
    scores = run.test_sets[0].scores
    assert [scores.mean_csi(name) for name in scores.names] == [0.2, 0.4, 0.3]


def test_undefined_scores_are_not_ranked(tmp_path):
    blank = {name: (None,) * 6 for name in MEAN_CSI}
    text = _findings(_read(tmp_path, score_file(mean_csi=blank, supported_thresholds=[])))
    assert "The mean CSI is undefined" in text and "No threshold has at least 1000 observed pixels" in text
    assert "cannot be compared" in text and "higher" not in text and "does not beat" in text


def test_without_persistence(tmp_path):
    run = _read(tmp_path, score_file(mean_csi={"student": MEAN_CSI["student"]}))
    assert headlines(run, run.test_sets[0].scores) == [
        "Persistence was not scored, so there is no statement about skill relative to it."
    ]


def test_run_findings_about_seed_and_losses(tmp_path):
    text = run_findings(_read(tmp_path, config={"seed": 7}))
    assert "one seed (7)" in text[0] and "do not show that one training method is better" in text[0]
    assert "losses of student and direct must not be compared" in text[1] and "forecast by the teacher" in text[1]
    assert len(text) == 2


def test_losses_of_a_student_without_pseudo_frames(tmp_path):
    text = run_findings(_read(tmp_path, config={"student": {"extension": "none"}}))
    assert "must not be compared" in text[1] and "forecast by the teacher" not in text[1]


def test_warm_start(tmp_path):
    text = run_findings(_read(tmp_path, config={"student": {"init": "teacher"}}))
    assert "The student was initialized with the weights of the teacher" in text[-1]


def test_reduced_steps_of_a_time_budget(tmp_path):
    config = {"time_budget_minutes": 9.0, "fitted_steps": {"direct": 325}}
    text = run_findings(_read(tmp_path, steps={"direct": 1300}, config=config, scores=score_file(mean_csi=MEAN_CSI)))
    assert "Training was reduced to 25 % of the configured steps to fit a time budget of 9 minutes" in text[1]


def test_run_without_student(tmp_path):
    run = _read(
        tmp_path,
        steps={"direct": 1300},
        scores=score_file(mean_csi={k: MEAN_CSI[k] for k in ("persistence", "direct")}),
    )
    assert len(run_findings(run)) == 1
    assert headlines(run, run.test_sets[0].scores)[0].startswith("The mean CSI of direct is higher")


def test_radar_dates_are_counted_once(tmp_path):
    text = _findings(_read(tmp_path, radar_file()))
    assert "The 7 events are from 2 dates (2015-05-15 and 2017-01-31)" in text
    assert "No skill is claimed beyond them." in text
    assert "simulated" not in text


def test_date_shared_with_training(tmp_path):
    text = _findings(_read(tmp_path, radar_file(dates=["2019-06-10"], train_dates=["2019-06-10"])))
    assert "from 1 date (2019-06-10)" in text and "beyond it" in text
    assert "Training data is also from 2019-06-10." in text


@pytest.mark.parametrize(
    ("dates", "message"),
    [
        ([], "dates of this data are unknown"),
        ([f"2019-06-{day:02d}" for day in range(1, 31)], "2019-06-01 to 2019-06-30"),
    ],
    ids=["none", "many"],
)
def test_unknown_and_many_dates(tmp_path, dates, message):
    assert message in _findings(_read(tmp_path, radar_file(dates=dates)))


def test_synthetic_data(tmp_path):
    text = _findings(_read(tmp_path))
    assert "do not show skill on real radar data" in text and "2019-06-02" not in text


def test_excluded_thresholds_have_counts(tmp_path):
    text = _findings(_read(tmp_path))
    assert "the same at every lead time: 16, 74, 133, 160 and 181. Excluded: 219 (87 pixels, 13 events)." in text


def test_other_time_step(tmp_path):
    run = read_results(
        write_run(
            tmp_path / "run",
            config={"evaluation": {"also": [{"name": "mch", "data": {"dataset": "mch"}}]}},
            test_sets=[radar_file("mch"), radar_file("test", step_minutes=4.0, title="MRMS tiles")],
        )
    )
    assert [test_set.scores.name for test_set in run.test_sets] == ["test", "mch"]
    text = findings(run, run.test_sets[1].scores)
    assert text[-1].startswith("Frames are 5 minutes apart here and 4 in MRMS tiles")
    assert "minutes apart" not in " ".join(findings(run, run.test_sets[0].scores))


def test_ensemble_skill_is_relative_to_the_best_single_forecast(tmp_path):
    scores = score_file(mean_csi=WITH_ENSEMBLE)
    text = _findings(_read(tmp_path, scores))
    assert (
        "The fair CRPS of diffusion (0.0210) is lower than the mean absolute error of the best single forecast, "
        "persistence (0.0321): difference −0.0100, 95 % interval [−0.0120, −0.0080], significant. The ratio of spread "
        "to error of the ensemble mean is 0.90 (ideal: 1): underdispersive."
    ) in text


def test_ensemble_that_is_not_significantly_better(tmp_path):
    scores = score_file(mean_csi=WITH_ENSEMBLE)
    for one in scores["differences"]:
        one |= {"value": 0.001, "low": -0.002, "high": 0.004}
    for protocol in scores["scores"]["diffusion"].values():
        protocol |= {"crps": 0.04, "spread_skill": 1.3}
    text = _findings(_read(tmp_path, scores))
    assert "(0.0400) is not lower" in text and "[−0.0020, 0.0040], not significant" in text
    assert "is 1.30 (ideal: 1): overdispersive" in text
    run = _read(tmp_path / "unsure", {**scores, "differences": []})
    assert "the significance was not tested" in _findings(run)


def test_findings_of_scores_do_not_mention_a_run(tmp_path):
    text = " ".join(findings_of_scores(_read(tmp_path).test_sets[0].scores))
    assert "Highest mean CSI over the lead times: teacher (0.4380)" in text and "in this run" not in text
    assert "The mean CSI of direct is higher than that of persistence at every lead time (" in text
