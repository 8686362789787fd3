"""``simcast model plan``: ZeRO stage, offload, recomputation and micro-batch with which a model fits into memory."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simcast_hpc.config import FORECASTING, ConfigError, EarthformerConfig, SimcastError

from .model_read import ModelTarget, auxiliary_bytes, dtype_of, read_run, subject_of
from .options import ConfigFile, Overrides

if TYPE_CHECKING:
    import torch

    from simcast_hpc.planning.memory_plan import Machine, MemoryEstimate, ModelMemory

_GIB = 2**30
_WIDTH = 160


class NothingFitsError(SimcastError, RuntimeError):
    """No plan fits into the memory."""


def plan(
    config: ConfigFile,
    gpus: Annotated[int, typer.Option(min=1, help="Total number of GPUs.")],
    memory: Annotated[float, typer.Option(min=0.1, help="Memory per GPU in GiB.")],
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes.")] = 1,
    overrides: Overrides = None,
    stage: Annotated[
        str | None, typer.Option(help="Stage of a pipeline (default: the last).", show_default=False)
    ] = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Measure the cost of recomputation by training steps on this machine."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find the ZeRO stage, offload, activation checkpointing and micro-batch with which a model fits into memory.

    The memory is computed without allocating the model. Among the plans that fit, the one with the least recomputation
    is recommended. The exit status is 1 if no plan fits.

    Example: simcast model plan direct/synthetic-earthformer --gpus 2 --memory 16
    """
    from simcast_hpc.planning.memory_plan import Machine, estimate_plans, first_fit, smallest_gpu_count

    machine = Machine(gpus=gpus, nodes=nodes, memory=memory * _GIB)
    target = read_run(config, overrides or (), stage)
    device = _device() if measure else None
    facts = _facts(target, device)
    run = target.run
    plans = estimate_plans(facts, machine, run.batch, run.engine)
    best = first_fit(plans, machine)
    if as_json:
        print(json.dumps(_as_json(target, facts, machine, plans, best, method=_method(device)), indent=1))
    else:
        _print(target, facts, machine, plans, best, method=_method(device))
    if best is None:
        _raise_nothing_fits(facts, machine, plans, smallest_gpu_count(facts, machine, run.batch, run.engine))


def _device() -> "torch.device":
    from simcast_hpc.inference.trained_model import forecast_device

    return forecast_device()


def _method(device: "torch.device | None") -> str:
    return (
        "computed, not measured" if device is None else f"memory computed, cost of recomputation measured on {device}"
    )


def _facts(target: ModelTarget, device: "torch.device | None") -> "ModelMemory":
    """Return the costs of the run's network; those of recomputation are measured if a ``device`` is given.

    Raises:
        ConfigError: its sizes are inconsistent, or a step does not fit into the memory of the device.
    """
    from simcast_hpc.planning.memory_plan import model_memory
    from simcast_hpc.planning.recompute import measured_costs
    from simcast_hpc.planning.row_shard_cost import CountedRowShards, row_sharded

    run, dtype = target.run, dtype_of(target.run)
    try:
        subject = subject_of(run, target.grid, target.autoencoder)
        auxiliary, more = auxiliary_bytes(run, target.grid, target.autoencoder)
        spatial = run.parallel.spatial
        if spatial > 1:
            subject = row_sharded(subject, CountedRowShards(spatial))
        averaged = run.ema.decay is not None
        costs = None if device is None else measured_costs(subject, dtype=dtype, device=device)
        return model_memory(
            subject,
            dtype=dtype,
            ema=averaged,
            auxiliary=auxiliary,
            auxiliary_activations=more,
            costs=costs,
            spatial=spatial,
        )
    except ValueError as error:
        raise ConfigError(f"invalid model: {error}") from error


def _settings(target: ModelTarget, need: "MemoryEstimate") -> list[str]:
    """Return the overrides ``key=value`` of a plan."""
    run, choice = target.run, need.plan
    engine = choice.engine
    settings = [f"engine.zero_stage={engine.zero_stage}", f"engine.offload={engine.offload}"]
    if run.parallel.spatial > 1:
        settings.append(f"parallel.spatial={run.parallel.spatial}")
    if engine.zero_hpz_partition_size > 1:
        settings.append(f"engine.zero_hpz_partition_size={engine.zero_hpz_partition_size}")
    if run.stage == "autoencoder":
        settings.append(f"autoencoder.model.checkpoint={str(bool(choice.recompute.levels)).lower()}")
    elif run.stage == "diffusion":
        settings.append(f"diffusion.casformer.checkpoint={str(bool(choice.recompute.levels)).lower()}")
    elif isinstance(run.model, EarthformerConfig):
        settings.append(f"model.checkpoint_levels={list(choice.recompute.levels)}".replace(" ", ""))
    settings.append(f"batch.micro_size={choice.micro_batch}")
    return [target.prefix + setting for setting in settings]


