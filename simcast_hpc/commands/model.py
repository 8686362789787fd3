"""``simcast model``: parameters, FLOPs and memory of a configured model, computed without allocating it."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simcast_hpc.config import AutoencoderConfig, ConfigError, TrainConfig

from . import model_plan
from .model_cost import cost_summary, cost_table, training_cost
from .model_read import dtype_of, read_run, subject_of
from .options import CommandGroup, ConfigFile, Overrides

if TYPE_CHECKING:
    from rich.table import Table

app = CommandGroup(help="Inspect the size, cost and memory of models.", no_args_is_help=True, rich_markup_mode=None)
app.command("plan")(model_plan.plan)


@app.command("info")
def info(
    config: ConfigFile,
    overrides: Overrides = None,
    stage: Annotated[
        str | None, typer.Option(help="Stage of a pipeline (default: the last).", show_default=False)
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Ranks over which ZeRO shards the model.")] = 1,
    gpu: Annotated[
        str, typer.Option(help="GPU of the estimated training cost: a100, h100, h200, mi250x or mi300x.")
    ] = "h100",
    utilization: Annotated[
        float, typer.Option(min=0.001, max=1.0, help="Assumed share of the GPU's peak FLOP/s.")
    ] = 0.3,
    windows: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Training windows, for cached rollouts and latents (default: the published number of the data set).",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print parameters, FLOPs, memory and estimated training cost of a configured model.

    Nothing is allocated or measured: the model is built without memory, and the cost is FLOPs / (peak FLOP/s x
    utilization).

    Example: simcast model info student/sevir-earthformer --ranks 8 --set batch.micro_size=1
    """
    target = read_run(config, overrides or (), stage)
    costs = _costs(target.run, target.grid, target.autoencoder, ranks)
    costs["training_cost"] = training_cost(
        target,
        parameters=costs["parameters"]["all"],
        training_flops=costs["flops"]["forward_and_backward"] / costs["micro_batch"],
        gpu_name=gpu,
        utilization=utilization,
        windows=windows,
    )
    if as_json:
        print(json.dumps(costs, indent=1))
    else:
        _print(costs)


def _costs(run: TrainConfig, grid: tuple[int, int], autoencoder: AutoencoderConfig, ranks: int) -> dict[str, Any]:
    from simcast_hpc.distributed.zero_memory import rank_bytes
    from simcast_hpc.planning.flops import model_cost

    try:
        network = subject_of(run, grid, autoencoder)
        account = model_cost(network, run.batch.micro_size, dtype_of(run))
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
        "can_recompute": bool(network.levels),
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

    from simcast_hpc.planning.training_cost import find_gpu

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
        if not costs["can_recompute"] and key.startswith("activations_"):
            continue
        by_kind.add_row(label, f"{memory[key] / 2**30:,.3f}")
    console.print(by_kind)
    console.print(_by_zero_stage(costs))
    gpu = find_gpu(costs["training_cost"]["gpu"])
    console.print(cost_table(costs["training_cost"], gpu))
    console.print(cost_summary(costs["training_cost"], gpu))
    if costs["stage"] == "autoencoder":
        console.print("The memory excludes the discriminator, which is fp32 and not sharded.")
    console.print("FLOP: matmuls and convolutions, a multiply-add counts as two.")


def _by_zero_stage(costs: dict[str, Any]) -> "Table":
    """Return a table of the memory for each ZeRO stage, without and with full activation checkpointing."""
    from rich.table import Table

    ranks, activations = costs["ranks"], costs["bytes_on_a_rank"]
    kinds = {"kept": "sum, no checkpointing", "recomputed": "sum, full checkpointing"}
    if not costs["can_recompute"]:
        kinds = {"kept": "sum"}
    table = Table("ZeRO", title=f"GiB per rank, {ranks} rank{'s' if ranks > 1 else ''}")
    for column in ("weights", "gradients", "optimizer", *kinds.values()):
        table.add_column(column, justify="right")
    for stage, memory in costs["bytes_on_a_rank_by_zero_stage"].items():
        states = sum(memory.values())
        sums = [states + activations[f"activations_{how}_all"] for how in kinds]
        numbers = [memory["weights"], memory["gradients"], memory["optimizer"], *sums]
        table.add_row(stage, *(f"{number / 2**30:,.3f}" for number in numbers))
    return table


_TITLES = {"autoencoder": "Autoencoder", "diffusion": "CasFormer"}
_MEMORY_LABELS = {
    "weights": "weights",
    "gradients": "gradients (fp32 accumulation)",
    "optimizer": "optimizer (fp32 master weights, two moments)",
    "activations": "activations for backward, as configured",
    "activations_kept_all": "  without activation checkpointing",
    "activations_recomputed_all": "  with full activation checkpointing",
}
