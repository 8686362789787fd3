"""The page of a pipeline run, and that of several runs or evaluations side by side: one static HTML file each."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from simcast_hpc.storage.atomic_files import write_text
from simcast_hpc.version import __version__, commit

from .comparison import Source, joined, read_sources
from .example_window import ResultsError
from .findings_text import claims, claims_of_scores, general_claims, headlines
from .html_markup import bullets, definitions, links, text
from .pipeline_results import RunResults, ScoredTestSet, read_results
from .run_sections import reproduction_parts, training_parts, what_was_done
from .test_set_section import parts_of, provenance

_FOLDER, _FILE = "report", "index.html"
_TERMS = [
    (
        "CSI",
        "critical success index: hits / (hits + misses + false alarms) of the pixels at or above a threshold. 1 is "
        "perfect, 0 means that not one pixel was hit.",
    ),
    ("POD", "probability of detection: hits / (hits + misses). 1 is perfect."),
    ("FAR", "false alarm ratio: false alarms / (hits + false alarms). 0 is perfect."),
    (
        "Frequency bias",
        "pixels forecast at or above the threshold / pixels observed. 1 is right on average, above 1 is too much.",
    ),
    ("HSS", "Heidke skill score: how many more pixels are right than by chance. 1 is perfect, 0 is chance."),
    ("Lead time", "how long after the last input frame a forecast frame is valid."),
    ("Persistence", "the last input frame, held: what any forecast should beat."),
    ("Teacher", "a model trained for a short horizon; it reaches the long one by taking its own output as input."),
    ("Student", "a model trained for the long horizon in one pass, on sequences that the teacher has lengthened."),
    ("Direct", "a model trained for the long horizon in one pass, on observations alone."),
    (
        "CRPS",
        "continuous ranked probability score: of members, how far their distribution lies from what was observed; of a "
        "single forecast its mean absolute error. Fair: as of infinitely many members.",
    ),
    ("Member", "one of the forecasts of an ensemble, each as likely as any other."),
    ("Protocol", "one way to count and to average, named, with a hash: equal hashes are equal calculations."),
    ("–", "a score that is undefined, for example because nothing was observed or forecast."),
]


def write_report(run_dir: Path) -> Path:
    """Write ``page/index.html`` into the run folder of a finished pipeline; return its path.

    Raises:
        ResultsError: a result is absent, damaged, or the page cannot be written.
        ConfigError: the configuration or a score file has a wrong or missing key.
    """
    run = read_results(run_dir)
    sections = [
        # What is said of the first stands at the top of the page.
        _section(test_set, heading, claims(run, test_set.scores) if place > 1 else [], place)
        for place, (test_set, heading) in enumerate(_headed(run.test_sets), start=1)
    ]
    training = [text("h2", "Training", identifier="training"), *training_parts(run)]
    reproduction = [text("h2", "How to reproduce", identifier="reproduce"), *reproduction_parts(run)]
    body = [_summary(run), *sections, *training, *reproduction, *_terms()]
    return _written(run_dir / _FOLDER, run.config.name, body)


def write_comparison(paths: Sequence[Path], folder: Path) -> Path:
    """Write ``index.html`` into ``folder``: runs and evaluations in one table where their numbers are comparable.

    Args:
        paths: run folders of finished pipelines, folders that ``simcast evaluate`` wrote, or score files.
        folder: is made.

    Raises:
        ResultsError, ConfigError: as :func:`write_report`.
    """
    sources = read_sources(paths)
    test_sets = joined(sources)
    names = [source.label for source in sources]
    title = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    body = [_opening(title, sources, test_sets)]
    for place, (test_set, heading) in enumerate(_headed(test_sets), start=1):
        body.append(_section(test_set, heading, claims_of_scores(test_set.scores), place))
    for place, source in enumerate(sources, start=1):
        if source.run is not None:
            body += [
                text("h2", f"Training: {source.label}", identifier=f"training-{place}"),
                text("p", what_was_done(source.run)),
                bullets(general_claims(source.run)),
                *training_parts(source.run),
                text("h2", f"How to reproduce {source.label}"),
                *reproduction_parts(source.run),
            ]
    return _written(folder, title, [*body, *_terms()])


def _written(folder: Path, title: str, body: Sequence[str]) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / _FILE, _document(title, "\n".join(body)))
    except OSError as error:
        raise ResultsError(f"the page {folder} cannot be written: {error.strerror or error}") from error
    return folder / _FILE


def _document(title: str, body: str) -> str:
    style, script = (
        (resources.files("simcast_hpc.report") / name).read_text(encoding="utf-8")
        for name in ("report.css", "report.js")
    )
    # Without an icon named, a browser asks the page's server for one.
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n{text("title", f"{title}: SimCast-HPC")}\n<style>\n{style}</style>'
    )
    footer = f"<footer>SimCast-HPC {__version__} (commit {commit()})</footer>"
    content = f"<body>\n<main>\n{body}\n{footer}\n</main>\n<script>\n{script}</script>\n</body>"
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n{content}\n</html>\n'


def _summary(run: RunResults) -> str:
    headed = _headed(run.test_sets)
    places = [(f"set-{k}", heading) for k, (_, heading) in enumerate(headed, start=1)]
    places += [("training", "Training"), ("reproduce", "How to reproduce"), ("terms", "What the words mean")]
    said = claims(run, run.test_sets[0].scores)
    for test_set, heading in headed[1:]:
        said += [f"{heading}: {sentence}" for sentence in headlines(run, test_set.scores)]
    return "\n".join(
        [
            text("h1", f"Radar nowcasting: {run.config.name}"),
            text("p", what_was_done(run)),
            links(places, label="On this page"),
            text("h2", "What the numbers say", identifier="claims"),
            bullets([*said, *general_claims(run)]),
        ]
    )


def _opening(title: str, sources: Sequence[Source], test_sets: Sequence[ScoredTestSet]) -> str:
    places = [(f"set-{k}", heading) for k, (_, heading) in enumerate(_headed(test_sets), start=1)]
    places += [(f"training-{k}", f"Training: {one.label}") for k, one in enumerate(sources, start=1) if one.run]
    count = "1 table" if len(test_sets) == 1 else f"{len(test_sets)} tables"
    said = (
        f"{len(sources)} {'source' if len(sources) == 1 else 'sources'} of scores in {count}. Forecasts share a table "
        "where they were scored on the same windows, with the same thresholds in the means, under a protocol of equal "
        "hash; what was scored otherwise stands in a table of its own and is not to be compared across tables."
    )
    read = [(source.label, str(source.path)) for source in sources]
    return "\n".join(
        [
            text("h1", f"Radar nowcasting: {title}"),
            text("p", said),
            definitions(read),
            links([*places, ("terms", "What the words mean")], label="On this page"),
        ]
    )


def _section(test_set: ScoredTestSet, heading: str, said: Sequence[str], place: int) -> str:
    opening = [
        text("h2", heading, identifier=f"set-{place}"),
        text("p", provenance(test_set.scores)),
        *([bullets(said)] if said else []),
    ]
    return "\n".join([*opening, *parts_of(test_set)])


def _headed(test_sets: Sequence[ScoredTestSet]) -> list[tuple[ScoredTestSet, str]]:
    """Return each test set with the heading of its section: its title, numbered where another has the same."""
    titles = [test_set.scores.title[:1].upper() + test_set.scores.title[1:] for test_set in test_sets]
    numbered = [
        f"{title}, table {titles[:k].count(title) + 1}" if titles.count(title) > 1 else title
        for k, title in enumerate(titles)
    ]
    return list(zip(test_sets, numbered, strict=True))


def _terms() -> list[str]:
    return [text("h2", "What the words mean", identifier="terms"), definitions(_TERMS)]
