"""The page of a pipeline run: one static HTML file and its pictures, in a folder that can be copied whole."""

from importlib import resources
from pathlib import Path

from simcast_hpc.config import FORECASTING, to_yaml
from simcast_hpc.observe.run_folder import write_whole

from .claims import claims, general_claims, headlines
from .figures import draw_csi_by_threshold, draw_losses, draw_mean_csi, save
from .frames import draw_frames
from .markup import bullets, definitions, links, picture, table, text
from .results import ResultsError, RunResults, ScoreFile, TestSet, read_results
from .tables import duration, entry_table, lead_table, stage_table, threshold_table

_FOLDER = "page"
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
    ("Lead time", "how long after the last input frame a forecast frame is valid."),
    ("Persistence", "the last input frame, held: what any forecast should beat."),
    ("Teacher", "a model trained for a short horizon; it reaches the long one by taking its own output as input."),
    ("Student", "a model trained for the long horizon in one pass, on sequences that the teacher has lengthened."),
    ("Direct", "a model trained for the long horizon in one pass, on observations alone."),
    ("–", "a score that is undefined, for example because nothing was observed or forecast."),
]


def write_page(run_dir: Path) -> Path:
    """Write ``page/index.html`` and its pictures into the run folder of a finished pipeline; return the HTML's path.

    Raises:
        ResultsError: a result is absent, damaged, or the page cannot be written.
        ConfigError: the configuration or a score file has a wrong or missing key.
    """
    run = read_results(run_dir)
    folder = run_dir / _FOLDER
    try:
        folder.mkdir(exist_ok=True)
        sections = [_section(run, test_set, folder=folder) for test_set in run.test_sets]
        parts = [_summary(run), *sections, _training(run, folder=folder), _reproduction(run)]
        write_whole(folder / "index.html", _document(run.config.name, "\n".join(parts)))
    except OSError as error:
        raise ResultsError(f"the page {folder} cannot be written: {error.strerror or error}") from error
    return folder / "index.html"


def _document(title: str, body: str) -> str:
    style = (resources.files("simcast_hpc.report") / "page.css").read_text(encoding="utf-8")
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{text('title', f'{title}: SimCast-HPC')}\n<style>\n{style}</style>"
    )
    content = f"<body>\n<main>\n{body}\n</main>\n</body>"
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n{content}\n</html>\n'


def _summary(run: RunResults) -> str:
    places = [(f"set-{k}", _heading(test_set.scores.title)) for k, test_set in enumerate(run.test_sets, start=1)]
    places += [("training", "Training"), ("reproduce", "How to reproduce"), ("terms", "What the words mean")]
    said = claims(run, run.test_sets[0].scores)
    for test_set in run.test_sets[1:]:
        said += [f"{_heading(test_set.scores.title)}: {sentence}" for sentence in headlines(run, test_set.scores)]
    return "\n".join(
        [
            text("h1", f"Radar nowcasting: {run.config.name}"),
            text("p", what_was_done(run)),
            links(places, label="On this page"),
            text("h2", "What the numbers say", identifier="claims"),
            bullets([*said, *general_claims(run)]),
        ]
    )


def what_was_done(run: RunResults) -> str:
    """Return the paragraph that opens the page: what was trained and tested, on what, how long."""
    own = run.test_sets[0].scores
    forecasting = [stage for stage in run.stages if stage.config.stage in FORECASTING]
    backbones = " and ".join(dict.fromkeys(stage.config.model.title for stage in forecasting))
    models = f"One {backbones} model was" if len(forecasting) == 1 else f"{len(forecasting)} {backbones} models were"
    if any(stage.config.stage == "diffusion" for stage in run.stages):
        models = f"{models.rsplit(' ', 1)[0]}, and a latent diffusion that turns a forecast into an ensemble, were"
    stages = ", ".join(f"{stage.name} ({stage.steps} optimizer steps)" for stage in run.stages)
    held_out = "training" if own.split == "train" else "held-out"
    return (
        f"{models} trained for forecasts of {own.frames_out} radar frames from {own.frames_in}, "
        f"{own.step_minutes:g} minutes apart, with {run.config.batch.global_size} samples a step: {stages}. "
        f"The data is {own.title}, {own.quantity}: {_trained_on(run)}{own.windows} windows of {own.events} {held_out} "
        f"events for verification{_and_also(run)}. {_cost(run)}"
    )


def _trained_on(run: RunResults) -> str:
    made = run.config.synthesis
    if made is None:
        return ""
    size = f"{made.size} × {made.size} pixels"
    return f"{made.train_events} simulated events of {made.frames_per_event} frames of {size} for training, "


def _cost(run: RunResults) -> str:
    engine, ranks = run.config.engine, run.config.launch.ranks
    processes = "1 process" if ranks == 1 else f"{ranks} processes"
    device, machine = (run.versions.get(key, f"an unknown {key}") for key in ("device", "machine"))
    seconds = sum(stage.seconds for stage in run.stages)
    return (
        f"Training took {duration(seconds)} in all on {device} ({machine}), {processes}, {engine.precision}, "
        f"ZeRO stage {engine.zero_stage}."
    )


def _heading(title: str) -> str:
    return title[:1].upper() + title[1:]


