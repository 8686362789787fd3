"""Ensembles from finished runs: student, autoencoder and denoiser, checked to belong together, and sampled."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from simcast_hpc.config import FORECASTING, ConfigError, DiffusionConfig, SamplingConfig, TrainConfig
from simcast_hpc.diffusion import (
    BatchNoise,
    NoiseSchedule,
    SamplerStep,
    SamplingResult,
    check_finite,
    make_schedule,
    noise_levels,
    plan_steps,
    run_sampler,
)
from simcast_hpc.diffusion.guidance import check_guidance
from simcast_hpc.distill.cut_windows import to_frames
from simcast_hpc.models.autoencoder import Autoencoder
from simcast_hpc.models.casformer import CasFormer
from simcast_hpc.models.fp32_precision import fp32_precision
from simcast_hpc.storage.run_directory import RunDirectory

from .cuda_graph import GraphCache
from .ensemble import Ensemble, Members, sample_identity
from .noise_ensemble import load_noise_ensemble
from .trained_model import TrainedModel, check_multiple, config_of_run, load_trained, read_finished

SCALE = "scale_factor"  # in the metadata of the weights


@dataclass(frozen=True)
class TrainedAutoencoder:
    """A trained autoencoder, the factor that scales its latents to unit variance, and the SHA-256 of its weights."""

    network: Autoencoder
    config: TrainConfig
    scale: float
    weights_hash: str

    @torch.no_grad()
    @fp32_precision()
    def moments(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of unscaled latents, fp32 ``[B, T, C, h, w]``, of frames ``[B, T, H, W]``."""
        posterior = self.network.encode(frames.flatten(0, 1)[:, None])
        mean, log_variance = (part.unflatten(0, frames.shape[:2]) for part in posterior)
        return mean, log_variance

    @torch.no_grad()
    @fp32_precision()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents ``[B, T, C, h, w]`` to frames, fp32 ``[B, T, H, W]`` in [0, 1]."""
        frames = self.network.decode((latents / self.scale).flatten(0, 1))[:, 0]
        return frames.clamp(0.0, 1.0).unflatten(0, latents.shape[:2])


@dataclass(frozen=True)
class TrainedEnsemble(Ensemble):
    """Three trained networks on one device that together sample ensemble members."""

    network: CasFormer  # pyright: ignore[reportIncompatibleVariableOverride]  frozen, so never set
    config: TrainConfig
    autoencoder: TrainedAutoencoder
    student: TrainedModel
    sampling: SamplingConfig
    weights_hash: str
    steps: int | None = None
    graphs: GraphCache = field(default_factory=lambda: GraphCache("the sampling loop"), compare=False, repr=False)

    def sampled_by(self, sampling: SamplingConfig) -> "TrainedEnsemble":
        """Return the same networks with other sampling settings; another precision takes effect in a copy of them.

        Raises:
            ConfigError: guidance for a network trained without condition dropout, more steps than timesteps, or fp32
                from weights that were rounded to bf16.
        """
        result, dtype = self._with(sampling), next(self.network.parameters()).dtype
        if dtype == _dtype(sampling):
            return result
        if dtype == torch.bfloat16:
            raise ConfigError(
                f"sampling.precision={sampling.precision!r}: the weights are loaded in bf16 and cannot be converted "
                "back; load the run with this setting (change_sampling)"
            )
        decoder = copy.deepcopy(self.autoencoder.network)
        result = replace(
            result, network=copy.deepcopy(self.network), autoencoder=replace(self.autoencoder, network=decoder)
        )
        return result.on(next(self.network.parameters()).device)

    def _with(self, sampling: SamplingConfig) -> "TrainedEnsemble":
        """Return the same networks in their present precision with other, checked sampling settings."""
        result = replace(self, sampling=sampling, graphs=GraphCache("the sampling loop"))
        try:
            check_guidance(sampling.guidance, self.config.diffusion.condition_dropout)
            result._steps()
        except ValueError as error:
            raise ConfigError(f"sampling: {error}") from error
        return result

    def on(self, device: torch.device) -> "TrainedEnsemble":
        """Move the networks to ``device``, denoiser and autoencoder in ``sampling.precision``; return the ensemble."""
        dtype = _dtype(self.sampling)
        self.network.to(device, dtype)
        self.autoencoder.network.to(device, dtype)
        self.student.network.to(device)
        self.graphs.clear()  # recorded graphs contain the addresses of the weights
        return self

    def check_grid(self, grid: tuple[int, int]) -> None:
        """Check that student, autoencoder and denoiser can take frames of ``grid`` (H, W).

        Raises:
            ConfigError: names the grid and what is needed.
        """
        self.student.check_grid(grid)
        latent = self.autoencoder.config.autoencoder.model.reduction * self.config.diffusion.casformer.patch
        check_multiple(grid, math.lcm(latent, self.student.grid_multiple), f"{self.config.stage} {self.config.name}")

    @torch.no_grad()
    @fp32_precision()
    def sample_members(
        self, codes: Tensor, numbers: Sequence[int], *, start: Tensor | None = None, base: Tensor | None = None
    ) -> Members:
        """Sample the members with these numbers; also return how much of their latents was clipped.

        The student runs and its forecast is encoded once per sample, not once per member.

        Args:
            codes: ``[B, T, H, W]``, uint8 encoded values (255 missing) or floats in [0, 1] (NaN missing).
            numbers: which members.
            start: noise from which sampling starts, fp32 ``[B, len(numbers), T', C, h, w]``, instead of the
                noise of each sample: overlapping tiles of one domain share theirs.
            base: base forecast of the student, a part of that of a larger domain.

        Raises:
            NonFiniteLatentError: sampling diverged.
        """
        device = next(self.network.parameters()).device
        codes = codes.to(device)
        forecast = self.student.forecast(codes, frames_out=self.config.sequence.frames_out, base=base)
        condition = self._encoded(forecast)
        observed = self._encoded(to_frames(codes).values) if self.config.diffusion.casformer.observations else None
        identity, members = sample_identity(codes), torch.tensor(list(numbers), dtype=torch.int64, device=device)
        # One row per pair of sample and member, in chunks that fit into memory.
        row = torch.arange(len(codes) * len(members), device=device)
        frames, rates, broken = [], [], []
        for part in row.split(self.sampling.chunk):
            sample = part // len(members)
            rows = self.noise_rows(identity[sample], members[part % len(members)])
            first = rows.initial(tuple(condition.shape[1:])) if start is None else start.to(device).flatten(0, 1)[part]
            result = self._sample(rows, first, condition[sample], None if observed is None else observed[sample])
            frames.append(self.autoencoder.decode(result.latents))
            rates.append(result.clip_rate * len(part) / len(row))
            broken.append(result.non_finite)
        check_finite(torch.stack(broken).sum(), len(row))
        all_frames = torch.cat(frames).unflatten(0, (len(codes), len(members)))
        return Members(all_frames, torch.stack(rates).sum())

    def base_forecast(self, codes: Tensor, *, side: int) -> Tensor | None:
        """Return the student's base forecast of a domain; see :meth:`.TrainedModel.base_forecast`."""
        return self.student.base_forecast(codes, side=side)

    @property
    def inputs(self) -> dict[str, str]:
        """Hashes of student and autoencoder."""
        return {"student": self.student.weights_hash, "autoencoder": self.autoencoder.weights_hash}

    @property
    def frames_config(self) -> TrainConfig:
        """Configuration of the student."""
        return self.student.config

    @property
    def note(self) -> str:
        """Sampler and guidance."""
        sampling = self.sampling
        guidance = f", guidance {sampling.guidance:g}" if sampling.guidance != 1 else ""
        return (
            f"{sampling.members} members of {self.config.stage}, {sampling.sampler} in {sampling.steps} steps{guidance}"
        )

    @property
    def noise_spacing(self) -> int:
        """Pixels per latent element along an axis."""
        return self.autoencoder.config.autoencoder.model.reduction

    def noise_shape(self, grid: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return the shape of the latents of one member, (T', C, h, w)."""
        height, width = (-(-size // self.noise_spacing) for size in grid)
        channels = self.autoencoder.config.autoencoder.model.latent_channels
        return self.config.sequence.frames_out, channels, height, width

    def _sample(self, rows: BatchNoise, first: Tensor, condition: Tensor, observed: Tensor | None) -> SamplingResult:
        guided, steps = self.sampling.guidance != 1.0, self._steps()
        observations = () if observed is None else (observed,)

        def loop(start: Tensor, sample: Tensor, member: Tensor, condition: Tensor, *observations: Tensor):
            dropped = (torch.zeros_like(condition), *(torch.zeros_like(one) for one in observations))
            return run_sampler(
                steps,
                lambda x, t: self.network(x, t, condition, *observations),
                start,
                unconditional=(lambda x, t: self.network(x, t, *dropped)) if guided else None,
                guidance=self.sampling.guidance,
                clip=self.sampling.clip,
                batch_noise=BatchNoise(rows.key, sample, member),
            )

        tensors = (first, rows.sample, rows.member, condition, *observations)
        return self.graphs.run(loop, *tensors) if self.sampling.cuda_graph else loop(*tensors)

    def _encoded(self, frames: Tensor) -> Tensor:
        return self.autoencoder.moments(frames)[0] * self.autoencoder.scale

    def _steps(self):
        return denoising_steps(self.config.diffusion, self.sampling)


def denoising_steps(trained: DiffusionConfig, sampling: SamplingConfig) -> list[SamplerStep]:
    """Return the steps in which a network that was trained with section ``diffusion`` is sampled.

    Raises:
        ValueError: the sections do not suit each other, see :func:`.noise_levels` and :func:`.plan_steps`.
    """
    schedule = noise_schedule(trained)
    levels = noise_levels(schedule, sampling.steps, sampling.spacing)
    return plan_steps(
        sampling.sampler,
        schedule,
        levels,
        prediction=trained.prediction,
        eta=sampling.eta,
        order=sampling.order,
    )


def _dtype(sampling: SamplingConfig) -> torch.dtype:
    return torch.bfloat16 if sampling.precision == "bf16" else torch.float32


def noise_schedule(section: DiffusionConfig) -> NoiseSchedule:
    """Return the noise schedule of a run.

    Raises:
        ConfigError: the fields give no decreasing schedule.
    """
    try:
        return make_schedule(
            section.schedule,
            timesteps=section.timesteps,
            beta_start=section.beta_start,
            beta_end=section.beta_end,
            zero_terminal_snr=section.zero_terminal_snr,
        )
    except ValueError as error:
        raise ConfigError(f"diffusion.schedule: {error}") from error


def load_autoencoder(run_dir: Path, *, device: torch.device | None = None) -> TrainedAutoencoder:
    """Return the autoencoder of a finished run, in fp32 and evaluation mode, on ``device`` (default: CPU).

    Raises:
        ConfigError: no finished run of this stage, or its weights do not fit or lack the scale factor.
    """
    run = read_finished(run_dir, ("autoencoder",))
    if SCALE not in run.metadata:
        raise ConfigError(f"the weights in {run_dir} have no {SCALE}; finish the stage by `simcast train` again")
    network = Autoencoder(run.config.autoencoder.model)
    run.load_into(network, run_dir)
    scale = float(run.metadata[SCALE])
    return TrainedAutoencoder(network.to(device or torch.device("cpu")), run.config, scale, run.weights_hash)


def load_ensemble(
    run_dir: Path,
    *,
    device: torch.device | None = None,
    change_sampling: Callable[[SamplingConfig], SamplingConfig] | None = None,
) -> TrainedEnsemble:
    """Return the ensemble of a finished run of stage ``diffusion``, on ``device`` (default: CPU).

    ``change_sampling`` returns the sampling settings to use from those of the run.

    Raises:
        ConfigError: no finished run, its autoencoder or student are not those that it was trained with, or the
            sampling settings are invalid.
    """
    run = read_finished(run_dir, ("diffusion",))
    config, section = run.config, run.config.diffusion
    if section.autoencoder is None or section.student is None:
        raise ConfigError(f"{run_dir} sets no diffusion.autoencoder and diffusion.student")
    autoencoder = load_autoencoder(section.autoencoder, device=device)
    student = load_trained(section.student, device=device)
    for name, part in (("autoencoder", autoencoder), ("student", student)):
        trained_with = run.marker["inputs"].get(name)
        if trained_with != part.weights_hash:
            raise ConfigError(
                f"{run_dir} was trained with the {name} of weights {str(trained_with)[:12]}, but "
                f"{getattr(section, name)} has weights {part.weights_hash[:12]}"
            )
    network = denoiser(config, channels=autoencoder.config.autoencoder.model.latent_channels)
    run.load_into(network, run_dir)
    ensemble = TrainedEnsemble(
        network, config, autoencoder, student, config.sampling, run.weights_hash, run.marker.get("steps")
    )
    sampling = config.sampling if change_sampling is None else change_sampling(config.sampling)
    return ensemble._with(sampling).on(device or torch.device("cpu"))


def load_run(
    run_dir: Path,
    *,
    device: torch.device | None = None,
    change_sampling: Callable[[SamplingConfig], SamplingConfig] | None = None,
) -> TrainedModel | Ensemble:
    """Return the model of a finished run, or its ensemble: a run of stage ``diffusion`` or of a network with noise.

    ``change_sampling`` changes the sampling settings of an ensemble; a deterministic model ignores it.

    Raises:
        ConfigError: as :func:`.load_trained` and :func:`load_ensemble`.
    """
    if not RunDirectory(run_dir).config.is_file():
        return load_trained(run_dir, device=device)  # reports what is missing
    config = config_of_run(run_dir)
    if config.stage == "diffusion":
        return load_ensemble(run_dir, device=device, change_sampling=change_sampling)
    if config.stage in FORECASTING and config.model.noise_channels:
        return load_noise_ensemble(run_dir, device=device, change_sampling=change_sampling)
    return load_trained(run_dir, device=device)


def load_any_ensemble(
    run_dir: Path,
    *,
    device: torch.device | None = None,
    change_sampling: Callable[[SamplingConfig], SamplingConfig] | None = None,
) -> Ensemble:
    """Return the ensemble of a finished run of stage ``diffusion`` or of a network with noise.

    Raises:
        ConfigError: as :func:`load_run`, or the run is deterministic.
    """
    model = load_run(run_dir, device=device, change_sampling=change_sampling)
    if isinstance(model, Ensemble):
        return model
    raise ConfigError(
        f"{run_dir} is a deterministic run of stage {model.config.stage}; give a run of stage diffusion, or of a "
        "network with model.noise_channels"
    )


def denoiser(config: TrainConfig, *, channels: int) -> CasFormer:
    """Return a newly initialized denoiser of a run for latents with ``channels`` channels."""
    sequence = config.sequence
    return CasFormer(
        config.diffusion.casformer, frames=sequence.frames_out, channels=channels, frames_in=sequence.frames_in
    )