def _as_json(
    target: ModelTarget,
    facts: "ModelMemory",
    machine: "Machine",
    plans: "list[MemoryEstimate]",
    best: "MemoryEstimate | None",
    *,
    method: str,
) -> dict[str, Any]:
    def as_data(need: "MemoryEstimate") -> dict[str, Any]:
        engine = need.plan.engine
        return {
            "zero_stage": engine.zero_stage,
            "offload": engine.offload,
            "zero_hpz_partition_size": engine.zero_hpz_partition_size,
            "recomputed_levels": list(need.plan.recompute.levels),
            "step_time_increase": round(need.plan.recompute.cost, 4),
            "micro_batch": need.plan.micro_batch,
            "bytes_on_a_gpu": {**need.parts, "all": need.total},
            "bytes_on_a_host": need.host_per_node,
            "fits": need.total <= machine.memory,
            "bottleneck": need.bottleneck,
        }

    return {
        "method": method,
        "stage": target.run.stage,
        "parameters": sum(facts.sizes),
        "gpus": machine.gpus,
        "nodes": machine.nodes,
        "memory_bytes": int(machine.memory),
        "global_batch": target.run.batch.global_size,
        "precision": target.run.engine.precision,
        "recommended": best
        and {
            **as_data(best),
            "traffic": _traffic(target, facts, machine, best),
            "set": _settings(target, best),
        },
        "plans": [as_data(need) for need in plans],
    }


def _traffic(target: ModelTarget, facts: "ModelMemory", machine: "Machine", need: "MemoryEstimate") -> dict[str, int]:
    """Return the bytes that a GPU sends in an optimizer step of a plan, and the number of collectives.

    With spatial sharding also those within the GPUs that share a sample, in the keys ``spatial_...``.
    """
    from simcast_hpc.planning.step_traffic import sent_bytes_per_rank, traffic

    engine, steps = need.plan.engine, _steps(target, machine, need)
    total = traffic(sum(facts.sizes), engine=engine, accumulation=steps)
    sent = sent_bytes_per_rank(total, ranks=machine.gpus, partition=engine.zero_hpz_partition_size)
    counts = {"sent_bytes": round(sent), "collectives": total.rings + total.reductions}
    if facts.spatial == 1:
        return counts
    from simcast_hpc.planning.row_shard_cost import shard_traffic

    own = shard_traffic(
        subject_of(target.run, target.grid, target.autoencoder),
        spatial=facts.spatial,
        levels=need.plan.recompute.levels,
        micro_batch=need.plan.micro_batch,
        dtype=dtype_of(target.run),
    )
    return counts | {"spatial_sent_bytes": round(steps * own.sent_bytes), "spatial_exchanges": steps * own.exchanges}


def _steps(target: ModelTarget, machine: "Machine", need: "MemoryEstimate") -> int:
    """Return the micro-batches per optimizer step of a GPU."""
    run = target.run
    return run.batch.global_size // (need.plan.micro_batch * run.parallel.groups(machine.gpus))


