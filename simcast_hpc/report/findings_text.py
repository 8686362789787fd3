"""Findings of a run as sentences that are computed from its scores.

One run has one seed, so no sentence states that one training method is better than another: it states which score was
higher in this run.
"""

from collections.abc import Sequence

from simcast_hpc.config import PipelineConfig

from .pipeline_results import RunResults, ScoreFile

_MANY_DATES = 6
_PLACES = 4
_TOLERANCE = 0.05  # deviation from 1 up to which a spread/error ratio is called consistent
_NO_PERSISTENCE = "Persistence was not scored, so there is no statement about skill relative to it."


def run_findings(run: RunResults) -> list[str]:
    """Return findings that concern all test sets of a run."""
    sentences = [
        f"Every model was trained once, with one seed ({run.config.seed}). Differences between models in this run do "
        "not show that one training method is better than another."
    ]
    fraction = _fraction_of_configured_steps(run.config)
    if fraction < 1:
        sentences.append(
            f"Training was reduced to {100 * fraction:.0f} % of the configured steps to fit a time budget of "
            f"{run.config.time_budget_minutes:g} minutes on this machine, which by itself may explain forecasts worse "
            "than persistence."
        )
    students, directs = run.names_of("student"), run.names_of("direct")
    if students and directs:
        sentences.append(_loss_comparison(run, students, directs))
    for name in students:
        stage = run.stage(name)
        if stage is not None and stage.config.student.init == "teacher":
            sentences.append(f"The {name} was initialized with the weights of the teacher (student.init: teacher).")
    return sentences


def _fraction_of_configured_steps(config: PipelineConfig) -> float:
    """Return the fraction of the configured steps that a time budget allowed, over all stages."""
    if config.fitted_steps is None:
        return 1.0
    configured = config.model_copy(update={"fitted_steps": None})
    total = sum(configured.train_config(name).max_steps for name in config.fitted_steps)
    return sum(config.fitted_steps.values()) / total


def headlines(run: RunResults, scores: ScoreFile) -> list[str]:
    """Return the comparison with persistence of every student, or of every model if there is no student."""
    if "persistence" not in scores.names:
        return [_NO_PERSISTENCE]
    models = [entry.name for entry in scores.entries if entry.kind == "model"]
    students = [name for name in models if name in run.names_of("student")]
    return [persistence_comparison(scores, name) for name in students or models]


def findings(run: RunResults, scores: ScoreFile) -> list[str]:
    """Return the findings about one test set of a run, headlines first."""
    sentences = [highest_mean_csi(scores), *headlines(run, scores)]
    for student in run.names_of("student"):
        for direct in run.names_of("direct"):
            if student in scores.names and direct in scores.names:
                sentences.append(student_comparison(run, scores, student=student, direct=direct))
    sentences += [ensemble_skill(scores, name) for name in scores.ensembles]
    sentences += [thresholds_of_the_mean(scores), scope(scores)]
    own = run.test_sets[0].scores
    if scores.step_minutes != own.step_minutes:
        sentences.append(
            f"Frames are {scores.step_minutes:g} minutes apart here and {own.step_minutes:g} in {own.title}: "
            "the models were not trained for this time step."
        )
    return sentences


def findings_of_scores(scores: ScoreFile) -> list[str]:
    """Return the findings about a test set from its scores only."""
    sentences = [_NO_PERSISTENCE]
    if "persistence" in scores.names:
        sentences = [persistence_comparison(scores, one.name) for one in scores.entries if one.kind != "baseline"]
    sentences += [ensemble_skill(scores, name) for name in scores.ensembles]
    return [highest_mean_csi(scores, where=""), *sentences, thresholds_of_the_mean(scores), scope(scores)]


