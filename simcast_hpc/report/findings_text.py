"""What the numbers of a run hold, in sentences: computed from the scores, so that they turn when the scores do.

One run has one seed. Nothing here says that one way of training is better than another; it says which number was
higher in this run, and that this is no evidence.
"""

from simcast_hpc.config import PipelineConfig

from .pipeline_results import RunResults, ScoreFile

_MANY_DATES = 6
_PLACES = 4
_NEAR = 0.05  # a ratio of spread and error this near to 1 is called right


def general_claims(run: RunResults) -> list[str]:
    """Return what holds for the run as a whole."""
    said = [
        f"Every model was trained once, with one seed ({run.config.seed}). Differences between models in this run are "
        "no evidence that one way of training is better than another."
    ]
    share = _share_of_asked_steps(run.config)
    if share < 1:
        said.append(
            f"Training was cut to {100 * share:.0f} % of the steps asked for, to fit "
            f"{run.config.time_budget_minutes:g} minutes on this machine: forecasts may lose to persistence for that "
            "alone."
        )
    students, directs = run.names_of("student"), run.names_of("direct")
    if students and directs:
        said.append(_losses_differ(run, students, directs))
    for name in students:
        stage = run.stage(name)
        if stage is not None and stage.config.student.init == "teacher":
            said.append(
                f"The {name} began from the teacher's weights (student.init: teacher), not from scratch; this is a "
                "choice of this run."
            )
    return said


def _share_of_asked_steps(config: PipelineConfig) -> float:
    """Return how much of the steps asked for a time budget left, over all stages."""
    if config.fitted_steps is None:
        return 1.0
    asked = config.model_copy(update={"fitted_steps": None})
    return sum(config.fitted_steps.values()) / sum(asked.train_config(name).max_steps for name in config.fitted_steps)


def headlines(run: RunResults, scores: ScoreFile) -> list[str]:
    """Return the sentence against persistence of every student, or of every model where there is no student."""
    if "persistence" not in scores.names:
        return ["Persistence was not scored here, so nothing is said about skill beyond it."]
    models = [entry.name for entry in scores.entries if entry.kind == "model"]
    students = [name for name in models if name in run.names_of("student")]
    return [against_persistence(scores, name) for name in students or models]


def claims(run: RunResults, scores: ScoreFile) -> list[str]:
    """Return everything that is said about one test set, its headlines first."""
    said = headlines(run, scores)
    for student in run.names_of("student"):
        for direct in run.names_of("direct"):
            if student in scores.names and direct in scores.names:
                said.append(student_or_direct(run, scores, student=student, direct=direct))
    said += [*(beyond_single_forecasts(scores, name) for name in scores.ensembles)]
    said += [highest(scores), thresholds_in_the_mean(scores), reach(scores)]
    own = run.test_sets[0].scores
    if scores.step_minutes != own.step_minutes:
        said.append(
            f"Frames are {scores.step_minutes:g} minutes apart here and {own.step_minutes:g} in {own.title}: "
            "the models were not trained for this spacing."
        )
    return said


def claims_of_scores(scores: ScoreFile) -> list[str]:
    """Return what is said about a test set from its scores alone, whatever was trained and how."""
    said = ["Persistence was not scored here, so nothing is said about skill beyond it."]
    if "persistence" in scores.names:
        said = [against_persistence(scores, one.name) for one in scores.entries if one.kind != "baseline"]
    said += [beyond_single_forecasts(scores, name) for name in scores.ensembles]
    return [*said, highest(scores, where=""), thresholds_in_the_mean(scores), reach(scores)]