def _print(
    target: ModelTarget,
    facts: "ModelMemory",
    machine: "Machine",
    plans: "list[MemoryEstimate]",
    best: "MemoryEstimate | None",
    *,
    method: str,
) -> None:
    from rich.console import Console
    from rich.table import Table

    # 1. Run and machine
    run = target.run
    console = Console(markup=False, width=max(_WIDTH, Console().width))  # a narrow terminal must not drop columns
    gpus = f"{machine.gpus} GPU{'s' if machine.gpus > 1 else ''} of {machine.memory / _GIB:g} GiB"
    console.print(
        f"Stage {run.stage}: {sum(facts.sizes):,} parameters, {run.engine.precision}, global batch "
        f"{run.batch.global_size}, on {gpus} on {machine.nodes} node{'s' if machine.nodes > 1 else ''}. "
        f"{method.capitalize()}."
    )
    # 2. One row per plan
    table = Table("ZeRO", "offload", "recomputed", title="GiB per GPU, with the largest micro-batch that fits, or 1")
    parts = [part for part in plans[0].parts if any(need.parts[part] for need in plans)]
    for column in ("step time", "micro-batch", *parts, "sum", "host"):
        table.add_column(column, justify="right")
    table.add_column("")
    for need in plans:
        engine = need.plan.engine
        hpz = engine.zero_hpz_partition_size
        fits = need.total <= machine.memory
        mark = "<- recommended" if need is best else "fits" if fits else f"too large: {need.bottleneck}"
        numbers = [f"{need.parts[part] / _GIB:,.2f}" for part in parts]
        table.add_row(
            f"{engine.zero_stage}{f' hpZ {hpz}' if hpz > 1 else ''}",
            engine.offload,
            _levels(target, need),
            f"+{100 * need.plan.recompute.cost:.0f} %",
            str(need.plan.micro_batch),
            *numbers,
            f"{need.total / _GIB:,.2f}",
            f"{need.host_per_node / _GIB:,.1f}",
            mark,
        )
    console.print(table)
    console.print(_LEGEND)

    # 3. The recommended plan and its settings
    if best is None:
        return
    steps = _steps(target, machine, best)
    free = machine.memory - best.total
    console.print(
        f"The largest part is {best.bottleneck}; {free / _GIB:.2f} GiB remain free; {steps} "
        f"micro-batch{'es' if steps > 1 else ''} per step.\n"
        "Order of preference: no offload, least recomputation, lowest ZeRO stage, largest micro-batch."
    )
    sent = _traffic(target, facts, machine, best)
    if machine.gpus > 1:
        console.print(
            f"Each GPU sends {sent['sent_bytes'] / _GIB:.3f} GiB per step in {sent['collectives']} collective(s); "
            f"gradients are reduced in {best.plan.engine.gradient_reduction}."
        )
    if facts.spatial > 1:
        console.print(
            f"With parallel.spatial={facts.spatial} it also sends {sent['spatial_sent_bytes'] / _GIB:.3f} GiB per step "
            f"in {sent['spatial_exchanges']} exchanges within the {facts.spatial} GPUs that share a sample."
        )
    print(" ".join(f"--set {word}" for word in _settings(target, best)))


def _levels(target: ModelTarget, need: "MemoryEstimate") -> str:
    levels = need.plan.recompute.levels
    by_level = target.run.stage in FORECASTING and isinstance(target.run.model, EarthformerConfig)
    return ", ".join(map(str, levels)) if levels and by_level else "yes" if levels else "no"


def _raise_nothing_fits(
    facts: "ModelMemory", machine: "Machine", plans: "list[MemoryEstimate]", more: int | None
) -> None:
    least = min(plans, key=lambda need: need.total)
    lacking = (least.total - machine.memory) / _GIB
    engine = least.plan.engine
    gpus = f"{more} GPUs of this size suffice" if more else "more GPUs of this size do not suffice (1 sample per GPU)"
    advice = {
        "activations": "use a smaller grid, fewer frames or a narrower model",
        "buffers": "gathered and reduced weights: use a smaller model",
    }.get(least.bottleneck, "use more GPUs to shard it further")
    raise NothingFitsError(
        f"no plan fits into {machine.memory / _GIB:g} GiB: the smallest needs {least.total / _GIB:.2f} GiB (ZeRO "
        f"{engine.zero_stage}, offload {engine.offload}, micro-batch {least.plan.micro_batch}"
        f"{', recomputed' if least.plan.recompute.levels else ''}), {lacking:.2f} GiB too much; its largest part is "
        f"{least.bottleneck} with {least.parts[least.bottleneck] / _GIB:.2f} GiB: {advice}; {gpus}"
    )


_LEGEND = (
    "weights, gradients, optimizer: as sharded by ZeRO. ema: EMA of the weights. auxiliary: teacher, discriminator.\n"
    "activations: peak of forward and backward. recomputed: levels with activation checkpointing; step time: cost\n"
    "in FLOPs or, with --measure, in time. buffers: gradients in reduction, gathered weights, the second copy of hpZ.\n"
    "margin: 1 GiB for CUDA and NCCL and 10 % of activations and buffers, both assumed. host: per node. Kernels and\n"
    "validation may need more for short times."
)