def persistence_comparison(scores: ScoreFile, name: str) -> str:
    """Return at which lead times ``name`` beats persistence; the first one, the hardest, is named separately."""
    own, other = scores.mean_csi_by_lead[name], scores.mean_csi_by_lead["persistence"]
    pairs = dict(enumerate(zip(own, other, strict=True), start=1))
    undefined = [lead for lead, pair in pairs.items() if None in pair and lead > 1]
    worse = [lead for lead, (a, b) in pairs.items() if lead > 1 and a is not None and b is not None and a <= b]
    minutes = {lead: f"{time:g} minutes" for lead, time in enumerate(scores.lead_minutes, start=1)}
    sentences = []
    last = len(pairs)
    if last > 1 and not worse and not undefined and _is_higher(pairs[1]):
        return (
            f"The mean CSI of {name} is higher than that of persistence at every lead time "
            f"({_versus(pairs[1])} at {minutes[1]}; {_versus(pairs[last])} at {minutes[last]})."
        )
    if last > 1 and not worse and not undefined:
        where = f"lead times 2 to {last}" if last > 2 else "lead time 2"
        sentences.append(
            f"The mean CSI of {name} is higher than that of persistence at every lead time after the first ({where}; "
            f"{_versus(pairs[last])} at {minutes[last]})."
        )
    elif last > 1:
        sentences.append(f"The {name} does not beat persistence at every lead time after the first.")
        if worse:
            values = [f"lead time {lead} ({minutes[lead]}: {_versus(pairs[lead])})" for lead in worse]
            sentences.append(f"Its mean CSI is not higher at {join(values)}.")
        if undefined:
            sentences.append(f"At lead time {join([str(lead) for lead in undefined])} the mean CSI is undefined.")
    sentences.append(_first_lead_time(pairs[1]))
    return " ".join(sentences)


def student_comparison(run: RunResults, scores: ScoreFile, *, student: str, direct: str) -> str:
    """Return which of two models has the higher mean CSI, the difference, and the optimizer steps of both."""
    own, other = scores.mean_csi(student), scores.mean_csi(direct)
    if own is None or other is None:
        return f"The mean CSI of {student} and {direct} cannot be compared: it is undefined at every lead time."
    steps = _step_comparison(run, student=student, direct=direct)
    own, other = round(own, _PLACES), round(other, _PLACES)  # the printed numbers must agree with their difference
    if own == other:
        return f"The {student} and {direct} have the same mean CSI over the lead times ({own:.{_PLACES}f}). {steps}"
    better, worse = (student, direct) if own > other else (direct, student)
    return (
        f"The {better} model has a higher mean CSI over the lead times than the {worse} model: "
        f"{max(own, other):.{_PLACES}f} versus {min(own, other):.{_PLACES}f}, a difference of "
        f"{abs(own - other):.{_PLACES}f}. With one seed this does not show whether distillation helps. {steps}"
    )


def ensemble_skill(scores: ScoreFile, ensemble: str) -> str:
    """Return whether the fair CRPS of an ensemble is below the MAE of the best single forecast, and its spread."""
    protocol = scores.pooled_protocol
    crps = {name: scores.scores[name][protocol].get("crps") for name in scores.names if name not in scores.ensembles}
    single = {name: value for name, value in crps.items() if value is not None}
    own, ratio = (scores.scores[ensemble][protocol].get(key) for key in ("crps", "spread_skill"))
    sentences = []
    if own is not None and single:
        best = min(single, key=lambda name: single[name])
        relation = "lower" if own < single[best] else "not lower"
        sentences.append(
            f"The fair CRPS of {ensemble} ({own:.{_PLACES}f}) is {relation} than the mean absolute error of the best "
            f"single forecast, {best} ({single[best]:.{_PLACES}f}){_crps_difference(scores, ensemble, best)}."
        )
    if ratio is not None:
        verdict = "consistent" if abs(ratio - 1) <= _TOLERANCE else "underdispersive" if ratio < 1 else "overdispersive"
        sentences.append(f"The ratio of spread to error of the ensemble mean is {ratio:.2f} (ideal: 1): {verdict}.")
    return " ".join(sentences) or f"The CRPS of {ensemble} is undefined."


def _crps_difference(scores: ScoreFile, first: str, second: str) -> str:
    difference = scores.difference(first, second, "crps")
    if difference is None:
        return "; the significance was not tested"
    value, low, high = (f"{number:.{_PLACES}f}".replace("-", "−") for number in difference)
    verdict = "significant" if difference[1] > 0 or difference[2] < 0 else "not significant"
    return f": difference {value}, 95 % interval [{low}, {high}], {verdict}"


def highest_mean_csi(scores: ScoreFile, *, where: str = " in this run") -> str:
    """Return which entries have the highest mean CSI over the lead times."""
    means = {name: mean for name in scores.names if (mean := scores.mean_csi(name)) is not None}
    if not means:
        return "The mean CSI is undefined at every lead time, so the forecasts are not ranked."
    best = max(means.values())
    names = [name for name, mean in means.items() if mean == best]
    others = sorted((name for name in means if name not in names), key=lambda name: -means[name])
    ranking = f" Others: {join([f'{name} {means[name]:.{_PLACES}f}' for name in others])}." if others else ""
    return f"Highest mean CSI over the lead times{where}: {join(names)} ({best:.{_PLACES}f}).{ranking}"


