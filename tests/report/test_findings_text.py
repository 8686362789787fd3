"""What the page says follows the numbers: turned scores turn the sentences."""

from pathlib import Path

import pytest

from simcast_hpc.report.findings_text import against_persistence, claims, claims_of_scores, general_claims, headlines
from simcast_hpc.report.pipeline_results import RunResults, read_results
from tests.report.fake_run import MEAN_CSI, STEPS, WITH_ENSEMBLE, radar_file, score_file, write_run


def _read(tmp_path: Path, scores: dict | None = None, **options) -> RunResults:
    return read_results(write_run(tmp_path / "run", test_sets=None if scores is None else [scores], **options))


def _said(run: RunResults) -> str:
    return " ".join(claims(run, run.test_sets[0].scores))


def test_student_above_persistence_beyond_the_first_lead(tmp_path):
    said = headlines(run := _read(tmp_path), run.test_sets[0].scores)
    assert said == [
        "The student's mean CSI is above persistence's at every lead time beyond the first (leads 2 to 6; 0.269 "
        "against 0.227 at 30 minutes). At the first it is below persistence (0.614 against 0.658)."
    ]


@pytest.mark.parametrize("at_lead_3", [0.361, 0.362], ids=["below", "equal"])
def test_student_not_above_persistence_at_lead_3(tmp_path, at_lead_3):
    student = (0.7, 0.573, at_lead_3, 0.373, 0.318, 0.269)
    said = _said(_read(tmp_path, score_file(mean_csi={**MEAN_CSI, "student": student})))
    assert "student does not beat persistence at every lead time beyond the first" in said
    assert f"at lead 3 (15 minutes: {at_lead_3} against 0.362)." in said
    assert "At the first it is above persistence (0.700 against 0.658)" in said
    assert "is above persistence's at every lead" not in said


def test_an_undefined_lead_is_no_victory(tmp_path):
    student = (0.7, 0.573, None, 0.373, 0.318, 0.269)
    run = _read(tmp_path, score_file(mean_csi={**MEAN_CSI, "student": student}))
    said = against_persistence(run.test_sets[0].scores, "student")
    assert "does not beat" in said and "At lead 3 there is no mean CSI to compare." in said


def test_one_lead_only_claims_nothing_beyond_it(tmp_path):
    run = _read(tmp_path, score_file(mean_csi={name: leads[:1] for name, leads in MEAN_CSI.items()}))
    said = against_persistence(run.test_sets[0].scores, "student")
    assert said == "At the first it is below persistence (0.614 against 0.658)."


def test_direct_ahead_of_student(tmp_path):
    said = _said(_read(tmp_path))
    assert "The direct model has a higher mean CSI over the lead times than the student model" in said
    assert "0.4368 against 0.4347, a difference of 0.0021." in said
    assert "One seed is no evidence" in said
    assert "Both had 1300 optimizer steps in all: 500 (teacher) + 800 (student) against 1300 (direct)." in said


def test_student_ahead_of_direct_is_still_no_evidence(tmp_path):
    student = tuple(value + 0.1 for value in MEAN_CSI["direct"])
    steps = {**STEPS, "direct": 900}
    said = _said(_read(tmp_path, score_file(mean_csi={**MEAN_CSI, "student": student}), steps=steps))
    assert "The student model has a higher mean CSI over the lead times than the direct model" in said
    assert "0.5368 against 0.4368, a difference of 0.1000. One seed is no evidence, so this does not show" in said
    assert "Their optimizer steps differ: 500 (teacher) + 800 (student) = 1300 against 900 (direct)." in said
    assert "Highest mean CSI over the lead times in this run: student (0.5368)." in said


def test_equal_means_have_no_winner(tmp_path):
    run = _read(tmp_path, score_file(mean_csi={**MEAN_CSI, "student": MEAN_CSI["direct"]}))
    assert "The student and direct have the same mean CSI over the lead times (0.4368)" in _said(run)


def test_a_baseline_may_be_the_best(tmp_path):
    run = _read(tmp_path, score_file(mean_csi={**MEAN_CSI, "extrapolation": (0.9,) * 6}))
    assert "Highest mean CSI over the lead times in this run: extrapolation (0.9000)." in _said(run)


def test_means_are_over_the_leads_that_all_have(tmp_path):
    run = _read(
        tmp_path, score_file(mean_csi={"persistence": (0.6, 0.2), "student": (None, 0.4), "direct": (0.5, 0.3)})
    )
    scores = run.test_sets[0].scores
    assert [scores.mean_csi(name) for name in scores.names] == [0.2, 0.4, 0.3]


def test_nothing_defined_ranks_nothing(tmp_path):
    blank = {name: (None,) * 6 for name in MEAN_CSI}
    said = _said(_read(tmp_path, score_file(mean_csi=blank, supported_thresholds=[])))
    assert "No mean CSI is defined" in said and "No threshold has at least 1000 observed pixels" in said
    assert "cannot be compared" in said and "higher" not in said and "does not beat" in said


def test_without_persistence_no_skill_is_claimed(tmp_path):
    run = _read(tmp_path, score_file(mean_csi={"student": MEAN_CSI["student"]}))
    assert headlines(run, run.test_sets[0].scores) == [
        "Persistence was not scored here, so nothing is said about skill beyond it."
    ]


