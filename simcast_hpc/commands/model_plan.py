"""``simcast model plan``: how a configured model fits onto GPUs, and with which options."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from simcast_hpc.config import FORECASTING, AutoencoderConfig, ConfigError, EarthformerConfig, SimcastError, TrainConfig

from .model_read import DTYPES, Asked, read_run, subject_of
from .options import ConfigFile, Overrides

if TYPE_CHECKING:
    import torch

    from simcast_hpc.planning.memory_plan import Facts, Machine, Need

_GIB = 2**30
_WIDTH = 140
_ADAM_STATES = 4


class NothingFitsError(SimcastError, RuntimeError):
    """No way to hold the model fits into the memory."""


def plan(
    config: ConfigFile,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs in all.")],
    memory: Annotated[float, typer.Option(min=0.1, help="Memory of each GPU, in GiB.")],
    nodes: Annotated[int, typer.Option(min=1, help="Nodes that the GPUs are on.")] = 1,
    overrides: Overrides = None,
    stage: Annotated[str | None, typer.Option(help="Of a pipeline: which stage; by default its last.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time real steps here for what computing again costs; else it is counted.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Say which ZeRO stage, offload, recomputation and micro batch fit onto GPUs, and why.

    All is computed and nothing allocated, but with --measure. Of what fits, least is computed again.

    Status 1 where nothing fits.

    Example: simcast model plan configs/direct/synthetic-earthformer.yaml --gpus 2 --memory 16
    """
    from simcast_hpc.planning.memory_plan import Machine, first_fit, gpus_that_fit, needs

    machine = Machine(gpus=gpus, nodes=nodes, memory=memory * _GIB)
    asked = read_run(config, overrides or (), stage)
    device = _device() if measure else None
    facts = _facts(asked, device)
    run = asked.run
    found = needs(facts, machine, run.batch, run.engine)
    best = first_fit(found, machine)
    if as_json:
        print(json.dumps(_as_json(asked, facts, machine, found, best, how=_how(device)), indent=1))
    else:
        _print(asked, facts, machine, found, best, how=_how(device))
    if best is None:
        _reject(facts, machine, found, gpus_that_fit(facts, machine, run.batch, run.engine))


def _device() -> "torch.device":
    from simcast_hpc.inference.load import forecast_device

    return forecast_device()


def _how(device: "torch.device | None") -> str:
    return (
        "computed, not measured" if device is None else f"bytes computed, costs of computing again measured on {device}"
    )


def _facts(asked: Asked, device: "torch.device | None") -> "Facts":
    """Return what the run's network costs; what computing again does, by real steps on ``device`` where one is given.

    Raises:
        ConfigError: its sizes do not fit one another, or a step does not fit onto the device.
    """
    from simcast_hpc.planning.memory_plan import facts_of
    from simcast_hpc.planning.recompute import measured_costs

    run, dtype = asked.run, DTYPES[asked.run.engine.precision]
    try:
        subject = subject_of(run, asked.grid, asked.autoencoder)
        beside, more = _beside(run, asked.grid, asked.autoencoder)
        averaged = run.ema.decay is not None
        costs = None if device is None else measured_costs(subject, dtype=dtype, device=device)
        return facts_of(subject, dtype=dtype, averaged=averaged, beside=beside, more_activations=more, costs=costs)
    except ValueError as error:
        raise ConfigError(f"the model does not fit: {error}") from error


def _beside(run: TrainConfig, grid: tuple[int, int], autoencoder: AutoencoderConfig) -> tuple[int, int]:
    """Return the bytes of networks beside the engine's on the device, and what they need for a sample besides."""
    import torch

    from simcast_hpc.models.discriminator import Discriminator
    from simcast_hpc.planning.peak_memory import peak_bytes

    if run.stage == "autoencoder":
        with torch.device("meta"):
            network = Discriminator(run.autoencoder.discriminator)
        # It is plain fp32, whole on every rank with its gradients and Adam's moments, and sees true and made frames.
        seen = peak_bytes(network, torch.empty(2, 1, *grid, device="meta"))
        return 4 * _ADAM_STATES * sum(parameter.numel() for parameter in network.parameters()), seen
    online = run.stage == "student" and run.student.extension == "teacher" and run.student.rollouts == "online"
    if not online:
        return 0, 0
    teacher = run.model_copy(update={"stage": "teacher"})
    dtype = DTYPES[run.engine.precision]
    made = subject_of(teacher, grid, autoencoder).on_meta(None, dtype)
    return dtype.itemsize * sum(parameter.numel() for parameter in made.parameters()), 0


def _settings(asked: Asked, need: "Need") -> list[str]:
    """Return the ``key=value`` of a choice."""
    run, choice = asked.run, need.choice
    engine = choice.engine
    said = [f"engine.zero_stage={engine.zero_stage}", f"engine.offload={engine.offload}"]
    if engine.zero_hpz_partition_size > 1:
        said.append(f"engine.zero_hpz_partition_size={engine.zero_hpz_partition_size}")
    if run.stage == "autoencoder":
        said.append(f"autoencoder.model.checkpoint={str(bool(choice.again.levels)).lower()}")
    elif run.stage == "diffusion":
        said.append(f"diffusion.casformer.checkpoint={str(bool(choice.again.levels)).lower()}")
    elif isinstance(run.model, EarthformerConfig):
        said.append(f"model.checkpoint_levels={list(choice.again.levels)}".replace(" ", ""))
    said.append(f"batch.micro_size={choice.micro}")
    return [asked.prefix + word for word in said]


