"""The program ``simcast``: built out of ``commands/``, without logic of its own."""

import sys

import typer

from simcast_hpc.commands import data, evaluate, pipeline, report, rollout, train
from simcast_hpc.config import ConfigError
from simcast_hpc.data.spec import DataError

app = typer.Typer(
    name="simcast",
    help="Train, verify and run radar nowcasting models by short-to-long distillation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data.app, name="data")
app.command("train")(train.train)
app.command("rollout")(rollout.rollout)
app.command("pipeline")(pipeline.pipeline)
app.command("evaluate")(evaluate.evaluate)
app.command("report")(report.report)


def main() -> None:
    """Run the command line; a refusal is a message and exit status 2, never a traceback."""
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    try:
        app(arguments)
    except (ConfigError, DataError) as refusal:
        print(f"simcast: {refusal}", file=sys.stderr)
        raise SystemExit(2) from None
