"""Sentences about baselines contain every comparison of the tables that a baseline wins, and no other."""

import random
import re
from html import unescape
from typing import Any

import pytest

from simcast_hpc.report.baseline_findings import (
    baseline_findings,
    bias_sentences,
    is_better,
    probability_sentences,
    whole_field_keys,
)
from simcast_hpc.report.html_report import write_report
from simcast_hpc.report.pipeline_results import METRICS_PER_THRESHOLD, ScoreFile
from simcast_hpc.report.score_tables import METRIC_TITLES, SCORE_TITLES, number, places
from tests.report.fake_run import WITH_ENSEMBLE, score_file, write_run

TWO = {"persistence": (0.5, 0.3, 0.2), "student": (0.6, 0.4, 0.3)}
POOL16 = "csi_pool16/mean"


def read(scores: dict[str, Any]) -> ScoreFile:
    return ScoreFile.model_validate(scores | {"dates": tuple(scores["dates"])}, strict=False)


def scored(changes: dict[str, dict[str, float | None]] | None = None, **more: Any) -> ScoreFile:
    """Return scores in which the student is better than persistence in everything but the ``changes`` by entry."""
    scores = score_file(mean_csi=more.pop("mean_csi", TWO), **more)
    for name, by_protocol in scores["scores"].items():
        for protocol in by_protocol:
            good = {"frequency_bias": 1.0, "far": 0.2, "pod": 0.8}
            metrics = {} if name == "persistence" else {k: v for k, v in by_protocol[protocol].items()}
            by_protocol[protocol] = dict(by_protocol[protocol]) | {
                key: good[key.split("/")[0]] for key in metrics if key.split("/")[0] in good and "/lead/" not in key
            }
            by_protocol[protocol] |= (changes or {}).get(name, {})
    return read(scores)


def test_no_sentence_if_the_model_is_better_everywhere():
    found = baseline_findings(scored())
    assert found.overall == found.thresholds == ()
    assert "in 0 of them the baseline is better" in found.count


def test_persistence_that_wins_only_at_16_pixel_pooling():
    scores = scored({"persistence": {POOL16: 0.71}, "student": {POOL16: 0.61}}, intervals={}, differences=[])
    found = baseline_findings(scores)
    assert found.overall == (
        "Mean CSI, 16 × 16 max pool: persistence (0.710) is better than student (0.610) (protocol test-global; the "
        "same result under test-lead-mean).",
    )
    assert found.thresholds == () and "in 2 of them the baseline is better" in found.count


@pytest.mark.parametrize(("low", "verdict"), [(0.05, "significant"), (-0.05, "not significant")])
def test_intervals_and_significance_of_pooled_csi(low, verdict):
    bounds = {"persistence": [0.684, 0.735], "student": [0.582, 0.638]}
    scores = scored(
        {"persistence": {POOL16: 0.71}, "student": {POOL16: 0.61}},
        intervals={name: {"test-global": {POOL16: pair}} for name, pair in bounds.items()},
        differences=[
            {"first": "persistence", "second": "student", "protocol": "test-global", "key": POOL16, "value": 0.1}
            | {"low": low, "high": 0.2}
        ],
    )
    found = baseline_findings(scores)
    assert (
        f"persistence (0.710 [0.684, 0.735]) is better than student (0.610 [0.582, 0.638]; {verdict})"
        in found.overall[0]
    )
    expected = (
        ()
        if verdict == "significant"
        else ("Mean CSI, 16 × 16 max pool: persistence − student 0.100 [−0.050, 0.200] (protocol test-global).",)
    )
    assert found.not_significant == expected


def test_persistence_that_wins_at_one_lead_time():
    found = baseline_findings(scored(mean_csi=TWO | {"student": (0.6, 0.4, 0.1)}))
    assert found.overall[0] == "Mean CSI at +15 min: persistence (0.200) is better than student (0.100)."
    assert len(found.overall) == 1
    by_lead = [one for one in found.thresholds if "single lead times" in one]
    assert by_lead[0] == ("CSI ≥ 16 at single lead times: persistence is better than student at +15 min (by 0.160).")
    assert len(by_lead) == 6, "one sentence per threshold"


def test_each_protocol_has_its_own_sentence_if_results_differ():
    scores = score_file(mean_csi=TWO, intervals={}, differences=[])
    scores["scores"]["persistence"]["test-lead-mean"] = dict(
        scores["scores"]["persistence"]["test-lead-mean"], mae=0.01
    )
    found = baseline_findings(read(scores))
    assert [one for one in found.overall if one.startswith("MAE")] == [
        "MAE: persistence (0.0100) is better than student (0.0321) (protocol test-lead-mean)."
    ]


def test_values_that_are_equal_in_print_are_not_ranked():
    scores = scored({"persistence": {"ssim": 0.8004}, "student": {"ssim": 0.8001}}, intervals={})
    assert not [one for one in baseline_findings(scores).overall if "SSIM" in one]


def test_undefined_scores_are_counted():
    found = baseline_findings(scored(mean_csi=TWO | {"student": (0.6, None, 0.3)}))
    assert "comparisons are undefined." in found.count and "None" not in " ".join((*found.overall, *found.thresholds))


