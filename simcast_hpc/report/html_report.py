"""Write the HTML report of a pipeline run, or one that compares several runs or evaluations, as one static file."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from simcast_hpc.storage.atomic_files import atomic_file, write_text
from simcast_hpc.version import __version__, commit

from .baseline_findings import baseline_findings, bias_sentences, probability_sentences
from .comparison import Source, join_test_sets, read_sources
from .example_window import ResultsError
from .field_images import as_png
from .findings_text import findings, findings_of_scores, headlines, run_findings
from .html_markup import bullets, collapsible, definitions, links, text
from .pipeline_results import RunResults, ScoredTestSet, ScoreFile, read_results
from .run_sections import reproduction_section, run_summary, training_section
from .test_set_section import provenance, slide, test_set_section

_FOLDER, _FILE = "report", "index.html"
_TERMS = [
    (
        "CSI",
        "critical success index: hits / (hits + misses + false alarms) over pixels at or above a threshold. 1 is "
        "perfect, 0 means no hits.",
    ),
    ("POD", "probability of detection: hits / (hits + misses). 1 is perfect."),
    ("FAR", "false alarm ratio: false alarms / (hits + false alarms). 0 is perfect."),
    (
        "Frequency bias",
        "pixels forecast at or above the threshold / pixels observed. 1 is unbiased, above 1 is over-forecast.",
    ),
    ("HSS", "Heidke skill score: accuracy relative to chance. 1 is perfect, 0 is no skill."),
    ("Lead time", "time from the last input frame to the valid time of a forecast frame."),
    ("Persistence", "baseline forecast that repeats the last input frame."),
    ("Teacher", "a model trained for a short horizon and rolled out on its own output for the long horizon."),
    ("Student", "a model trained for the long horizon in one pass, on sequences extended by the teacher."),
    ("Direct", "a model trained for the long horizon in one pass, only on observations."),
    (
        "CRPS",
        "continuous ranked probability score: distance between the forecast distribution and the observation; for a "
        "single forecast its mean absolute error. Fair CRPS corrects for the finite number of members.",
    ),
    (
        "Max pool",
        "CSI of the maxima of windows of 4 × 4 or 16 × 16 pixels, which tolerates displacements of that size.",
    ),
    ("95 % interval", "range of a score when the test events are resampled; it does not include the training seed."),
    ("Encoded value", "pixel value 0 to 254 in which the data set stores its quantity."),
    ("Member", "one of the equally likely forecasts of an ensemble."),
    ("Protocol", "a named, hashed definition of counting and averaging; equal hashes mean equal calculations."),
    ("–", "an undefined score, for example because the event was neither observed nor forecast."),
]


def write_report(run_dir: Path) -> Path:
    """Write ``report/index.html`` into the run directory of a finished pipeline; return its path.

    Raises:
        ResultsError: a result is missing or damaged, or the report cannot be written.
        ConfigError: the configuration or a score file has an invalid or missing key.
    """
    run = read_results(run_dir)
    sections = [
        # The findings about the first test set are in the summary.
        _section(test_set, heading, _findings(findings(run, test_set.scores), test_set) if number > 1 else "", number)
        for number, (test_set, heading) in enumerate(_with_headings(run.test_sets), start=1)
    ]
    training = [text("h2", "Training", identifier="training"), *training_section(run)]
    reproduction = [text("h2", "Reproduction", identifier="reproduce"), *reproduction_section(run)]
    body = [_summary(run), *sections, *training, *reproduction, *_terms()]
    return write_page(run_dir / _FOLDER / _FILE, run.config.name, body)


def write_picture(run_dir: Path, path: Path) -> None:
    """Write the example window of the run's own test set as one PNG, as embedded in the report.

    Raises:
        ResultsError: a result is missing or damaged, there is no example window, or the file cannot be written.
        ConfigError: as :func:`write_report`.
    """
    test_set = read_results(run_dir).test_sets[0]
    if test_set.example is None:
        raise ResultsError(f"{run_dir} has no example window; evaluation writes it unless --tables-only is given")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            temporary.write_bytes(as_png(slide(test_set.scores, test_set.example)))
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror or error}") from error


def write_comparison(paths: Sequence[Path], folder: Path) -> Path:
    """Write ``index.html`` into ``folder``, with comparable runs and evaluations in one table.

    Args:
        paths: run directories of finished pipelines, output folders of ``simcast evaluate``, or score files.
        folder: created if it does not exist.

    Raises:
        ResultsError, ConfigError: as :func:`write_report`.
    """
    sources = read_sources(paths)
    test_sets = join_test_sets(sources)
    names = [source.label for source in sources]
    title = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    body = [_comparison_summary(title, sources, test_sets)]
    for number, (test_set, heading) in enumerate(_with_headings(test_sets), start=1):
        body.append(_section(test_set, heading, _findings(findings_of_scores(test_set.scores), test_set), number))
    for number, source in enumerate(sources, start=1):
        if source.run is not None:
            body += [
                text("h2", f"Training: {source.label}", identifier=f"training-{number}"),
                text("p", run_summary(source.run)),
                bullets(run_findings(source.run)),
                *training_section(source.run),
                text("h2", f"Reproduction: {source.label}"),
                *reproduction_section(source.run),
            ]
    return write_page(folder / _FILE, title, [*body, *_terms()])


def write_page(path: Path, title: str, body: Sequence[str]) -> Path:
    """Write a self-contained HTML page from its elements, atomically; return its path.

    Raises:
        ResultsError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, _document(title, "\n".join(body)))
    except OSError as error:
        raise ResultsError(f"cannot write the report {path}: {error.strerror or error}") from error
    return path