def thresholds_of_the_mean(scores: ScoreFile) -> str:
    """Return which thresholds the mean CSI averages over, and which are excluded."""
    rule = f"at least {scores.min_observed_pixels} observed pixels from at least {scores.min_observed_events} events"
    excluded = [
        f"{with_unit(label, scores.unit)} ({count.pixels} pixels, {count.events} events)"
        for label, count in scores.observed.items()
        if label not in scores.supported_thresholds
    ]
    if not scores.supported_thresholds:
        return f"No threshold has {rule}, so the mean CSI is over all of them and is unreliable: {join(excluded)}."
    included = join([with_unit(label, scores.unit) for label in scores.supported_thresholds])
    sentence = f"Mean CSI is the mean over thresholds with {rule}, the same at every lead time: {included}."
    return sentence + (f" Excluded: {join(excluded)}." if excluded else "")


def scope(scores: ScoreFile) -> str:
    """Return the scope of the scores: the number of independent dates, and dates shared with the training data."""
    if scores.is_synthetic:
        return (
            "The storms are simulated. The scores show that training and verification work; they do not show skill on "
            "real radar data."
        )
    dates = sorted(set(scores.dates))
    if not dates:
        return "The dates of this data are unknown, so its events may not be independent; no claim of skill is made."
    listed = join(dates) if len(dates) <= _MANY_DATES else f"{dates[0]} to {dates[-1]}"
    situations = "date is one weather situation" if len(dates) == 1 else "dates are the independent weather situations"
    sentence = (
        f"The {scores.events} events are from {_count(len(dates), 'date')} ({listed}); the {situations}. "
        f"No skill is claimed beyond {'it' if len(dates) == 1 else 'them'}."
    )
    shared = sorted(set(scores.train_dates or ()) & set(dates))
    return sentence + (f" Training data is also from {join(shared)}." if shared else "")


def with_unit(label: str, unit: str) -> str:
    """Return a threshold with its unit; encoded values have none."""
    return label if unit == "code" else f"{label} {unit}"


def _loss_comparison(run: RunResults, students: tuple[str, ...], directs: tuple[str, ...]) -> str:
    sentence = f"The training losses of {join(students)} and {join(directs)} must not be compared: "
    stages = [stage for name in students if (stage := run.stage(name)) is not None]
    if any(stage.config.student.extension == "teacher" for stage in stages):
        return sentence + (
            "the targets of the student contain frames forecast by the teacher. These are smoother than observations "
            "and easier to predict, so a lower loss does not imply a better forecast."
        )
    return sentence + "they were trained on different sequences, so a lower loss does not imply a better forecast."


def _versus(pair: tuple[float | None, float | None]) -> str:
    return f"{pair[0]:.3f} versus {pair[1]:.3f}"


def _is_higher(pair: tuple[float | None, float | None]) -> bool:
    own, other = pair
    return own is not None and other is not None and own > other


def _first_lead_time(pair: tuple[float | None, float | None]) -> str:
    own, other = pair
    if own is None or other is None:
        return "At the first lead time the mean CSI is undefined."
    relation = "higher than" if own > other else "lower than" if own < other else "equal to"
    return f"At the first lead time it is {relation} persistence ({_versus(pair)})."


def _step_comparison(run: RunResults, *, student: str, direct: str) -> str:
    steps = _steps_by_stage(run, student)
    other = sum(_steps_by_stage(run, direct).values())
    terms = " + ".join(f"{count} ({name})" for name, count in steps.items())
    total = sum(steps.values())
    if total == other:
        return f"Both used {total} optimizer steps in total: {terms} versus {other} ({direct})."
    return f"Their numbers of optimizer steps differ: {terms} = {total} versus {other} ({direct})."


def _steps_by_stage(run: RunResults, name: str) -> dict[str, int]:
    """Return the steps of a stage, preceded by those of the teacher if it uses one."""
    stage = run.stage(name)
    if stage is None:
        return {}
    steps: dict[str, int] = {}
    student = stage.config.student
    uses_teacher = stage.config.stage == "student" and "teacher" in (student.extension, student.init)
    if uses_teacher and student.teacher is not None and (teacher := run.stage(student.teacher.name)) is not None:
        steps[teacher.name] = teacher.steps
    steps[name] = stage.steps
    return steps


def join(items: Sequence[str]) -> str:
    """Return items as an enumeration: ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(items[:-1]), items[-1]))) if items else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
