"""The evidence page: verdicts from intervals; text and figures from packed results."""

import re

import pytest

from benchmarks.evidence import evidence_page as page
from benchmarks.evidence import figure_style
from benchmarks.evidence.arms import arms_of
from benchmarks.evidence.claims import (
    HOLDS,
    IN_FULL,
    NOT_TESTABLE,
    PARTLY,
    REVERSED,
    UNDECIDED,
    decide,
    in_words,
    verdict_of,
    verdict_of_all,
)
from benchmarks.evidence.claims_figure import MOST_ROWS
from benchmarks.evidence.intervals import Bootstrap
from benchmarks.evidence.study import STUDY, read_study
from benchmarks.evidence.study_claims import STATED_LATER, arms_in_claims, claims_of, in_steps
from benchmarks.evidence.summary_text import HEADLINES, NOT_MEASURED, summary
from benchmarks.evidence.unit_results import RESULTS, load_evidence
from simcast_hpc.verification import Interval
from tests.benchmarks.fake_evidence import write_results

FEW_BLOCKS = ("archive.events={train: 8, val: 8, test: 48}", "few_events=[4, 8]")
LARGE_PNG = 250_000
ADDED = "(after as many steps of its teacher)"


@pytest.fixture
def study():
    return read_study(STUDY, FEW_BLOCKS)


def verdicts_of(folder, study, **results):
    write_results(folder, study, **results)
    found = decide(claims_of(study), Bootstrap(load_evidence(folder), draws=300))
    return {verdict.claim.key: verdict for verdict in found}


@pytest.mark.parametrize(
    ("low", "high", "seeds", "sign", "verdict"),
    [
        (0.01, 0.03, 5, 1, HOLDS),
        (0.01, 0.03, 5, -1, REVERSED),
        (-0.03, -0.01, 5, 1, REVERSED),
        (-0.03, -0.01, 5, -1, HOLDS),
        (-0.01, 0.03, 5, 1, UNDECIDED),
        (0.01, 0.03, 2, 1, UNDECIDED),
        (float("nan"), float("nan"), 5, 1, UNDECIDED),
    ],
)
def test_verdict_follows_from_the_interval(low, high, seeds, sign, verdict):
    assert verdict_of(Interval((low + high) / 2, low, high, seeds=seeds), sign) == verdict


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        ([HOLDS, HOLDS], HOLDS),
        ([HOLDS, UNDECIDED], PARTLY),
        ([UNDECIDED, UNDECIDED], UNDECIDED),
        ([HOLDS, REVERSED], IN_FULL),
        ([UNDECIDED, REVERSED], IN_FULL),
        ([REVERSED, REVERSED], REVERSED),
    ],
)
def test_claim_is_supported_if_all_comparisons_are(parts, whole):
    assert verdict_of_all(parts) == whole


def test_supports_true_claims(tmp_path, study):
    half, middle, short = sorted(study.horizons, reverse=True)
    skill = {
        "direct-w1": -0.06, "direct-w3": -0.03, "direct-w30": 0.03, f"teacher-{half}": 0.06, f"student-{half}": 0.1,
        f"teacher-{middle}": 0.03, f"student-{middle}": 0.09, f"teacher-{short}": 0.0, f"student-{short}": 0.08,
        "future-oracle": 0.1,
    }  # fmt: skip
    found = verdicts_of(tmp_path, study, seeds=5, skill=skill, noise=0.002)
    for key in (
        "weighting",
        "monotone",
        "autoregression",
        "horizon",
        "distillation",
        "short-horizon",
        "robustness",
        "simcast",
    ):
        assert found[key].verdict == HOLDS, key


def test_contradicts_false_claims(tmp_path, study):
    half = study.half_horizon
    skill = {"direct-w1": 0.06, f"teacher-{half}": -0.06, f"student-{half}": -0.1, "future-oracle": 0.1}
    found = verdicts_of(tmp_path, study, seeds=5, skill=skill, noise=0.002)
    for key in ("weighting", "autoregression", "distillation", "simcast", "compute", "crop"):
        assert found[key].verdict == REVERSED, key


