"""The program ``simcast``: one typer application made of the modules in ``commands/``.

Command modules import nothing heavy (no torch, NumPy or h5py) at module level, so that help texts and errors in
configurations appear at once.
"""

import faulthandler
import os
import re
import sys
from typing import Annotated

import typer

from simcast_hpc.commands import (
    calibrate,
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
    score_issued,
    train,
)
from simcast_hpc.commands.options import CommandGroup
from simcast_hpc.config import SimcastError
from simcast_hpc.config.text_files import printable
from simcast_hpc.distributed.launchers import report_to_torchrun

# Without rich markup, brackets such as those of `[io]` in help texts and file names are printed as they are.
app = CommandGroup(
    name="simcast",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
app.add_typer(data.app, name="data")
app.add_typer(model.app, name="model")
app.add_typer(config.app, name="config")
app.command("train")(train.train)
app.command("rollout")(rollout.rollout)
app.command("sample")(sample.sample)
app.command("pipeline")(pipeline.pipeline)
app.command("calibrate")(calibrate.calibrate)
app.command("predict")(predict.predict)
app.command("evaluate")(evaluate.evaluate)
app.command("score-issued")(score_issued.score_issued)
app.command("leaderboard")(leaderboard.leaderboard)
app.command("report")(report.report)
app.command("doctor")(doctor.doctor)
app.command("convert")(convert.convert)
app.command("export")(export.export)


def _print_version(given: bool) -> None:
    if given:
        from simcast_hpc.version import __version__, commit

        print(f"simcast {__version__} (commit {commit()})")
        raise typer.Exit


@app.callback()
def simcast(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print version and build commit.")
    ] = False,
) -> None:
    """Train, verify and run radar nowcasting models by short-to-long distillation."""


def main() -> None:
    """Run the command line.

    An expected error is printed as one message without a traceback. Exit status: 2 for invalid input, 1 for an
    error of the operating system, 130 after an interrupt, otherwise the ``exit_status`` of the error.
    """
    if sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)  # a crash in compiled code (SIGSEGV, SIGABRT) prints where it happened
    try:
        _run()
    except SystemExit as exit_:
        process_group = sys.modules.get("simcast_hpc.distributed.process_group")  # absent: a command without ranks
        if process_group is not None:
            process_group.end_rank(exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None))
        raise


def _run() -> None:
    # The deepspeed launcher appends --local_rank=N; the rank is read from the environment.
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    try:
        app(arguments, prog_name="simcast")
    except SimcastError as error:
        _print_error(error)
        raise SystemExit(2 if isinstance(error, ValueError) else error.exit_status) from None
    except OSError as error:
        _print_error(error)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("simcast: interrupted; the same command resumes from the newest checkpoint", file=sys.stderr)
        raise SystemExit(130) from None


def _print_error(error: Exception) -> None:
    # Further lines are indented, so that none looks like a line of the log.
    if getattr(error, "printed_by_rank_0", False):
        return
    text = re.sub(r"\n(?! )", "\n    ", printable(f"simcast: {error}", keep="\n"))
    print(text, file=sys.stderr)
    report_to_torchrun(text, os.environ)