def _as_json(
    asked: Asked, facts: "Facts", machine: "Machine", found: "list[Need]", best: "Need | None", *, how: str
) -> dict[str, Any]:
    def told(need: "Need") -> dict[str, Any]:
        engine = need.choice.engine
        return {
            "zero_stage": engine.zero_stage,
            "offload": engine.offload,
            "zero_hpz_partition_size": engine.zero_hpz_partition_size,
            "computed_again": list(need.choice.again.levels),
            "longer_step": round(need.choice.again.cost, 4),
            "micro_batch": need.choice.micro,
            "bytes_on_a_gpu": {**need.parts, "all": need.total},
            "bytes_on_a_host": need.host_of_a_node,
            "fits": need.total <= machine.memory,
            "bottleneck": need.bottleneck,
        }

    return {
        "how": how,
        "stage": asked.run.stage,
        "parameters": sum(facts.sizes),
        "gpus": machine.gpus,
        "nodes": machine.nodes,
        "memory_bytes": int(machine.memory),
        "global_batch": asked.run.batch.global_size,
        "precision": asked.run.engine.precision,
        "recommended": best and {**told(best), "set": _settings(asked, best)},
        "ways": [told(need) for need in found],
    }


def _print(
    asked: Asked, facts: "Facts", machine: "Machine", found: "list[Need]", best: "Need | None", *, how: str
) -> None:
    run = asked.run
    console = Console(width=max(_WIDTH, Console().width))  # a narrow terminal wraps lines, and loses no column
    gpus = f"{machine.gpus} GPU{'s' if machine.gpus > 1 else ''} of {machine.memory / _GIB:g} GiB"
    console.print(
        f"Stage {run.stage}: {sum(facts.sizes):,} parameters, {run.engine.precision}, global batch "
        f"{run.batch.global_size}, on {gpus} on {machine.nodes} node{'s' if machine.nodes > 1 else ''}. "
        f"{how.capitalize()}."
    )
    table = Table("ZeRO", "offload", "again", title="GiB on each GPU, with the largest micro batch that fits, or 1")
    parts = [part for part in found[0].parts if any(need.parts[part] for need in found)]
    for column in ("step", "micro", *parts, "sum", "host"):
        table.add_column(column, justify="right")
    table.add_column("")
    for need in found:
        engine = need.choice.engine
        hpz = engine.zero_hpz_partition_size
        fits = need.total <= machine.memory
        mark = "<- this" if need is best else "fits" if fits else f"too large: {need.bottleneck}"
        numbers = [f"{need.parts[part] / _GIB:,.2f}" for part in parts]
        table.add_row(
            f"{engine.zero_stage}{f' hpZ {hpz}' if hpz > 1 else ''}",
            engine.offload,
            _levels(asked, need),
            f"+{100 * need.choice.again.cost:.0f} %",
            str(need.choice.micro),
            *numbers,
            f"{need.total / _GIB:,.2f}",
            f"{need.host_of_a_node / _GIB:,.1f}",
            mark,
        )
    console.print(table)
    console.print(_LEGEND)
    if best is None:
        return
    steps = run.batch.global_size // (best.choice.micro * machine.gpus)
    free = machine.memory - best.total
    console.print(
        f"The largest part is {best.bottleneck}; {free / _GIB:.2f} GiB stay free; {steps} micro "
        f"batch{'es' if steps > 1 else ''} a step.\n"
        "Taken in this order: nothing on the host, least computed again, the lowest ZeRO stage, the largest micro "
        "batch."
    )
    print(" ".join(f"--set {word}" for word in _settings(asked, best)))


def _levels(asked: Asked, need: "Need") -> str:
    levels = need.choice.again.levels
    by_level = asked.run.stage in FORECASTING and isinstance(asked.run.model, EarthformerConfig)
    return ", ".join(map(str, levels)) if levels and by_level else "yes" if levels else "no"


def _reject(facts: "Facts", machine: "Machine", found: "list[Need]", more: int | None) -> None:
    least = min(found, key=lambda need: need.total)
    lacking = (least.total - machine.memory) / _GIB
    engine = least.choice.engine
    way = f"{more} GPUs of this size would do" if more else "no number of GPUs of this size up to one a sample would do"
    said = {
        "activations": "a smaller grid, fewer frames or a narrower model would help",
        "buffers": "weights that are gathered or reduced at a time: a smaller model would help",
    }.get(least.bottleneck, "more GPUs share it out further")
    raise NothingFitsError(
        f"nothing fits into {machine.memory / _GIB:g} GiB: the least is {least.total / _GIB:.2f} GiB (ZeRO "
        f"{engine.zero_stage}, offload {engine.offload}, micro batch {least.choice.micro}"
        f"{', computed again' if least.choice.again.levels else ''}), {lacking:.2f} GiB too much, and its largest part "
        f"is {least.bottleneck} with {least.parts[least.bottleneck] / _GIB:.2f} GiB; {said}; {way}"
    )


_LEGEND = (
    "weights, gradients, optimizer: ZeRO's account. average: of the weights (EMA). beside: a teacher or a\n"
    "discriminator. activations: all that forward and backward hold at once. again: computed again in backward, of\n"
    "Earthformer which levels; step: by how much that makes a step longer, in operations or, with --measure, in time.\n"
    "buffers: gradients on their way, gathered weights, the second copy of hpZ. margin: 1 GiB for CUDA and NCCL and\n"
    "10 % of activations and buffers, both assumed. host: on each node. Kernels and validation may need more for\n"
    "moments."
)
