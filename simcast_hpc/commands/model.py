"""``simcast model``: parameters, FLOPs and memory of a configured model, computed without allocating it."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simcast_hpc.config import AutoencoderConfig, ConfigError, TrainConfig

from . import model_plan
from .model_read import dtype_of, read_run, subject_of
from .options import ConfigFile, Overrides

if TYPE_CHECKING:
    from rich.table import Table

    from simcast_hpc.planning.flops import ModelCost

app = typer.Typer(help="Analyze models and plan their memory.", no_args_is_help=True, rich_markup_mode=None)
app.command("plan")(model_plan.plan)


@app.command("info")
def info(
    config: ConfigFile,
    overrides: Overrides = None,
    stage: Annotated[
        str | None, typer.Option(help="Stage of a pipeline (default: the last).", show_default=False)
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Ranks over which ZeRO shards the model.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print parameters, FLOPs and memory of a configured model for one micro-batch.

    Example: simcast model info student/sevir-earthformer --ranks 8 --set batch.micro_size=1
    """
    target = read_run(config, overrides or (), stage)
    costs = _costs(target.run, target.grid, target.autoencoder, ranks)
    if as_json:
        print(json.dumps(costs, indent=1))
    else:
        _print(costs)


def _account(run: TrainConfig, grid: tuple[int, int], autoencoder: AutoencoderConfig) -> "ModelCost":
    from simcast_hpc.planning import flops

    return flops.model_cost(subject_of(run, grid, autoencoder), run.batch.micro_size, dtype_of(run))


def _costs(run: TrainConfig, grid: tuple[int, int], autoencoder: AutoencoderConfig, ranks: int) -> dict[str, Any]:
    from simcast_hpc.distributed.zero_memory import rank_bytes

    try:
        account = _account(run, grid, autoencoder)
    except ValueError as error:
        raise ConfigError(f"invalid model: {error}") from error
    parameters = sum(account.parameters.values())
    by_stage = {
        str(number): asdict(
            rank_bytes(parameters, engine=run.engine.model_copy(update={"zero_stage": number}), world_size=ranks)
        )
        for number in range(1 if run.engine.precision == "bf16" else 0, 4)  # bf16 requires ZeRO 1 or higher
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
            "activations_kept_all": account.activation_bytes_without_checkpointing,
            "activations_recomputed_all": account.activation_bytes_with_checkpointing,
        },
        "bytes_on_a_rank_by_zero_stage": by_stage,
    }


def _print(costs: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    parameters, flops, memory = costs["parameters"], costs["flops"], costs["bytes_on_a_rank"]
    height, width = costs["grid"]
    console = Console(markup=False)
    console.print(
        f"{costs['model']}, stage {costs['stage']}: {costs['frames_in']} -> {costs['frames_out']} frames of "
        f"{height} x {width} pixels, micro-batch {costs['micro_batch']}, {costs['precision']}"
    )
    parts = Table("Part", "Parameters", "Forward GFLOP", title="By part")
    for column in parts.columns[1:]:
        column.justify = "right"
    for name in dict.fromkeys([*parameters["by_part"], *flops["forward_by_part"]]):
        count, work = parameters["by_part"].get(name, 0), flops["forward_by_part"].get(name, 0)
        parts.add_row(name or "(top level)", f"{count:,}", f"{work / 1e9:,.2f}")
    parts.add_section()
    parts.add_row("all", f"{parameters['all']:,}", f"{flops['forward'] / 1e9:,.2f}")
    parts.add_row("forward and backward", "", f"{flops['forward_and_backward'] / 1e9:,.2f}")
    console.print(parts)
    sharding = f"ZeRO stage {costs['zero_stage']}, {costs['ranks']} rank{'s' if costs['ranks'] != 1 else ''}"
    by_kind = Table("Per rank", "GiB", title=f"Training memory ({sharding})")
    by_kind.columns[1].justify = "right"
    for key, label in _MEMORY_LABELS.items():
        by_kind.add_row(label, f"{memory[key] / 2**30:,.3f}")
    console.print(by_kind)
    console.print(_by_zero_stage(costs))
    if costs["stage"] == "autoencoder":
        console.print("Not counted: the discriminator, which is not sharded and stored in fp32.")
    console.print("FLOP: matmuls and convolutions, a multiply-add counts as two.")


def _by_zero_stage(costs: dict[str, Any]) -> "Table":
    """Return a table of the memory for each ZeRO stage, with all activations kept or recomputed."""
    from rich.table import Table

    ranks, activations = costs["ranks"], costs["bytes_on_a_rank"]
    table = Table("ZeRO", title=f"GiB per rank, {ranks} rank{'s' if ranks > 1 else ''}")
    for column in ("weights", "gradients", "optimizer", "sum, all kept", "sum, recomputed"):
        table.add_column(column, justify="right")
    for stage, memory in costs["bytes_on_a_rank_by_zero_stage"].items():
        states = sum(memory.values())
        sums = [states + activations[f"activations_{how}_all"] for how in ("kept", "recomputed")]
        numbers = [memory["weights"], memory["gradients"], memory["optimizer"], *sums]
        table.add_row(stage, *(f"{number / 2**30:,.3f}" for number in numbers))
    return table


_TITLES = {"autoencoder": "Autoencoder", "diffusion": "CasFormer"}
_MEMORY_LABELS = {
    "weights": "weights",
    "gradients": "gradients (fp32 accumulation)",
    "optimizer": "optimizer (fp32 master weights, two moments)",
    "activations": "activations for backward, as configured",
    "activations_kept_all": "  without recomputation",
    "activations_recomputed_all": "  with full recomputation",
}