def against_persistence(scores: ScoreFile, name: str) -> str:
    """Return whether ``name`` beats persistence at every lead beyond the first, and where it does not."""
    own, other = scores.mean_csi_by_lead[name], scores.mean_csi_by_lead["persistence"]
    pairs = {lead: (mine, its) for lead, (mine, its) in enumerate(zip(own, other, strict=True), start=1)}
    undefined = [lead for lead, pair in pairs.items() if None in pair and lead > 1]
    behind = [lead for lead, (mine, its) in pairs.items() if lead > 1 and _not_above(mine, its)]
    minutes = {lead: f"{time:g} minutes" for lead, time in enumerate(scores.lead_minutes, start=1)}
    said = []
    if len(pairs) > 1 and not behind and not undefined:
        last = len(pairs)
        where = f"leads 2 to {last}" if last > 2 else "lead 2"
        said.append(
            f"The {name}'s mean CSI is above persistence's at every lead time beyond the first ({where}; "
            f"{_against(pairs[last])} at {minutes[last]})."
        )
    elif len(pairs) > 1:
        said.append(f"The {name} does not beat persistence at every lead time beyond the first.")
        if behind:
            places = [f"lead {lead} ({minutes[lead]}: {_against(pairs[lead])})" for lead in behind]
            said.append(f"Its mean CSI is not above persistence's at {_listed(places)}.")
        if undefined:
            said.append(f"At lead {_listed([str(lead) for lead in undefined])} there is no mean CSI to compare.")
    said.append(_at_the_first_lead(pairs[1]))
    return " ".join(said)


def student_or_direct(run: RunResults, scores: ScoreFile, *, student: str, direct: str) -> str:
    """Return which of two models has the higher mean CSI, by how much, and at which cost in optimizer steps."""
    own, other = scores.mean_csi(student), scores.mean_csi(direct)
    if own is None or other is None:
        return f"The mean CSI of {student} and {direct} cannot be compared: it is undefined at every lead time."
    steps = _steps_compared(run, student=student, direct=direct)
    own, other = round(own, _PLACES), round(other, _PLACES)  # so that the difference is that of the numbers shown
    if own == other:
        return f"The {student} and {direct} have the same mean CSI over the lead times ({own:.{_PLACES}f}). {steps}"
    better, worse = (student, direct) if own > other else (direct, student)
    return (
        f"The {better} model has a higher mean CSI over the lead times than the {worse} model: "
        f"{max(own, other):.{_PLACES}f} against {min(own, other):.{_PLACES}f}, a difference of "
        f"{abs(own - other):.{_PLACES}f}. One seed is no evidence, so this "
        f"does not show whether distillation helps. {steps}"
    )


def beyond_single_forecasts(scores: ScoreFile, ensemble: str) -> str:
    """Return whether an ensemble's fair CRPS is below the error of the best single forecast, and what its spread is."""
    protocol = scores.pooled_protocol
    found = {name: scores.scores[name][protocol].get("crps") for name in scores.names if name not in scores.ensembles}
    single = {name: value for name, value in found.items() if value is not None}
    own, ratio = (scores.scores[ensemble][protocol].get(key) for key in ("crps", "spread_skill"))
    said = []
    if own is not None and single:
        best = min(single, key=lambda name: single[name])
        place = "below" if own < single[best] else "not below"
        said.append(
            f"The fair CRPS of {ensemble} ({own:.{_PLACES}f}) is {place} the mean absolute error of the best single "
            f"forecast, {best} ({single[best]:.{_PLACES}f}){_surely(scores, ensemble, best)}."
        )
    if ratio is not None:
        alike = "about right" if abs(ratio - 1) <= _NEAR else "too alike" if ratio < 1 else "too far apart"
        said.append(f"The spread of its members is {ratio:.2f} of the error of their mean, where 1 is right: {alike}.")
    return " ".join(said) or f"The CRPS of {ensemble} is undefined."


def _surely(scores: ScoreFile, first: str, second: str) -> str:
    found = scores.difference(first, second, "crps")
    if found is None:
        return "; how sure that is was not resampled"
    value, low, high = (f"{number:.{_PLACES}f}".replace("-", "−") for number in found)
    sure = "" if found[1] > 0 or found[2] < 0 else ", which includes 0"
    return f": a difference of {value} [{low}, {high}] over 95 % of resamples of events{sure}"


def highest(scores: ScoreFile, *, where: str = " in this run") -> str:
    """Return which entries have the highest mean CSI over the lead times."""
    means = {name: mean for name in scores.names if (mean := scores.mean_csi(name)) is not None}
    if not means:
        return "No mean CSI is defined at any lead time, so the forecasts are not ranked."
    best = max(means.values())
    names = [name for name, mean in means.items() if mean == best]
    return f"Highest mean CSI over the lead times{where}: {_listed(names)} ({best:.{_PLACES}f})."