@pytest.mark.parametrize(
    ("key", "first", "second"),
    [
        *[("mse", 0.1, 0.2), ("far/16", 0.1, 0.2), ("crps", 0.1, 0.2), ("csi/mean", 0.2, 0.1), ("pod/16", 0.2, 0.1)],
        *[("frequency_bias/16", 0.9, 1.2), ("frequency_bias/16", 1.1, 0.5), ("frequency_bias/16", 2.0, 0.0)],
    ],
)
def test_direction_of_scores(key, first, second):
    assert is_better(key, first, second) and not is_better(key, second, first)


def test_files_without_baseline():
    found = baseline_findings(read(score_file(mean_csi={"student": TWO["student"]})))
    assert found.count == "No baseline was scored, so there is no comparison of models with baselines."


def test_frequency_bias_of_every_forecast():
    text = bias_sentences(scored({"student": {"frequency_bias/16": 1.2, "frequency_bias/74": 0.5}}))
    assert text[1].startswith(
        "student: under-forecast at ≥ 74 (0.500); over-forecast at ≥ 16 (1.200); within 5 % of 1 at "
    )


def test_probabilistic_scores_of_an_ensemble():
    scores = score_file(mean_csi=WITH_ENSEMBLE, differences=[])
    for protocol in scores["scores"]["student"]:
        scores["scores"]["student"][protocol] = dict(scores["scores"]["student"][protocol], crps=0.02)
        scores["scores"]["diffusion"][protocol] |= {"brier/16": 0.031, "roc_area/16": 0.912}
    text = " ".join(probability_sentences(read(scores), "diffusion"))
    assert "(0.0210) is lower than the CRPS (mean absolute error of a single forecast) of persistence (0.0321)" in text
    assert "is not lower than the CRPS (mean absolute error of a single forecast) of student (0.0200)." in text
    assert "Brier score of diffusion (0 is perfect): 0.031 at ≥ 16." in text
    assert "ROC curve of diffusion (1 is perfect, 0.5 no skill): 0.912 at ≥ 16." in text


def random_scores(seed: int) -> ScoreFile:
    """Return random scores of two baselines and two models under two protocols, some undefined."""
    chance = random.Random(seed)
    names = ("persistence", "extrapolation", "student", "direct")
    scores = score_file(mean_csi={name: [round(chance.random(), 2) for _ in range(3)] for name in names})
    for name in names:
        for protocol, by_key in scores["scores"][name].items():
            keys = [*SCORE_TITLES, *(key for key in by_key if key not in SCORE_TITLES)]
            scores["scores"][name][protocol] = {
                key: None if chance.random() < 0.05 else round(chance.uniform(0.1, 1.5), 2) for key in keys
            }
    return read(scores | {"intervals": {}, "differences": []})


@pytest.mark.parametrize("seed", range(5))
def test_every_comparison_of_the_tables_is_in_the_text_and_no_other(seed):
    scores = random_scores(seed)
    found = baseline_findings(scores)
    baselines, models = ("persistence", "extrapolation"), ("student", "direct")
    for protocol in scores.protocols:
        titled = {key: SCORE_TITLES[key] for key in whole_field_keys(scores, protocol)}
        labels = scores.protocols[protocol].labels
        titled |= {
            f"{one}/{label}": f"{METRIC_TITLES[one]} ≥ {label}" for one in METRICS_PER_THRESHOLD for label in labels
        }
        for key, title in titled.items():
            for baseline in baselines:
                values = {name: scores.scores[name][protocol][key] for name in (baseline, *models)}
                worse = [
                    name
                    for name in models
                    if None not in (values[baseline], values[name])
                    and is_better(key, *(round(values[one], places(key)) for one in (baseline, name)))
                ]
                heard = [
                    one
                    for one in (*found.overall, *found.thresholds)
                    if one.startswith(f"{title}: {baseline} (") and protocol in one
                ]
                said = [name for name in models if any(f"{name} (" in one for one in heard)]
                assert said == worse, (key, protocol, baseline)
                if heard and f"(protocol {protocol}" in heard[0]:
                    assert f"{baseline} ({number(values[baseline], places=places(key))})" in heard[0]


def test_report_contains_all_comparisons(tmp_path):
    scores = score_file(mean_csi=WITH_ENSEMBLE | {"student": (0.6, 0.4, 0.3, 0.3, 0.3, 0.1)})
    page = write_report(write_run(tmp_path / "run", test_sets=[scores])).read_text(encoding="utf-8")
    words = unescape(re.sub(r"<[^>]+>", "", page)).replace("\u00a0", " ")
    read_scores = read(scores)
    found = baseline_findings(read_scores)
    assert found.overall and found.thresholds
    for sentence in (found.count, *found.overall, *found.thresholds, *bias_sentences(read_scores)):
        assert sentence in words


def test_crps_and_bias_at_single_lead_times():
    scores = score_file(mean_csi=WITH_ENSEMBLE)
    for by_key in scores["scores"]["student"].values():
        by_key |= {"frequency_bias/219/lead/1": 0.5, "frequency_bias/16/lead/1": 0.5}
    found = baseline_findings(read(scores))
    assert (
        "CRPS at single lead times: persistence is better than diffusion at +5 and +10 min (by up to 0.0071)."
        in found.overall
    )
    assert (
        "Frequency bias ≥ 219 at single lead times: persistence is better than student at +5 min." in found.thresholds
    )
    assert not [one for one in found.thresholds if one.startswith("Frequency bias ≥ 16 at")], "no such chart"