def test_losses_must_not_be_compared_and_the_seed_is_one(tmp_path):
    said = general_claims(_read(tmp_path, config={"seed": 7}))
    assert "one seed (7)" in said[0] and "no evidence" in said[0]
    assert "losses of student and direct must not be compared" in said[1] and "teacher forecast" in said[1]
    assert len(said) == 2


def test_losses_of_a_student_without_pseudo_frames(tmp_path):
    said = general_claims(_read(tmp_path, config={"student": {"extension": "none"}}))
    assert "must not be compared" in said[1] and "teacher forecast" not in said[1]


def test_a_warm_start_is_said(tmp_path):
    said = general_claims(_read(tmp_path, config={"student": {"init": "teacher"}}))
    assert "The student began from the teacher's weights" in said[-1]


def test_training_that_a_budget_cut_short_is_said(tmp_path):
    config = {"time_budget_minutes": 9.0, "fitted_steps": {"direct": 325}}
    said = general_claims(_read(tmp_path, steps={"direct": 1300}, config=config, scores=score_file(mean_csi=MEAN_CSI)))
    assert "Training was cut to 25 % of the steps asked for, to fit 9 minutes" in said[1]


def test_without_a_student_the_losses_sentence_is_absent(tmp_path):
    run = _read(
        tmp_path,
        steps={"direct": 1300},
        scores=score_file(mean_csi={k: MEAN_CSI[k] for k in ("persistence", "direct")}),
    )
    assert len(general_claims(run)) == 1
    assert headlines(run, run.test_sets[0].scores)[0].startswith("The direct's mean CSI is above")


def test_radar_counts_dates_once_and_claims_nothing_beyond(tmp_path):
    said = _said(_read(tmp_path, radar_file()))
    assert "The 7 events come from 2 dates (2015-05-15 and 2017-01-31)" in said
    assert "No skill is claimed beyond them." in said
    assert "simulated" not in said


def test_a_date_shared_with_training_is_said(tmp_path):
    said = _said(_read(tmp_path, radar_file(dates=["2019-06-10"], train_dates=["2019-06-10"])))
    assert "from 1 date (2019-06-10)" in said and "beyond it" in said
    assert "Training data also comes from 2019-06-10." in said


@pytest.mark.parametrize(
    ("dates", "says"),
    [
        ([], "dates of this data are unknown"),
        ([f"2019-06-{day:02d}" for day in range(1, 31)], "2019-06-01 to 2019-06-30"),
    ],
    ids=["none", "many"],
)
def test_unknown_and_many_dates(tmp_path, dates, says):
    assert says in _said(_read(tmp_path, radar_file(dates=dates)))


def test_simulated_storms_say_nothing_about_real_radar(tmp_path):
    said = _said(_read(tmp_path))
    assert "nothing about skill on real radar" in said and "2019-06-02" not in said


def test_rare_thresholds_are_named_with_their_counts(tmp_path):
    said = _said(_read(tmp_path))
    assert "the same ones at every lead time: 16, 74, 133, 160 and 181. Left out: 219 (87 pixels, 13 events)." in said


def test_another_cadence_is_said(tmp_path):
    run = read_results(
        write_run(
            tmp_path / "run",
            config={"evaluation": {"also": [{"name": "mch", "data": {"dataset": "mch"}}]}},
            test_sets=[radar_file("mch"), radar_file("test", step_minutes=4.0, title="MRMS tiles")],
        )
    )
    assert [test_set.scores.name for test_set in run.test_sets] == ["test", "mch"]
    said = claims(run, run.test_sets[1].scores)
    assert said[-1].startswith("Frames are 5 minutes apart here and 4 in MRMS tiles")
    assert "minutes apart" not in " ".join(claims(run, run.test_sets[0].scores))


def test_an_ensemble_is_held_against_the_best_single_forecast(tmp_path):
    scores = score_file(mean_csi=WITH_ENSEMBLE)
    said = _said(_read(tmp_path, scores))
    assert (
        "The fair CRPS of diffusion (0.0210) is below the mean absolute error of the best single forecast, "
        "persistence (0.0321): a difference of −0.0100 [−0.0120, −0.0080] over 95 % of resamples of events. The "
        "spread of its members is 0.90 of the error of their mean, where 1 is right: too alike."
    ) in said


def test_an_ensemble_that_is_no_better_or_not_surely_so_is_told(tmp_path):
    scores = score_file(mean_csi=WITH_ENSEMBLE)
    for one in scores["differences"]:
        one |= {"value": 0.001, "low": -0.002, "high": 0.004}
    for protocol in scores["scores"]["diffusion"].values():
        protocol |= {"crps": 0.04, "spread_skill": 1.3}
    said = _said(_read(tmp_path, scores))
    assert (
        "(0.0400) is not below" in said
        and "[−0.0020, 0.0040] over 95 % of resamples of events, which includes 0" in said
    )
    assert "1.30 of the error of their mean, where 1 is right: too far apart" in said
    run = _read(tmp_path / "unsure", {**scores, "differences": []})
    assert "how sure that is was not resampled" in _said(run)


def test_what_is_said_of_scores_alone_names_no_run(tmp_path):
    said = " ".join(claims_of_scores(_read(tmp_path).test_sets[0].scores))
    assert "Highest mean CSI over the lead times: teacher (0.4380)" in said and "in this run" not in said
    assert "The direct's mean CSI is above persistence's at every lead time beyond the first" in said
