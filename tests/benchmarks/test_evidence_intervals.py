"""Intervals of the evidence page: scores equal those of verification; coverage on studies with a known truth."""

import numpy as np
import pytest
import torch

from benchmarks.evidence.block_sums import Sums, protocol_of, sums_of, to_codes
from benchmarks.evidence.intervals import Bootstrap
from benchmarks.evidence.study import STUDY, read_study
from benchmarks.evidence.unit_results import Evidence, Result, load_evidence
from simcast_hpc.verification import count, scores
from tests.benchmarks.fake_evidence import RECORD, write_results

FEW_BLOCKS = (
    "archive.events={train: 8, val: 8, test: 48}",
    "few_events=[4, 8]",
)


def _fields(seed, study, windows=8):
    random = torch.Generator().manual_seed(seed)
    shape = (windows, study.sequence.frames_out, 16, 16)
    smooth = torch.nn.functional.avg_pool3d(torch.rand(shape, generator=random)[None], 3, 1, 1)[0]
    return to_codes((smooth - 0.25) * 4), to_codes((smooth - 0.25) * 4 + 0.1 * torch.randn(shape, generator=random))


def test_scores_equal_those_of_verification():
    study = read_study()
    observed, forecast = _fields(0, study)
    one = Sums(*(np.stack([array, array]) for array in sums_of(observed, forecast, study)))
    evidence = Evidence(study, {"direct": {0: Result(one, RECORD)}})
    bootstrap = Bootstrap(evidence, draws=4)
    expected = scores(count(observed, forecast, protocol=protocol_of(study)), per_lead=True)
    expected |= {key.replace("fss/48/", "fss/"): value for key, value in expected.items()}
    for score in ("csi/mean", "csi/219", "pod/181", "far/16", "frequency_bias/133", "fss/160", "mae", "mse"):
        assert bootstrap.one((("direct", 1.0),), score).value == pytest.approx(expected[score], rel=1e-6)
        leads = bootstrap.score((("direct", 1.0),), score, by_lead=True)
        assert [lead.value for lead in leads] == pytest.approx(
            [expected[f"{score}/lead/{k}"] for k in range(1, len(leads) + 1)], rel=1e-6
        )


def test_jump_is_the_difference_of_the_bias():
    study = read_study()
    observed, forecast = _fields(2, study)
    sums = Sums(*(array[None] for array in sums_of(observed, forecast, study)))
    bootstrap = Bootstrap(Evidence(study, {"direct": {0: Result(sums, RECORD)}}), draws=4)
    bias = [lead.value for lead in bootstrap.score((("direct", 1.0),), "frequency_bias/133", by_lead=True)]
    assert bootstrap.one((("direct", 1.0),), "jump/133/3").value == pytest.approx(bias[3] - bias[2])


def test_rounds_forecasts_without_missing_values():
    made = to_codes(torch.tensor([-0.2, 0.0, 218.4 / 255, 218.6 / 255, 1.0, 7.0]))
    assert made.tolist() == [0, 0, 218, 219, 254, 254]


def test_coverage_of_intervals():
    """MAE is linear in the sums: seeds and blocks of known spread give a known truth."""
    study = read_study()
    random, covered, studies = np.random.default_rng(3), 0, 300
    zeros = np.zeros((24, 6, 6), np.int64)
    for _ in range(studies):
        blocks = random.normal(0, 300, (24, 1))
        found = {}
        for seed in range(5):
            error = 100_000 + random.normal(0, 400) + blocks + random.normal(0, 300, (24, 1))
            sums = Sums(
                zeros, zeros, zeros, zeros, zeros, zeros, error.astype(np.int64), zeros[:, 0], np.full((24, 1), 1000)
            )
            found[seed] = Result(sums, RECORD)
        interval = Bootstrap(Evidence(study, {"direct": found}), draws=200).one((("direct", 1.0),), "mae")
        covered += interval.low <= 100 / 255 <= interval.high
    # 95 % of 300 is 285, standard error 3.8; too wide would be as wrong as too narrow
    assert 274 <= covered <= 298


def test_differences_are_paired_in_seeds_and_events(tmp_path):
    study = read_study(STUDY, FEW_BLOCKS)
    write_results(tmp_path, study, seeds=4)
    evidence = load_evidence(tmp_path)
    bootstrap = Bootstrap(evidence, draws=300)
    alone = bootstrap.one((("direct", 1.0),), "csi/mean")
    none = bootstrap.one((("direct", 1.0), ("direct", -1.0)), "csi/mean")
    assert none.value == none.low == none.high == 0.0
    copy = Evidence(study, {**evidence.by_arm, "crop": evidence.by_arm["direct"]})
    between = Bootstrap(copy, draws=300).one((("crop", 1.0), ("direct", -1.0)), "csi/mean")
    assert between.half_width == 0.0 < alone.half_width


def test_no_interval_for_one_seed_or_an_undefined_score(tmp_path):
    study = read_study(STUDY, FEW_BLOCKS)
    write_results(tmp_path, study, seeds=1)
    evidence = load_evidence(tmp_path)
    assert not Bootstrap(evidence, draws=20).one((("direct", 1.0),), "csi/mean").has_bounds
    write_results(tmp_path, study, seeds=3)
    evidence = load_evidence(tmp_path)
    result = evidence.by_arm["direct"][1]
    never = result.sums._replace(hits=result.sums.hits * 0, forecast=result.sums.forecast * 0)
    evidence.by_arm["direct"][1] = Result(never, result.record)
    bootstrap = Bootstrap(evidence, draws=20)
    assert not bootstrap.one((("direct", 1.0),), "far/219").has_bounds
    assert bootstrap.one((("direct", 1.0),), "pod/219").has_bounds
