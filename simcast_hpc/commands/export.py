"""``simcast export``: write a trained model in formats that load without this project."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="Run directory of one finished stage.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Folder to create; it must not exist.", show_default=False)],
    grid: Annotated[
        tuple[int, int] | None,
        typer.Option(
            help="Height and width of the frames in pixels (default: the grid of the model or of its data).",
            metavar="HEIGHT WIDTH",
            show_default=False,
        ),
    ] = None,
    scores: Annotated[
        list[str] | None,
        typer.Option(
            help="Score file of simcast evaluate for the model card, FILE or ROW=FILE (repeatable; default: the scores "
            "of the pipeline that trained the run).",
            metavar="[ROW=]FILE",
            show_default=False,
        ),
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also write ONNX (requires the extra [onnx]).")] = False,
) -> None:
    """Export a trained model as a torch.export program, safetensors, configuration and model card.

    Reads a run of stage teacher, direct, student or autoencoder, or the output of simcast convert. The exported program
    contains only operators of PyTorch: torch.export.load reads it without simcast_hpc. Its output is compared with that
    of the model before OUT is created.

    Example: simcast export runs/sevir/student exported/student --scores scores/test.json
    """
    from simcast_hpc.export import export_run

    exported = export_run(run, out, grid=grid, scores=scores or (), onnx=onnx)
    for name, difference in exported.differences.items():
        print(f"{out / name}: max. difference from the model {difference:.1e}")
    for reason in exported.onnx_failures:
        print(f"not written: {reason}")
    print(f"model card: {out / 'README.md'}")
