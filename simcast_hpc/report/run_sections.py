"""Sections of the report about one pipeline run: summary, training, reproduction."""

from simcast_hpc.config import FORECASTING, to_yaml
from simcast_hpc.monitoring.progress import format_duration

from .html_markup import chart_grid, collapsible, definitions, line_legend, table, text
from .pipeline_results import RunResults
from .score_tables import stage_table
from .training_curves import baselines_of, loss_charts, throughput_charts, validation_charts


def run_summary(run: RunResults) -> str:
    """Return the opening paragraph: models, training steps, data, test windows, training time and hardware."""
    own = run.test_sets[0].scores
    forecasting = [stage for stage in run.stages if stage.config.stage in FORECASTING]
    backbones = " and ".join(dict.fromkeys(stage.config.model.title for stage in forecasting))
    noisy = sum(stage.config.model.noise_channels > 0 for stage in forecasting)
    noise = f" ({noisy} with noise inputs, for ensembles)" if noisy else ""
    count = len(forecasting)
    models = f"One {backbones} model{noise} was" if count == 1 else f"{count} {backbones} models{noise} were"
    if any(stage.config.stage == "diffusion" for stage in run.stages):
        models = f"{models.rsplit(' ', 1)[0]} and a latent diffusion model for ensembles were"
    stages = ", ".join(f"{stage.name} ({stage.steps} optimizer steps)" for stage in run.stages)
    held_out = "training" if own.split == "train" else "held-out"
    return (
        f"{models} trained to forecast {own.frames_out} radar frames from {own.frames_in} input frames, "
        f"{own.step_minutes:g} minutes apart, with a global batch size of {run.config.batch.global_size}: {stages}. "
        f"Data: {own.title}, {own.quantity}; {_training_data(run)}{own.windows} windows of {own.events} {held_out} "
        f"events for verification{_other_test_sets(run)}. {_training_cost(run)}"
    )


def _training_data(run: RunResults) -> str:
    synthesis = run.config.synthesis
    if synthesis is None:
        return ""
    size = f"{synthesis.size} × {synthesis.size} pixels"
    return f"{synthesis.train_events} simulated events of {synthesis.frames_per_event} frames of {size} for training, "


def _training_cost(run: RunResults) -> str:
    engine, ranks = run.config.engine, run.config.launch.ranks
    processes = "1 process" if ranks == 1 else f"{ranks} processes"
    device, machine = (run.versions.get(key, f"an unknown {key}") for key in ("device", "machine"))
    seconds = sum(stage.seconds for stage in run.stages)
    return (
        f"Training took {format_duration(seconds)} on {device} ({machine}) with {processes}, {engine.precision}, ZeRO "
        f"stage {engine.zero_stage}."
    )


def _other_test_sets(run: RunResults) -> str:
    others = len(run.test_sets) - 1
    return "" if not others else f", and {others} additional test {'set' if others == 1 else 'sets'}"


def training_section(run: RunResults) -> list[str]:
    """Return the table of stages and the training curves as HTML."""
    parts = [
        table(stage_table(run)),
        text("h3", "Loss"),
        chart_grid(
            loss_charts(run.stages),
            caption="Training loss by optimizer step, on a logarithmic axis if it is positive; gray and dashed: the "
            "loss on the validation windows, without augmentation. Targets and axes differ between models, so losses "
            "are not comparable between models.",
        ),
    ]
    if throughput := throughput_charts(run.stages):
        parts += [
            text("h3", "Throughput"),
            chart_grid(throughput, caption="Samples per second over all ranks, by optimizer step."),
        ]
    if validation := validation_charts(run.stages):
        parts += [
            text("h3", "Validation during training"),
            chart_grid(
                validation,
                legend=line_legend(baselines_of(run.stages)),
                caption="Scores of the weights during training (of their moving average if there is one) on a fixed "
                "set of windows of the split val. Horizontal lines: baselines on the same windows. Dotted vertical "
                "line: the step with the best score, whose weights are exported by default. The tables contain the "
                "scores on the test set.",
            ),
        ]
    return parts


def reproduction_section(run: RunResults) -> list[str]:
    """Return the command, versions, data fingerprints and configuration as HTML."""
    budget = " --set time_budget_minutes=null" if run.config.time_budget_minutes is not None else ""
    root = "" if run.config.data.root is None else f" --set data.root={run.config.data.root}"
    command = f"simcast pipeline {run.config.run_dir / 'config.yaml'} --set run_dir=again{root}{budget}"
    fingerprints = [
        (f"Test set {test_set.scores.name}", f"content fingerprint {test_set.scores.fingerprint}")
        for test_set in run.test_sets
    ]
    fingerprints += [
        (f"Training data of {stage.name}", f"content fingerprint {stage.marker['inputs']['data fingerprint']}")
        for stage in run.stages
        if "data fingerprint" in (stage.marker.get("inputs") or {})
    ]
    return [
        text(
            "p",
            "Run this command in the directory in which the run was started, with the versions below. config.yaml is "
            "the resolved configuration with the step counts that were used. Other versions, hardware or numbers of "
            "processes change rounding and so the last digits.",
        ),
        f'<pre tabindex="0">{text("code", command)}</pre>',
        text("h3", "Versions"),
        definitions(list(run.versions.items())),
        text("h3", "Data"),
        definitions(fingerprints),
        collapsible("Configuration", f'<pre tabindex="0">{text("code", to_yaml(run.config))}</pre>'),
    ]