def thresholds_in_the_mean(scores: ScoreFile) -> str:
    """Return which thresholds the mean CSI is taken over, and why the others are left out."""
    rule = f"at least {scores.min_observed_pixels} observed pixels from at least {scores.min_observed_events} events"
    left_out = [
        f"{with_unit(label, scores.unit)} ({count.pixels} pixels, {count.events} events)"
        for label, count in scores.observed.items()
        if label not in scores.supported_thresholds
    ]
    if not scores.supported_thresholds:
        return f"No threshold has {rule}, so mean CSI is over all of them and says little: {_listed(left_out)}."
    kept = _listed([with_unit(label, scores.unit) for label in scores.supported_thresholds])
    said = f"Mean CSI is the mean over the thresholds with {rule}, the same ones at every lead time: {kept}."
    return said + (f" Left out: {_listed(left_out)}." if left_out else "")


def reach(scores: ScoreFile) -> str:
    """Return how far the scores may be taken to hold: how many independent dates stand behind them."""
    if scores.is_synthetic:
        return (
            "The storms are simulated. The scores show that training and verification work; they say nothing about "
            "skill on real radar."
        )
    dates = sorted(set(scores.dates))
    if not dates:
        return "The dates of this data are unknown, so its events may not be independent; no claim of skill is made."
    shown = _listed(dates) if len(dates) <= _MANY_DATES else f"{dates[0]} to {dates[-1]}"
    situations = "date is one weather situation" if len(dates) == 1 else "dates are the independent weather situations"
    said = (
        f"The {scores.events} events come from {_count(len(dates), 'date')} ({shown}); the {situations}. "
        f"No skill is claimed beyond {'it' if len(dates) == 1 else 'them'}."
    )
    shared = sorted(set(scores.train_dates or ()) & set(dates))
    return said + (f" Training data also comes from {_listed(shared)}." if shared else "")


def with_unit(label: str, unit: str) -> str:
    """Return a threshold as text: codes stand bare, all else with its unit."""
    return label if unit == "code" else f"{label} {unit}"


def _losses_differ(run: RunResults, students: tuple[str, ...], directs: tuple[str, ...]) -> str:
    said = f"The training losses of {_listed(students)} and {_listed(directs)} must not be compared: "
    lengthened = [stage for name in students if (stage := run.stage(name)) is not None]
    if any(stage.config.student.extension == "teacher" for stage in lengthened):
        return said + (
            "the student's targets contain frames that the teacher forecast. These are smoother than observations and "
            "easier to match, so its loss may be lower without its forecasts being better."
        )
    return said + "they were trained on different sequences, so a lower loss does not mean a better forecast."


def _not_above(mine: float | None, its: float | None) -> bool:
    return mine is not None and its is not None and mine <= its


def _against(pair: tuple[float | None, float | None]) -> str:
    return f"{pair[0]:.3f} against {pair[1]:.3f}"


def _at_the_first_lead(pair: tuple[float | None, float | None]) -> str:
    mine, its = pair
    if mine is None or its is None:
        return "At the first there is no mean CSI to compare."
    place = "above" if mine > its else "below" if mine < its else "level with"
    return f"At the first it is {place} persistence ({_against(pair)})."


def _steps_compared(run: RunResults, *, student: str, direct: str) -> str:
    spent = _steps_spent(run, student)
    other = sum(_steps_spent(run, direct).values())
    parts = " + ".join(f"{steps} ({name})" for name, steps in spent.items())
    total = sum(spent.values())
    if total == other:
        return f"Both had {total} optimizer steps in all: {parts} against {other} ({direct})."
    return f"Their optimizer steps differ: {parts} = {total} against {other} ({direct})."


def _steps_spent(run: RunResults, name: str) -> dict[str, int]:
    """Return the steps of a stage, and before it those of the teacher that it needs."""
    stage = run.stage(name)
    if stage is None:
        return {}
    spent: dict[str, int] = {}
    student = stage.config.student
    needs_teacher = stage.config.stage == "student" and "teacher" in (student.extension, student.init)
    if needs_teacher and student.teacher is not None and (teacher := run.stage(student.teacher.name)) is not None:
        spent[teacher.name] = teacher.steps
    spent[name] = stage.steps
    return spent


def _listed(items: list[str] | tuple[str, ...]) -> str:
    return " and ".join(filter(None, (", ".join(items[:-1]), items[-1]))) if items else ""


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
