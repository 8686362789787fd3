"""Sentences on every score of the tables: where a baseline is better, differences that are not significant, bias.

Scores are compared as they are printed, so that no sentence contradicts a table: two scores that are equal in print are
neither better nor worse.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from simcast_hpc.verification.scores import is_higher_better

from .additional_scores import additional_keys
from .findings_text import join, with_unit
from .pipeline_results import METRICS_PER_THRESHOLD, ScoreFile
from .score_tables import METRIC_TITLES, SCORE_TITLES, bounded, number, places

HIGHEST = 2  # thresholds that the section on heavy rain shows
_UNBIASED = 0.05  # deviation of the frequency bias from 1 up to which it is called unbiased
# Keys that differences between two forecasts are stated for; those of single thresholds have intervals in the tables.
_TESTED = (*SCORE_TITLES, "crps")


@dataclass(frozen=True)
class BaselineFindings:
    """Comparisons of models with baselines, and of all forecasts among each other.

    Attributes:
        count: one sentence: how many comparisons the tables and charts hold, and how many a baseline wins.
        overall: one sentence per score of the whole field (over all lead times, and mean CSI at each lead time) in
            which a baseline is better than a model.
        thresholds: the same per threshold: CSI, POD, FAR and frequency bias; CSI at each lead time, and frequency bias
            at each lead time for the highest thresholds.
        not_significant: one sentence per score with differences whose 95 % interval contains 0.
    """

    count: str
    overall: tuple[str, ...]
    thresholds: tuple[str, ...]
    not_significant: tuple[str, ...]


@dataclass(frozen=True)
class _Comparison:
    """One score of one baseline and the models that are worse: printed values by name."""

    title: str
    protocol: str
    baseline: str
    value: str
    worse: tuple[tuple[str, str], ...]


class _Counter:
    """Counts of compared, won and undefined pairs of a model and a baseline."""

    def __init__(self) -> None:
        self.compared = self.won = self.undefined = 0


def baseline_findings(scores: ScoreFile) -> BaselineFindings:
    """Return all comparisons of models with baselines, from the scores of the tables and of the charts of CSI."""
    counter = _Counter()
    overall = _overall(scores, counter)
    thresholds = _thresholds(scores, counter)
    return BaselineFindings(_count(scores, counter), overall, thresholds, _not_significant(scores))


def is_better(key: str, first: float, second: float) -> bool:
    """Return whether the first of two printed values of a score is better.

    A frequency bias is better if its logarithm is closer to 0, so 0.5 and 2 are equally good; a mean error if it is
    closer to 0.
    """
    if key.startswith("frequency_bias"):
        distances = [abs(math.log(value)) if value > 0 else math.inf for value in (first, second)]
        return distances[0] < distances[1] - 1e-12
    if key.startswith("mean_error"):
        return abs(first) < abs(second)
    return first < second if is_higher_better(key) is False else first > second


def whole_field_keys(scores: ScoreFile, protocol: str) -> list[str]:
    """Return the keys of the scores over all lead times and thresholds that the tables contain."""
    keys = [
        key for key in SCORE_TITLES if any(scores.scores[name][protocol].get(key) is not None for name in scores.names)
    ]
    keys += [key for key in additional_keys(scores, protocol) if key not in keys]
    return [*keys, "crps"] if scores.ensembles and protocol == scores.pooled_protocol else keys


def bias_sentences(scores: ScoreFile) -> list[str]:
    """Return for each forecast the thresholds that it forecasts too often or too rarely, under the pooled protocol."""
    protocol, sentences = scores.pooled_protocol, []
    for name in scores.names:
        groups: dict[str, list[str]] = {"under-forecast": [], "over-forecast": [], "within 5 % of 1": []}
        for label in scores.protocols[protocol].labels:
            bias = scores.scores[name][protocol].get(f"frequency_bias/{label}")
            if bias is None:
                continue
            bias = _printed("frequency_bias", bias)
            kind = 2 if abs(bias - 1) <= _UNBIASED else 0 if bias < 1 else 1
            threshold = f"≥ {with_unit(label, scores.unit)}"
            list(groups.values())[kind].append(f"{threshold} ({number(bias)})")
        count = sum(map(len, groups.values()))
        parts = [
            f"{kind} at {'all thresholds: ' if len(values) == count > 1 else ''}{join(values)}"
            for kind, values in groups.items()
            if values
        ]
        if parts:
            sentences.append(f"{name}: {'; '.join(parts)}.")
    return sentences


def probability_sentences(scores: ScoreFile, ensemble: str) -> list[str]:
    """Return the CRPS of an ensemble relative to every other forecast, and its Brier scores and ROC areas."""
    protocol, sentences = scores.pooled_protocol, []
    by_key = scores.scores[ensemble][protocol]
    own = by_key.get("crps")
    if own is not None:
        for relation, wanted in (("lower than", True), ("not lower than", False)):
            others = [
                _with_difference(scores, ensemble, name, "crps", protocol)
                for name in scores.names
                if name != ensemble
                and (other := scores.scores[name][protocol].get("crps")) is not None
                and is_better("crps", _printed("crps", own), _printed("crps", other)) is wanted
            ]
            if others:
                sentences.append(
                    f"The fair CRPS of {ensemble} ({number(own, places=places('crps'))}) is {relation} the CRPS (mean "
                    f"absolute error of a single forecast) of {join(others)}."
                )
    for key, title, ideal in (
        ("brier", "Brier score", "0 is perfect"),
        ("roc_area", "Area under the ROC curve", "1 is perfect, 0.5 no skill"),
    ):
        values = [
            f"{number(value)} at ≥ {with_unit(label, scores.unit)}"
            for label in scores.protocols[protocol].labels
            if (value := by_key.get(f"{key}/{label}")) is not None
        ]
        if values:
            sentences.append(f"{title} of {ensemble} ({ideal}): {join(values)}.")
    return sentences


def _with_difference(scores: ScoreFile, first: str, second: str, key: str, protocol: str) -> str:
    value = number(scores.scores[second][protocol].get(key), places=places(key))
    difference = scores.difference(first, second, key, protocol)
    return f"{second} ({value}{'' if difference is None else '; ' + _verdict(difference)})"


def _verdict(difference: tuple[float, float, float]) -> str:
    return "significant" if difference[1] > 0 or difference[2] < 0 else "not significant"


def _printed(key: str, value: float) -> float:
    return round(value, places(key))


def _split(scores: ScoreFile) -> tuple[list[str], list[str]]:
    baselines = [entry.name for entry in scores.entries if entry.kind == "baseline"]
    return baselines, [name for name in scores.names if name not in baselines]


def _worse(scores: ScoreFile, key: str, baseline: str, values: dict[str, float | None], counter: _Counter) -> list[str]:
    """Return the models whose printed value is worse than that of the baseline."""
    worse, own = [], values[baseline]
    for name in _split(scores)[1]:
        other = values[name]
        if own is None or other is None:
            counter.undefined += 1
            continue
        counter.compared += 1
        if is_better(key, _printed(key, own), _printed(key, other)):
            counter.won += 1
            worse.append(name)
    return worse


def _overall(scores: ScoreFile, counter: _Counter) -> tuple[str, ...]:
    sentences: list[str] = []
    baselines = _split(scores)[0]
    # 1. Mean CSI: over lead times, and at each of them
    by_lead = {"over the lead times": {name: scores.mean_csi(name) for name in scores.names}}
    for k, minutes in enumerate(scores.lead_minutes):
        by_lead[f"at +{minutes:g} min"] = {name: scores.mean_csi_by_lead[name][k] for name in scores.names}
    for when, values in by_lead.items():
        for baseline in baselines:
            if worse := _worse(scores, "csi", baseline, values, counter):
                others = join([f"{name} ({number(values[name])})" for name in worse])
                sentences.append(f"Mean CSI {when}: {baseline} ({number(values[baseline])}) is better than {others}.")
    # 2. Scores over all lead times under each protocol
    found = [
        one
        for protocol in sorted(scores.protocols, key=lambda name: name != scores.pooled_protocol)
        for key in whole_field_keys(scores, protocol)
        for one in _comparisons(
            scores, protocol, key, additional_keys(scores, protocol).get(key) or _title(key), counter
        )
    ]
    sentences += _merged(scores, found)
    # 3. CRPS at single lead times, which has a chart if there are ensembles
    return (*sentences, *(_by_lead(scores, "crps", "CRPS", counter) if scores.ensembles else ()))


def _thresholds(scores: ScoreFile, counter: _Counter) -> tuple[str, ...]:
    # 1. Scores of single thresholds under each protocol
    found = [
        one
        for protocol in sorted(scores.protocols, key=lambda name: name != scores.pooled_protocol)
        for label in scores.protocols[protocol].labels
        for metric in METRICS_PER_THRESHOLD
        for one in _comparisons(
            scores, protocol, f"{metric}/{label}", f"{METRIC_TITLES[metric]} ≥ {with_unit(label, scores.unit)}", counter
        )
    ]
    sentences = list(_merged(scores, found))
    # 2. CSI, and at the highest thresholds bias, at single lead times under the protocol of the charts
    labels = scores.protocols[scores.pooled_protocol].labels
    keys = [f"csi/{label}" for label in labels] + [f"frequency_bias/{label}" for label in labels[-HIGHEST:]]
    for key in keys:
        metric, label = key.split("/")
        title = f"{METRIC_TITLES[metric]} ≥ {with_unit(label, scores.unit)}"
        sentences += _by_lead(scores, key, title, counter)
    return tuple(sentences)


def _by_lead(scores: ScoreFile, key: str, title: str, counter: _Counter) -> list[str]:
    """Return one sentence per baseline with the lead times at which models are worse."""
    curves = {name: scores.by_lead(name, key) for name in scores.names}
    sentences = []
    for baseline in _split(scores)[0]:
        # 1. Lead times and largest difference of each model
        by_model: dict[str, list[tuple[str, float]]] = {}
        for k, minutes in enumerate(scores.lead_minutes):
            for name in _worse(scores, key, baseline, {one: curve[k] for one, curve in curves.items()}, counter):
                own, other = curves[baseline][k], curves[name][k]
                assert own is not None and other is not None
                margin = abs(_printed(key, own) - _printed(key, other))
                by_model.setdefault(name, []).append((f"+{minutes:g}", margin))
        # 2. Sentence
        parts = []
        for name, leads in by_model.items():
            largest = number(max(margin for _, margin in leads), places=places(key))
            by = f" (by {'up to ' if len(leads) > 1 else ''}{largest})"
            when = "every lead time" if len(leads) == scores.frames_out else f"{join([one for one, _ in leads])} min"
            parts.append(f"{name} at {when}{'' if key.startswith('frequency_bias') else by}")
        if parts:
            sentences.append(f"{title} at single lead times: {baseline} is better than {'; than '.join(parts)}.")
    return sentences


def _comparisons(scores: ScoreFile, protocol: str, key: str, title: str, counter: _Counter) -> list[_Comparison]:
    values = {name: scores.scores[name][protocol].get(key) for name in scores.names}
    found = []
    for baseline in _split(scores)[0]:
        worse = _worse(scores, key, baseline, values, counter)
        if worse:
            printed = tuple((name, _with_verdict(scores, baseline, name, protocol, key)) for name in worse)
            value = bounded(scores, baseline, protocol, key, places=places(key))
            found.append(_Comparison(title, protocol, baseline, value, printed))
    return found


def _with_verdict(scores: ScoreFile, baseline: str, name: str, protocol: str, key: str) -> str:
    value = bounded(scores, name, protocol, key, places=places(key))
    difference = scores.difference(baseline, name, key, protocol)
    return value if difference is None else f"{value}; {_verdict(difference)}"


def _merged(scores: ScoreFile, found: Sequence[_Comparison]) -> list[str]:
    """Return one sentence per score and baseline; protocols in which the same models are worse share it."""
    sentences, done = [], set()
    for one in found:
        if one in done:
            continue
        models = [name for name, _ in one.worse]
        same = [
            other
            for other in found
            if (other.title, other.baseline) == (one.title, one.baseline)
            and [name for name, _ in other.worse] == models
        ]
        done |= set(same)
        where = "" if len(scores.protocols) == 1 else f" (protocol {one.protocol}{_also(same[1:])})"
        others = join([f"{name} ({value})" for name, value in one.worse])
        sentences.append(f"{one.title}: {one.baseline} ({one.value}) is better than {others}{where}.")
    return sentences


def _also(others: Sequence[_Comparison]) -> str:
    return f"; the same result under {join([other.protocol for other in others])}" if others else ""


def _not_significant(scores: ScoreFile) -> tuple[str, ...]:
    """Return one sentence per score; protocols with the same pairs share it, with the numbers of the first."""
    sentences = []
    for key in _TESTED:
        by_pairs: dict[tuple[tuple[str, str], ...], list[str]] = {}
        for protocol in sorted(scores.protocols, key=lambda name: name != scores.pooled_protocol):
            pairs = tuple(
                (one.first, one.second)
                for one in scores.differences
                if (one.protocol, one.key) == (protocol, key)
                and one.low is not None
                and one.high is not None
                and one.low <= 0 <= one.high
            )
            if pairs:
                by_pairs.setdefault(pairs, []).append(protocol)
        for pairs, protocols in by_pairs.items():
            where = "" if len(scores.protocols) == 1 else f" (protocol {protocols[0]}"
            where += f"; also not significant under {join(protocols[1:])})" if protocols[1:] else ")" if where else ""
            parts = [
                f"{first} − {second} {_interval(scores, first, second, key, protocols[0])}" for first, second in pairs
            ]
            sentences.append(f"{_title(key)}: {'; '.join(parts)}{where}.")
    return tuple(sentences)


def _interval(scores: ScoreFile, first: str, second: str, key: str, protocol: str) -> str:
    difference = scores.difference(first, second, key, protocol)
    value, low, high = (number(part, places=places(key)).replace("-", "−") for part in difference or (None,) * 3)
    return f"{value} [{low}, {high}]"


def _title(key: str) -> str:
    return SCORE_TITLES.get(key, "CRPS")


def _count(scores: ScoreFile, counter: _Counter) -> str:
    baselines, models = _split(scores)
    if not baselines or not models:
        missing = "baseline" if not baselines else "model"
        return f"No {missing} was scored, so there is no comparison of models with baselines."
    undefined = f" {counter.undefined} comparisons are undefined." if counter.undefined else ""
    return (
        f"{counter.compared} comparisons of a model with a baseline ({join(baselines)}): in {counter.won} of them the "
        f"baseline is better, in all others the model is better or equal in print.{undefined}"
    )