def _document(title: str, body: str) -> str:
    style, script = (
        (resources.files("simcast_hpc.report") / name).read_text(encoding="utf-8")
        for name in ("report.css", "report.js")
    )
    # An empty icon prevents a request for favicon.ico.
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n{text("title", f"{title}: SimCast-HPC")}\n<style>\n{style}</style>'
    )
    footer = f"<footer>SimCast-HPC {__version__} (commit {commit()})</footer>"
    content = f"<body>\n<main>\n{body}\n{footer}\n</main>\n<script>\n{script}</script>\n</body>"
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n{content}\n</html>\n'


def _summary(run: RunResults) -> str:
    with_headings = _with_headings(run.test_sets)
    targets = [(f"set-{k}", heading) for k, (_, heading) in enumerate(with_headings, start=1)]
    targets += [("training", "Training"), ("reproduce", "Reproduction"), ("terms", "Glossary")]
    others = [
        f"{heading}: {sentence}"
        for test_set, heading in with_headings[1:]
        for sentence in headlines(run, test_set.scores)
    ]
    return "\n".join(
        [
            text("h1", f"Radar nowcasting: {run.config.name}"),
            text("p", run_summary(run)),
            links(targets, label="Contents"),
            text("h2", "Findings", identifier="findings"),
            _findings(findings(run, run.test_sets[0].scores), run.test_sets[0], others=[*others, *run_findings(run)]),
        ]
    )


def _comparison_summary(title: str, sources: Sequence[Source], test_sets: Sequence[ScoredTestSet]) -> str:
    targets = [(f"set-{k}", heading) for k, (_, heading) in enumerate(_with_headings(test_sets), start=1)]
    targets += [(f"training-{k}", f"Training: {one.label}") for k, one in enumerate(sources, start=1) if one.run]
    count = "1 table" if len(test_sets) == 1 else f"{len(test_sets)} tables"
    introduction = (
        f"{len(sources)} {'source' if len(sources) == 1 else 'sources'} of scores in {count}. A table has forecasts "
        "scored on the same windows, with the same thresholds in means, under a protocol of equal hash. Scores in "
        "different tables are not comparable."
    )
    return "\n".join(
        [
            text("h1", f"Radar nowcasting: {title}"),
            text("p", introduction),
            definitions([(source.label, str(source.path)) for source in sources]),
            links([*targets, ("terms", "Glossary")], label="Contents"),
        ]
    )


def _findings(sentences: Sequence[str], test_set: ScoredTestSet, *, others: Sequence[str] = ()) -> str:
    """Return the findings in two columns: sentences, and lists of the comparisons that a reader could overlook."""
    scores = test_set.scores
    probabilities = [one for name in scores.ensembles for one in probability_sentences(scores, name)]
    sentences = [*sentences, *probabilities, *others]
    return (
        f'<div class="findings">\n<div>\n{_bullets(sentences)}\n</div>\n<div>\n{_comparisons(scores)}\n</div>\n</div>'
    )


def _comparisons(scores: ScoreFile) -> str:
    found = baseline_findings(scores)
    parts = [text("h3", "Where a simple baseline is better"), text("p", found.count)]
    if found.overall:
        parts.append(_bullets(found.overall))
    if found.thresholds:
        title = f"Single thresholds: {len(found.thresholds)} scores in which a baseline is better"
        note = "Persistence repeats an observed frame, so its frequency bias is close to 1 by construction."
        parts.append(collapsible(title, text("p", note) + _bullets(found.thresholds)))
    if found.not_significant:
        parts += [
            text("h3", "Where differences are not significant"),
            text("p", "Difference of two forecasts with its paired 95 % interval over events, which contains 0:"),
            _bullets(found.not_significant),
        ]
    if biases := bias_sentences(scores):
        over = "Pixels forecast / pixels observed, over all lead times (1 is unbiased):"
        parts += [text("h3", "Frequency bias"), text("p", over), _bullets(biases)]
    return "\n".join(parts)


def _bullets(sentences: Sequence[str]) -> str:
    """Return a list in which no line ends between a threshold and its sign."""
    return bullets([sentence.replace("≥ ", "≥\u00a0") for sentence in sentences])


def _section(test_set: ScoredTestSet, heading: str, opening: str, number: int) -> str:
    heading = text("h2", heading, identifier=f"set-{number}")
    return "\n".join([heading, text("p", provenance(test_set.scores)), opening, *test_set_section(test_set)])


def _with_headings(test_sets: Sequence[ScoredTestSet]) -> list[tuple[ScoredTestSet, str]]:
    """Return each test set with the heading of its section: its title, numbered if titles are equal."""
    titles = [test_set.scores.title[:1].upper() + test_set.scores.title[1:] for test_set in test_sets]
    numbered = [
        f"{title}, table {titles[:k].count(title) + 1}" if titles.count(title) > 1 else title
        for k, title in enumerate(titles)
    ]
    return list(zip(test_sets, numbered, strict=True))


def _terms() -> list[str]:
    return [text("h2", "Glossary", identifier="terms"), f'<div class="terms">{definitions(_TERMS)}</div>']
