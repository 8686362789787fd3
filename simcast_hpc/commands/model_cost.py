"""Estimated training cost of a configuration, for ``simcast model info``: GPU-hours by part, and storage."""

from typing import TYPE_CHECKING, Any

from simcast_hpc.config import TrainConfig

from .model_read import ModelTarget, dtype_of, subject_of, teacher_of

if TYPE_CHECKING:
    from rich.table import Table

    from simcast_hpc.planning.training_cost import Gpu, Work

LABEL = "estimate, not measured"


def training_cost(
    target: ModelTarget,
    *,
    parameters: int,
    training_flops: float,
    gpu_name: str,
    utilization: float,
    windows: int | None = None,
) -> dict[str, Any]:
    """Return the estimated GPU-hours and bytes of storage of a training run.

    Args:
        target: the run.
        parameters: of its network.
        training_flops: FLOPs of a forward and a backward pass of one sample.
        gpu_name: key of :data:`simcast_hpc.planning.training_cost.GPUS`.
        utilization: assumed share of the peak FLOP/s.
        windows: number of training windows; by default the published number of the data set, if it has one.

    Raises:
        ConfigError: the GPU is unknown.
    """
    from simcast_hpc.planning.training_cost import DATASET_SIZES, UTILIZATION_RANGE, find_gpu

    gpu, run = find_gpu(gpu_name), target.run
    if windows is None and run.data.dataset in DATASET_SIZES:
        windows = DATASET_SIZES[run.data.dataset].training_windows
    parts = training_work(target, training_flops, windows)

    def hours(share: float) -> float:
        return sum(part.gpu_hours(gpu, share) for part in parts)

    return {
        "label": LABEL,
        "gpu": gpu_name,
        "peak_tflops": {"bf16": gpu.bf16_tflops, "fp32": gpu.fp32_tflops},
        "utilization": utilization,
        "samples": run.max_steps * run.batch.global_size,
        "training_windows": windows,
        "flops": sum(part.flops for part in parts),
        "gpu_hours": hours(utilization),
        "gpu_hours_by_utilization": {f"{share:g}": hours(share) for share in UTILIZATION_RANGE},
        "parts": [
            {
                "part": part.part,
                "samples": part.samples,
                "flops_per_sample": part.flops_per_sample,
                "precision": part.precision,
                "gpu_hours": part.gpu_hours(gpu, utilization),
            }
            for part in parts
        ],
        "storage_bytes": storage_bytes(target, parameters, windows),
    }


def training_work(target: ModelTarget, training_flops: float, windows: int | None) -> "list[Work]":
    """Return the FLOPs of a run by part: training, and what the stage computes once or in addition.

    Parts that are computed once per window are skipped if the number of ``windows`` is unknown.
    """
    from simcast_hpc.planning.training_cost import Work

    run, precision = target.run, target.run.engine.precision
    samples = run.max_steps * run.batch.global_size
    parts = [Work(part="forward and backward", samples=samples, flops_per_sample=training_flops, precision=precision)]
    if run.stage == "student" and run.student.extension == "teacher":
        online = run.student.rollouts == "online"
        count = samples if online else windows
        name = f"{'online' if online else 'cached'} rollouts"
        if count is not None:
            parts.append(Work(part=name, samples=count, flops_per_sample=_rollout_flops(target), precision=precision))
    if run.stage == "autoencoder":
        adversarial = max(run.max_steps - run.autoencoder.adversarial_start, 0) * run.batch.global_size
        parts.append(
            Work(
                part="discriminator",
                samples=adversarial,
                flops_per_sample=_discriminator_flops(target),
                precision="fp32",
            )
        )
        if windows is not None:
            parts.append(
                Work(
                    part="latent scale factor",
                    samples=windows,
                    flops_per_sample=_encoder_flops(target),
                    precision="fp32",
                )
            )
    if run.stage == "diffusion" and windows is not None:
        flops = _latent_frames(run) * _encoder_flops(target) + _forecast_flops(target)
        parts.append(Work(part="cached latents", samples=windows, flops_per_sample=flops, precision="fp32"))
    return parts