def _and_also(run: RunResults) -> str:
    more = len(run.test_sets) - 1
    return "" if not more else f", besides {more} more test {'set' if more == 1 else 'sets'}"


def _section(run: RunResults, test_set: TestSet, *, folder: Path) -> str:
    scores = test_set.scores
    place = run.test_sets.index(test_set) + 1
    said = [bullets(claims(run, scores))] if place > 1 else []  # those of the first stand at the top of the page
    return "\n".join(
        [
            text("h2", _heading(scores.title), identifier=f"set-{place}"),
            text("p", _provenance(scores)),
            *said,
            table(lead_table(scores)),
            _curves(test_set, folder),
            _frames(test_set, folder),
            text("h3", "The forecasts"),
            table(entry_table(scores)),
            text("h3", "Scores per threshold"),
            text(
                "p",
                "The rarer a threshold, the fewer pixels its scores rest on and the more they move from run to run.",
            ),
            '<div class="pair">',
            *(table(threshold_table(scores, protocol)) for protocol in scores.protocols),
            "</div>",
        ]
    )


def _provenance(scores: ScoreFile) -> str:
    return (
        f"Split “{scores.split}” of {scores.dataset}: {scores.windows} windows of {scores.events} events, "
        f"{scores.frames_in} frames in, {scores.frames_out} out, {scores.step_minutes:g} minutes apart. "
        f"Source: {scores.citation}. Licence: {scores.license}."
    )


def _curves(test_set: TestSet, folder: Path) -> str:
    scores = test_set.scores
    mean, each = f"{test_set.stem}-mean-csi.png", f"{test_set.stem}-csi-by-threshold.png"
    save(draw_mean_csi(scores), folder / mean)
    save(draw_csi_by_threshold(scores), folder / each)
    protocol = scores.pooled_protocol
    return "\n".join(
        [
            picture(
                mean,
                alt=f"Mean CSI against lead time for {', '.join(scores.names)}. The numbers stand in the table above.",
                caption="Mean CSI by lead time, higher is better.",
            ),
            picture(
                each,
                alt=f"CSI against lead time for {', '.join(scores.names)}, one panel for each of "
                f"{len(scores.protocols[protocol].labels)} thresholds, from frequent to rare.",
                wide=True,
                caption=f"CSI by lead time for each threshold, counts pooled at each lead (protocol {protocol}, hash "
                f"{scores.protocols[protocol].hash}). Every panel has its own vertical scale.",
            ),
        ]
    )


def _frames(test_set: TestSet, folder: Path) -> str:
    scores, example = test_set.scores, test_set.example
    if example is None:
        return text("p", "No example frames were kept for this test set.")
    name = f"{test_set.stem}-frames.png"
    save(draw_frames(scores, example), folder / name)
    height, width = example.observed.shape[1:]
    shown = [entry for entry in scores.names if entry in example.forecasts]
    return picture(
        name,
        alt=f"Radar frames of one window: a row of inputs, a row of observations, and a row for each of: "
        f"{', '.join(shown)}.",
        wide=True,
        caption=f"One window of event {example.event}, {height} × {width} pixels, chosen by its observations "
        "alone (most heavy pixels), not by how well it was forecast. Missing pixels are grey and hatched.",
    )


def _training(run: RunResults, *, folder: Path) -> str:
    save(draw_losses(run.stages), folder / "losses.png")
    losses = picture(
        "losses.png",
        alt=f"Training loss against optimizer step, one panel for each of {', '.join(s.name for s in run.stages)}.",
        wide=True,
        caption="Training loss by optimizer step (weighted mean squared error, logarithmic). Each model has its own "
        "targets and its own scale: compare scores between models, never losses.",
    )
    return "\n".join([text("h2", "Training", identifier="training"), table(stage_table(run)), losses])


def _reproduction(run: RunResults) -> str:
    budget = " --set time_budget_minutes=null" if run.config.time_budget_minutes is not None else ""
    root = "" if run.config.data.root is None else f" --set data.root={run.config.data.root}"
    command = f"simcast pipeline {run.config.run_dir / 'config.yaml'} --set run_dir=again{root}{budget}"
    prints = [
        (f"Test set {test_set.scores.name}", f"content fingerprint {test_set.scores.fingerprint}")
        for test_set in run.test_sets
    ]
    prints += [
        (f"Training data of {stage.name}", f"content fingerprint {stage.marker['inputs']['data fingerprint']}")
        for stage in run.stages
        if "data fingerprint" in (stage.marker.get("inputs") or {})
    ]
    return "\n".join(
        [
            text("h2", "How to reproduce", identifier="reproduce"),
            text(
                "p",
                "In the folder that this run was started from, with the versions below: config.yaml is the resolved "
                "configuration, with the step counts that were used. Other versions, machines or numbers of "
                "processes change the rounding, and so the last digits.",
            ),
            f"<pre>{text('code', command)}</pre>",
            text("h3", "Versions"),
            definitions(list(run.versions.items())),
            text("h3", "Data"),
            definitions(prints),
            f"<details>\n<summary>Configuration</summary>\n<pre>{text('code', to_yaml(run.config))}</pre>\n</details>",
            text("h2", "What the words mean", identifier="terms"),
            definitions(_TERMS),
        ]
    )