def test_claims_on_distillation_are_not_testable_if_the_oracle_is_undecided(tmp_path, study):
    """Without a gain by a perfect teacher no gain is expected; intervals and other claims keep their verdicts."""
    skill = {"direct-w1": -0.06, f"teacher-{study.half_horizon}": 0.06, "oracle-n4": 0.1, "student-n8": 0.1}
    found = verdicts_of(tmp_path, study, seeds=5, skill=skill, noise=0.002)
    assert found["distillation"].verdict == NOT_TESTABLE
    assert found["distillation"].by_intervals == REVERSED
    (finding,) = found["distillation"].findings
    assert finding.interval.high < 0 and finding.verdict == REVERSED and not finding.testable
    assert in_words(finding) == f"{REVERSED}; {NOT_TESTABLE}"
    assert found["weighting"].verdict == found["autoregression"].verdict == HOLDS
    assert found["few-student-4"].verdict == UNDECIDED
    assert (found["few-student-8"].verdict, found["few-student-8"].by_intervals) == (NOT_TESTABLE, HOLDS)
    untested = {claim.key for claim in claims_of(study) if claim.oracle is not None}
    assert {key for key, verdict in found.items() if verdict.verdict == NOT_TESTABLE} <= untested
    write_results(tmp_path / "without", study, seeds=5, skill=skill, noise=0.002, without=("future-oracle",))
    (distillation,) = [claim for claim in claims_of(study) if claim.key == "distillation"]
    (verdict,) = decide((distillation,), Bootstrap(load_evidence(tmp_path / "without"), draws=300))
    assert verdict.verdict == REVERSED  # without the control the comparison decides


def test_every_gain_of_distillation_from_scratch_has_an_oracle(study):
    """The rule of the verdict "not testable here" does not depend on who wrote a claim."""
    arms = {arm.name: arm for arm in arms_of(study)}
    scratch = {arm.name for arm in arms.values() if arm.extension == "teacher" and not arm.warm_start}
    for claim in claims_of(study):
        for comparison in claim.comparisons:
            gain = next(arm for arm, _ in comparison.terms) in scratch and comparison.score in ("csi/mean", "mse")
            trained = all(arm in arms for arm, _ in comparison.terms)
            assert not (gain and trained) or claim.oracle is not None, claim.key
        if claim.oracle is not None:
            assert {comparison.score for comparison in claim.comparisons} == {claim.oracle.score}, claim.key


def test_noise_is_undecided(tmp_path, study):
    found = verdicts_of(tmp_path, study, seeds=5, noise=0.03)
    assert found["distillation"].verdict == NOT_TESTABLE
    kinds = [finding.verdict for verdict in found.values() for finding in verdict.findings]
    assert kinds.count(UNDECIDED) >= 0.8 * len(kinds)


def test_two_seeds_are_undecided(tmp_path, study):
    found = verdicts_of(tmp_path, study, seeds=2, skill={"direct-w1": -0.2}, noise=0.001)
    assert {verdict.verdict for verdict in found.values()} == {UNDECIDED, NOT_TESTABLE}


def test_writes_the_page_from_results(tmp_path, study, capsys, monkeypatch):
    half = study.half_horizon
    monkeypatch.setattr(figure_style, "DPI", 40)  # rendering takes most of the time
    write_results(
        tmp_path / "results",
        study,
        seeds=3,
        skill={f"student-{half}": 0.1, "future-oracle": 0.1},
        without=("teacher-4x", "student-of-4x"),
    )
    made = tmp_path / "evidence.md"
    assert page.main(["--results", str(tmp_path / "results"), "--page", str(made)]) == 0
    assert f"simcast: {HOLDS}" in capsys.readouterr().out
    text = made.read_text(encoding="utf-8")
    assert "3 seeds per arm" in text and f"*{HOLDS}*" in text and "frames_out: 6" in text
    assert "converged" not in [line.split("**")[1] for line in text.splitlines() if line.startswith("| **")]
    pictures = re.findall(r"!\[(.*?)\]\((.*?)\)", text)
    assert len(pictures) == 17 and all(len(alt) > 20 for alt, _ in pictures)
    assert {path.name for path in (tmp_path / "evidence").iterdir()} == {name.split("/")[1] for _, name in pictures}
    for _, picture in pictures:
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG"), picture
    first = made.read_bytes()
    figures = {path.stem: path for path in (tmp_path / "evidence").iterdir()}
    monkeypatch.setattr(page, "draw_all", lambda *_: figures)  # drawing is nine tenths of the time
    page.main(["--results", str(tmp_path / "results"), "--page", str(made)])
    assert made.read_bytes() == first