def storage_bytes(target: ModelTarget, parameters: int, windows: int | None) -> dict[str, int]:
    """Return the bytes that a run writes, by kind; caches are skipped if the number of ``windows`` is unknown."""
    from simcast_hpc.planning import training_cost

    run, grid = target.run, target.grid
    auxiliary = _discriminator_parameters(target) if run.stage == "autoencoder" else 0
    checkpoint = training_cost.checkpoint_bytes(parameters, average=run.ema.decay is not None, auxiliary=auxiliary)
    while_writing = 1 if run.checkpoint.every_steps else 0
    storage = {
        "checkpoints": (run.checkpoint.keep + while_writing) * checkpoint,
        "weights": 4 * parameters,
        "logs": training_cost.log_bytes(run.max_steps, every_steps=run.log.every_steps),
    }
    if windows is None:
        return storage
    frames_out = run.sequence.frames_out
    if run.stage == "student" and run.student.extension == "teacher" and run.student.rollouts != "online":
        dtype = run.student.pseudo_dtype
        storage["rollouts"] = training_cost.rollout_bytes(windows, frames_out=frames_out, grid=grid, pseudo_dtype=dtype)
    if run.stage == "diffusion":
        reduction = target.autoencoder.reduction
        storage["latents"] = training_cost.latent_bytes(
            windows,
            frames=_latent_frames(run) + frames_out,  # of the targets, mean and log-variance are stored
            channels=target.autoencoder.latent_channels,
            grid=(grid[0] // reduction, grid[1] // reduction),
        )
    return storage


def forecast_work(target: ModelTarget) -> "list[Work]":
    """Return the FLOPs of the forecast of one window by a finished run: a rollout, one pass, or an ensemble.

    An ensemble is sampled as ``sampling`` describes; with guidance, each step evaluates the denoiser twice.
    """
    from simcast_hpc.planning.training_cost import Work

    run, sampling, frames = target.run, target.run.sampling, target.run.sequence.frames_out

    def part(name: str, count: int, flops: int, precision: str) -> Work:
        return Work(part=name, samples=count, flops_per_sample=flops, precision=precision)

    if run.stage == "autoencoder":
        return []
    if run.stage != "diffusion":
        flops = _rollout_flops(target) if run.stage == "teacher" else _forward_flops(target)
        if run.model.noise_channels:  # the pass of training has loss.members members
            return [part("members", sampling.members, flops // run.loss.members, "fp32")]
        return [part("forecast", 1, flops, "fp32")]
    evaluations = sampling.members * sampling.steps * (1 if sampling.guidance == 1 else 2)
    return [
        part("condition", 1, _forecast_flops(target) + frames * _encoder_flops(target), "fp32"),
        part("sampling", evaluations, _forward_flops(target), sampling.precision),
        part("decoding", sampling.members * frames, _decoder_flops(target), sampling.precision),
    ]


def cost_table(cost: dict[str, Any], gpu: "Gpu") -> "Table":
    """Return the GPU-hours of a :func:`training_cost` as a table."""
    from rich.table import Table

    title = f"Training cost (estimated): {gpu.title}, {cost['utilization']:.0%} utilization"
    table = Table("Part", title=title)
    for column in ("samples", "TFLOP per sample", "precision", "GPU-hours"):
        table.add_column(column, justify="right")
    for part in cost["parts"]:
        table.add_row(
            part["part"],
            f"{part['samples']:,}",
            f"{part['flops_per_sample'] / 1e12:,.3g}",
            part["precision"],
            f"{part['gpu_hours']:,.3g}",
        )
    table.add_section()
    table.add_row("all", "", "", "", f"{cost['gpu_hours']:,.3g}")
    return table


def cost_summary(cost: dict[str, Any], gpu: "Gpu") -> str:
    """Return the assumptions, the range of GPU-hours and the storage of a :func:`training_cost` as text."""
    shares = " to ".join(f"{float(share):.0%}" for share in cost["gpu_hours_by_utilization"])
    hours = " to ".join(f"{value:,.3g}" for value in cost["gpu_hours_by_utilization"].values())
    storage = ", ".join(f"{kind} {size / 1e9:,.3g} GB" for kind, size in cost["storage_bytes"].items())
    return (
        f"An {LABEL}: FLOPs / (peak FLOP/s x utilization), with a peak of {gpu.bf16_tflops:g} TFLOP/s in dense bf16 "
        f"and {gpu.fp32_tflops:g} TFLOP/s in fp32.\nAt {shares} utilization: {hours} GPU-hours. Validation and "
        f"verification are not included.\nStorage: {storage}."
    )


def _rollout_flops(target: ModelTarget) -> int:
    """Return the FLOPs of rolling a teacher out over the long horizon once."""
    run = target.run
    teacher = teacher_of(run)
    passes = -(-run.sequence.frames_out // run.sequence.teacher_frames_out)
    return passes * _forward_flops(target._replace(run=teacher))


def _forecast_flops(target: ModelTarget) -> int:
    """Return the FLOPs of one forecast of the student, assumed to have the ``model`` of this configuration."""
    student = target.run.model_copy(update={"stage": "student"})
    return _forward_flops(target._replace(run=student))


def _forward_flops(target: ModelTarget) -> int:
    from simcast_hpc.planning import flops

    network = subject_of(target.run, target.grid, target.autoencoder)
    model = network.on_meta(None, dtype_of(target.run))
    return sum(flops.forward_flops(model, *network.inputs(1)).values())


def _encoder_flops(target: ModelTarget) -> int:
    """Return the FLOPs of encoding one frame."""
    import torch

    from simcast_hpc.planning import flops

    network = flops.autoencoder(target.autoencoder, grid=target.grid)
    by_part = flops.forward_flops(network.on_meta(None, torch.float32), *network.inputs(1))
    return sum(count for part, count in by_part.items() if part.startswith(("encoder", "to_moments")))


def _decoder_flops(target: ModelTarget) -> int:
    """Return the FLOPs of decoding one frame."""
    import torch

    from simcast_hpc.planning import flops

    network = flops.autoencoder(target.autoencoder, grid=target.grid)
    total = sum(flops.forward_flops(network.on_meta(None, torch.float32), *network.inputs(1)).values())
    return total - _encoder_flops(target)


def _discriminator_flops(target: ModelTarget) -> int:
    """Return the FLOPs of the discriminator per sample: its input gradient, and its training on two frames."""
    import torch

    from simcast_hpc.models.discriminator import Discriminator
    from simcast_hpc.planning import flops

    with torch.device("meta"):
        network, frame = Discriminator(target.run.autoencoder.discriminator), torch.empty(1, 1, *target.grid)
    forward = sum(flops.forward_flops(network, frame).values())
    return 2 * forward + 2 * flops.training_flops(network, frame)


def _discriminator_parameters(target: ModelTarget) -> int:
    import torch

    from simcast_hpc.models.discriminator import Discriminator

    with torch.device("meta"):
        network = Discriminator(target.run.autoencoder.discriminator)
    return sum(parameter.numel() for parameter in network.parameters())


def _latent_frames(run: TrainConfig) -> int:
    """Return the frames per window that are encoded for a diffusion: target, forecast and, if used, observations."""
    observed = run.sequence.frames_in if run.diffusion.casformer.observations else 0
    return 2 * run.sequence.frames_out + observed
