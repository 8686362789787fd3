"""``simcast export``: a finished run as files that other systems load without this project."""

from pathlib import Path
from typing import Annotated

import typer

EXPORT_HELP = """Write a finished run as a torch.export program, safetensors, configuration and model card.

The program holds PyTorch's own operations alone and is loaded by torch.export.load where simcast_hpc is not
installed. It is compared with the network before OUT appears. Runs of the stages teacher, direct, student and
autoencoder are taken, and weights of simcast convert.

Example: simcast export runs/sevir/student exported/student --scores scores/test.json
"""


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, not of a pipeline.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not be there.", show_default=False)],
    grid: Annotated[
        tuple[int, int] | None,
        typer.Option(
            help="Height and width of the frames. By default the model's own, else its data's.",
            metavar="HEIGHT WIDTH",
            show_default=False,
        ),
    ] = None,
    scores: Annotated[
        list[str] | None,
        typer.Option(
            help="A result of simcast evaluate for the card, FILE or ROW=FILE; may be repeated. By default those of "
            "the pipeline that trained the run.",
            show_default=False,
        ),
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write ONNX besides (extra [onnx]).")] = False,
) -> None:
    """Write a finished run as a torch.export program, safetensors, configuration and model card."""
    from simcast_hpc.export import export_run

    found = export_run(run, out, grid=grid, scores=scores or (), onnx=onnx)
    for name, difference in found.differences.items():
        print(f"{out / name}: differs from the network by {difference:.1e} at most")
    for said in found.not_carried:
        print(f"not written: {said}")
    print(f"card: {out / 'README.md'}")
