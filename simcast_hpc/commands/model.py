"""``simcast model``: what a configured model is and costs, without a GPU and without its memory."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from simcast_hpc.config import AutoencoderConfig, ConfigError, TrainConfig

from . import model_plan
from .model_read import DTYPES, read_run, subject_of
from .options import ConfigFile, Overrides

if TYPE_CHECKING:
    from simcast_hpc.planning.flops import Account

app = typer.Typer(help="Look at models.", no_args_is_help=True)


@app.callback()
def model() -> None:
    """Look at models."""


app.command("plan")(model_plan.plan)


@app.command("info")
def info(
    config: ConfigFile,
    overrides: Overrides = None,
    stage: Annotated[str | None, typer.Option(help="Of a pipeline: which stage; by default its last.")] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Ranks that ZeRO shares the model out to.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Count the parameters, operations and bytes of a configured model, on one micro batch; nothing is trained.

    Example: simcast model info configs/student/sevir-earthformer.yaml --ranks 8 --set batch.micro_size=1
    """
    asked = read_run(config, overrides or (), stage)
    found = _found(asked.run, asked.grid, asked.autoencoder, ranks)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        _print(found)


def _account(run: TrainConfig, grid: tuple[int, int], autoencoder: AutoencoderConfig) -> "Account":
    from simcast_hpc.planning import flops as account

    dtype = DTYPES[run.engine.precision]
    return account.account(subject_of(run, grid, autoencoder), run.batch.micro_size, dtype)


def _found(run: TrainConfig, grid: tuple[int, int], autoencoder: AutoencoderConfig, ranks: int) -> dict[str, Any]:
    from simcast_hpc.distributed.zero_memory import rank_bytes

    try:
        account = _account(run, grid, autoencoder)
    except ValueError as error:
        raise ConfigError(f"the model does not fit: {error}") from error
    parameters = sum(account.parameters.values())
    by_stage = {
        str(number): asdict(
            rank_bytes(parameters, engine=run.engine.model_copy(update={"zero_stage": number}), world_size=ranks)
        )
        for number in range(1 if run.engine.precision == "bf16" else 0, 4)  # bf16 without ZeRO is refused
    }
    return {
        "model": _TITLES.get(run.stage) or run.model.title,
        "stage": run.stage,
        "frames_in": run.sequence.frames_in,
        "frames_out": run.frames_out,
        "grid": list(grid),
        "micro_batch": run.batch.micro_size,
        "precision": run.engine.precision,
        "zero_stage": run.engine.zero_stage,
        "ranks": ranks,
        "parameters": {"all": parameters, "by_part": account.parameters},
        "flops": {
            "forward": sum(account.forward_flops.values()),
            "forward_and_backward": account.training_flops,
            "forward_by_part": account.forward_flops,
        },
        "bytes_on_a_rank": {
            **by_stage[str(run.engine.zero_stage)],
            "activations": account.activation_bytes,
            "activations_kept_all": account.activation_bytes_kept_all,
            "activations_recomputed_all": account.activation_bytes_recomputed_all,
        },
        "bytes_on_a_rank_by_zero_stage": by_stage,
    }


def _print(found: dict[str, Any]) -> None:
    parameters, flops, held = found["parameters"], found["flops"], found["bytes_on_a_rank"]
    height, width = found["grid"]
    console = Console()
    console.print(
        f"{found['model']}, stage {found['stage']}: {found['frames_in']} -> {found['frames_out']} frames of "
        f"{height} x {width} pixels, micro batch {found['micro_batch']}, {found['precision']}"
    )
    parts = Table("Part", "Parameters", "Forward GFLOP", title="By part")
    for column in parts.columns[1:]:
        column.justify = "right"
    for name in dict.fromkeys([*parameters["by_part"], *flops["forward_by_part"]]):
        count, work = parameters["by_part"].get(name, 0), flops["forward_by_part"].get(name, 0)
        parts.add_row(name or "itself", f"{count:,}", f"{work / 1e9:,.2f}")
    parts.add_section()
    parts.add_row("all", f"{parameters['all']:,}", f"{flops['forward'] / 1e9:,.2f}")
    parts.add_row("forward and backward", "", f"{flops['forward_and_backward'] / 1e9:,.2f}")
    console.print(parts)
    place = f"ZeRO stage {found['zero_stage']}, {found['ranks']} rank{'s' if found['ranks'] != 1 else ''}"
    memory = Table("On each rank", "GiB", title=f"Bytes in training ({place})")
    memory.columns[1].justify = "right"
    for key, words in _HELD.items():
        memory.add_row(words, f"{held[key] / 2**30:,.3f}")
    console.print(memory)
    console.print(_by_zero_stage(found))
    if found["stage"] == "autoencoder":
        console.print("The discriminator is not counted: each rank holds it whole, in fp32.")
    console.print("FLOP: matrix products and convolutions, a multiplication and its addition as two.")


def _by_zero_stage(found: dict[str, Any]) -> Table:
    """Return the same bytes for each stage of ZeRO, and their sums with the activations either way."""
    ranks, activations = found["ranks"], found["bytes_on_a_rank"]
    table = Table("ZeRO", title=f"GiB on each of {ranks} ranks" if ranks > 1 else "GiB on one rank")
    for column in ("weights", "gradients", "optimizer", "sum, all kept", "sum, recomputed"):
        table.add_column(column, justify="right")
    for stage, held in found["bytes_on_a_rank_by_zero_stage"].items():
        states = sum(held.values())
        sums = [states + activations[f"activations_{how}_all"] for how in ("kept", "recomputed")]
        numbers = [held["weights"], held["gradients"], held["optimizer"], *sums]
        table.add_row(stage, *(f"{number / 2**30:,.3f}" for number in numbers))
    return table


_TITLES = {"autoencoder": "Autoencoder", "diffusion": "CasFormer"}
_HELD = {
    "weights": "weights",
    "gradients": "gradients (fp32 sums)",
    "optimizer": "optimizer (fp32 masters, two moments)",
    "activations": "activations kept for backward, as configured",
    "activations_kept_all": "  if no level were computed again",
    "activations_recomputed_all": "  if every level were",
}