def test_summary_has_five_sentences_with_the_verdicts_of_the_results(tmp_path, study):
    """Words follow from the intervals: a student with the skill of its steps, or another; a warm start that keeps."""
    half = study.half_horizon
    equal = {"student-warm": 0.0, f"teacher-{half}": 0.06, "extrapolation": 0.1}
    other = {f"student-{half}": 0.1, "student-warm": 0.2, "future-oracle": 0.1, "student-warm-n4": 0.2}

    def made(name, **settings):
        write_results(tmp_path / name, study, seeds=5, noise=0.002, **settings)
        evidence = load_evidence(tmp_path / name)
        bootstrap = Bootstrap(evidence, draws=300)
        return summary(evidence, bootstrap, decide(claims_of(study), bootstrap))

    sentences = made("equal", skill=equal)
    assert len(sentences) == 5 and all(sentence.count(". ") <= 3 for sentence in sentences)
    same = "does not differ significantly in CSI-M from"
    assert f"A student from scratch {same} a direct model, 600 steps each" in sentences[3]
    assert "A perfect teacher gives no significant gain (" in sentences[3] and "not testable here" in sentences[3]
    assert "in one pass, has a lower CSI-M than this teacher" in sentences[2] and "is excluded" not in sentences[2]
    assert "none has a higher CSI-M than extrapolation" in sentences[0]
    sentences = made("other", skill=other)
    assert "A student from scratch has a higher CSI-M than a direct model" in sentences[3]
    assert "A perfect teacher gives a significant gain (" in sentences[3]
    assert "has a higher CSI-M than this teacher" in sentences[2]
    assert f"with warm start {ADDED} has a higher CSI-M than the direct model with 4 events" in sentences[4]
    assert f"from scratch {same} the direct model (4 events: " in sentences[4]
    assert NOT_MEASURED in made("part", without=("student-3",))[3]


def test_claims_have_numbers_of_steps():
    """Multiples of the study's steps are names of arms, not words of a claim."""
    assert in_steps("4x student of the 16x teacher minus direct with 5x steps", 600) == (
        "2400-step student of the 9600-step teacher minus direct with 3000 steps"
    )
    assert in_steps("MSE x 1000, student-4x", 600) == "MSE x 1000, student-4x"


def test_summary_states_too_few_seeds(tmp_path, study):
    """A large difference in two seeds has a value and no verdict."""
    write_results(tmp_path, study, seeds=2, skill={"direct-16x": 0.2, "extrapolation": 0.1}, noise=0.001)
    evidence = load_evidence(tmp_path)
    bootstrap = Bootstrap(evidence, draws=100)
    verdicts = decide(claims_of(study), bootstrap)
    assert "the direct model with unknown significance (+0.1" in summary(evidence, bootstrap, verdicts)[0]


def test_committed_page_has_the_committed_results():
    """Five sentences and a table of at most eight columns come first; figures have few rows."""
    text = page.PAGE.read_text(encoding="utf-8")
    bootstrap = Bootstrap(load_evidence(RESULTS), draws=2)
    verdicts = decide(claims_of(bootstrap.evidence.study), bootstrap)
    for finding in (finding for verdict in verdicts for finding in verdict.findings):
        assert f"| {finding.comparison.label} (" in text
        assert f"{finding.interval.value:+.4f}" in text
    head = text[text.index("| claim | comparison |") : text.index("\n## ")].partition("\n\n")[0]
    assert not re.search(r"\b\d+x\b|oracle|direct(?! model)", head), "numbers of steps and terms of the first paragraph"
    order = [
        text.index(part)
        for part in (
            "- **Extrapolation without training beats most networks.**",
            "| claim | comparison |",
            "](evidence/summary.png)",
            "\n## ",
        )
    ]
    assert order == sorted(order)
    assert max(line.count(" | ") for line in text.splitlines() if line.startswith("|")) <= 7
    assert "T's" not in text and " less " not in text
    rows = [finding for verdict in verdicts if verdict.claim.origin == "paper" for finding in verdict.findings]
    assert sum(finding.comparison.score == "csi/mean" for finding in rows) <= MOST_ROWS
    assert len(HEADLINES) <= MOST_ROWS
    sizes = {path.name: path.stat().st_size for path in page.PAGE.with_suffix("").glob("*.png")}
    assert len(sizes) >= 17 and max(sizes.values()) < LARGE_PNG, sizes


def test_score_of_one_lead_time(tmp_path, study):
    write_results(tmp_path, study, seeds=3)
    bootstrap = Bootstrap(load_evidence(tmp_path), draws=20)
    terms = (("direct", 1.0), ("persistence", -1.0))
    assert bootstrap.one(terms, "lead/2/csi/mean") == bootstrap.score(terms, "csi/mean", by_lead=True)[1]


def test_rejects_missing_results(tmp_path, capsys):
    assert page.main(["--results", str(tmp_path)]) == 2
    assert "contains no results" in capsys.readouterr().err
    (tmp_path / "seed0.npz").write_bytes(b"no archive")
    assert page.main(["--results", str(tmp_path)]) == 2
    assert "seed0.npz is not a packed result" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["study.yaml", "study-96.yaml"])
def test_every_arm_is_part_of_a_claim(name):
    study = read_study(STUDY.with_name(name))
    assert arms_in_claims(study) == {arm.name for arm in arms_of(study)}
    assert set(STATED_LATER) <= {claim.key for claim in claims_of(study)}
