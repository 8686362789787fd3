"""What a page shows of one pipeline run besides its scores: what was done, training, how to reproduce it."""

from simcast_hpc.config import FORECASTING, to_yaml

from .html_markup import chart_grid, definitions, folded, table, text
from .pipeline_results import RunResults
from .score_tables import duration, stage_table
from .training_curves import loss_charts, speed_charts, validation_charts


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


def _and_also(run: RunResults) -> str:
    more = len(run.test_sets) - 1
    return "" if not more else f", besides {more} more test {'set' if more == 1 else 'sets'}"


def training_parts(run: RunResults) -> list[str]:
    """Return the stages' table and their curves."""
    parts = [
        table(stage_table(run)),
        text("h3", "Loss"),
        chart_grid(
            loss_charts(run.stages),
            caption="Training loss by optimizer step, logarithmic where it is above 0. Each model has its own targets "
            "and its own scale: compare scores between models, never losses.",
        ),
    ]
    if speeds := speed_charts(run.stages):
        parts += [
            text("h3", "Throughput"),
            chart_grid(speeds, caption="Samples that all ranks together trained on in a second, by optimizer step."),
        ]
    if validated := validation_charts(run.stages):
        parts += [
            text("h3", "Validation during training"),
            chart_grid(validated, caption="On a fixed set of validation windows, with the averaged weights."),
        ]
    return parts


def reproduction_parts(run: RunResults) -> list[str]:
    """Return the command, the versions, what the data was, and the configuration."""
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
    return [
        text(
            "p",
            "In the folder that this run was started from, with the versions below: config.yaml is the resolved "
            "configuration, with the step counts that were used. Other versions, machines or numbers of "
            "processes change the rounding, and so the last digits.",
        ),
        f'<pre tabindex="0">{text("code", command)}</pre>',
        text("h3", "Versions"),
        definitions(list(run.versions.items())),
        text("h3", "Data"),
        definitions(prints),
        folded("Configuration", f'<pre tabindex="0">{text("code", to_yaml(run.config))}</pre>'),
    ]
