"""The program ``simcast``: built out of ``commands/``, without logic of its own."""

import os
import sys

import typer

from simcast_hpc.commands import (
    config,
    convert,
    data,
    doctor,
    evaluate,
    export,
    leaderboard,
    model,
    pipeline,
    predict,
    report,
    rollout,
    sample,
    train,
)
from simcast_hpc.config import SimcastError
from simcast_hpc.distributed.launchers import tell_torchrun

app = typer.Typer(
    name="simcast",
    help="Train, verify and run radar nowcasting models by short-to-long distillation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data.app, name="data")
app.add_typer(model.app, name="model")
app.add_typer(config.app, name="config")
app.command("train")(train.train)
app.command("rollout")(rollout.rollout)
app.command("sample")(sample.sample)
app.command("pipeline")(pipeline.pipeline)
app.command("predict", help=predict.PREDICT_HELP)(predict.predict)
app.command("evaluate")(evaluate.evaluate)
app.command("leaderboard")(leaderboard.leaderboard)
app.command("report")(report.report)
app.command("doctor", help=doctor.DOCTOR_HELP)(doctor.doctor)
app.command("convert")(convert.convert)
app.command("export", help=export.EXPORT_HELP)(export.export)


def main() -> None:
    """Run the command line; a refusal is a message and status 2, a foreseen failure one and status 1."""
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    try:
        app(arguments)
    except SimcastError as refusal:
        _say(refusal)
        raise SystemExit(2 if isinstance(refusal, ValueError) else refusal.exit_status) from None
    except OSError as error:
        _say(error)  # names the file and what the system said of it
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("simcast: interrupted; started again, it goes on from the newest checkpoint", file=sys.stderr)
        raise SystemExit(130) from None


def _say(error: Exception) -> None:
    print(f"simcast: {error}", file=sys.stderr)
    tell_torchrun(f"simcast: {error}", os.environ)
