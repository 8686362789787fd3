"""From finished runs to an ensemble: student, autoencoder and denoiser, checked to belong together, and sampled."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from simcast_hpc.config import ConfigError, SamplingConfig, TrainConfig
from simcast_hpc.diffusion import (
    Drawn,
    Rows,
    make_schedule,
    plan_steps,
    reject_broken,
    spaced_timesteps,
    stream_key,
    walk,
)
from simcast_hpc.diffusion.guidance import reject_untrained_guidance
from simcast_hpc.distill.windows import to_frames
from simcast_hpc.models.autoencoder import Autoencoder
from simcast_hpc.models.casformer import CasFormer
from simcast_hpc.storage.run_directory import RunDirectory, file_hash, reject_another

from .cuda_graph import Graphs
from .load import TrainedModel, config_of_run, load_trained, reject_a_pipeline

_SCALE = "scale_factor"


@dataclass(frozen=True)
class TrainedAutoencoder:
    """An autoencoder, the factor that brings its latents to a deviation of 1, and the hash of its weights."""

    network: Autoencoder
    config: TrainConfig
    scale: float
    weights_hash: str

    @torch.no_grad()
    def moments(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of latents, not scaled, fp32 ``[B, T, C, h, w]``, of frames ``[B, T, H, W]``."""
        posterior = self.network.encode(frames.flatten(0, 1)[:, None])
        mean, log_variance = (part.unflatten(0, frames.shape[:2]) for part in posterior)
        return mean, log_variance

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return the frames of scaled latents ``[B, T, C, h, w]``: fp32 ``[B, T, H, W]`` in [0, 1]."""
        frames = self.network.decode((latents / self.scale).flatten(0, 1))[:, 0]
        return frames.clamp(0.0, 1.0).unflatten(0, latents.shape[:2])


class Members(NamedTuple):
    """``frames`` fp32 ``[B, M, T', H, W]`` in [0, 1], and ``clip_rate``, fp32 scalar: as :class:`diffusion.Drawn`'s."""

    frames: Tensor
    clip_rate: Tensor


@dataclass(frozen=True)
class TrainedEnsemble:
    """What draws members: three networks, evaluating, on one device.

    The noise of a member is a function of the sampling seed, of the observed frames and of the member's number: the
    same whatever else is in the batch, however it is chunked, and on whichever rank.
    """

    network: CasFormer
    config: TrainConfig
    autoencoder: TrainedAutoencoder
    student: TrainedModel
    sampling: SamplingConfig
    weights_hash: str
    steps: int | None = None
    graphs: Graphs = field(default_factory=lambda: Graphs("the sampling loop"), compare=False, repr=False)

    def sampled_by(self, sampling: SamplingConfig) -> "TrainedEnsemble":
        """Return the same networks sampled in another way.

        Raises:
            ConfigError: guidance of a network that never saw a dropped condition, or more steps than timesteps.
        """
        found = replace(self, sampling=sampling, graphs=Graphs("the sampling loop"))
        try:
            reject_untrained_guidance(sampling.guidance, self.config.diffusion.condition_dropout)
            found._steps()
        except ValueError as error:
            raise ConfigError(f"sampling: {error}") from error
        return found

    def on(self, device: torch.device) -> "TrainedEnsemble":
        """Return the ensemble with its networks on ``device``, denoiser and autoencoder in the asked precision."""
        dtype = torch.bfloat16 if self.sampling.precision == "bf16" else torch.float32
        self.network.to(device, dtype)
        self.autoencoder.network.to(device, dtype)
        self.student.network.to(device)
        self.graphs.clear()  # they hold addresses of weights
        return self

    def forecast(self, codes: Tensor, *, frames_out: int) -> Tensor:
        """Return ``sampling.members`` members after uint8 codes ``[B, T, H, W]``: ``[B, M, frames_out, H, W]``."""
        if frames_out != self.config.sequence.frames_out:
            raise ValueError(f"the ensemble forecasts {self.config.sequence.frames_out} frames, not {frames_out}")
        return self.members(codes, range(self.sampling.members))

    def members(self, codes: Tensor, numbers: Sequence[int]) -> Tensor:
        """Return the members of these numbers: fp32 ``[B, len(numbers), T', H, W]`` in [0, 1].

        Raises:
            NonFiniteLatentError: sampling broke down.
        """
        return self.drawn(codes, numbers).frames

    @torch.no_grad()
    def drawn(self, codes: Tensor, numbers: Sequence[int], *, start: Tensor | None = None) -> Members:
        """Return the members of these numbers, and how much of their latents was clipped.

        The student runs and its forecast is encoded once for each sample, not for each member. ``start`` is the noise
        that sampling begins from, fp32 ``[B, len(numbers), T', C, h, w]``, in place of each sample's own: tiles of one
        domain share theirs where they overlap.

        Raises:
            NonFiniteLatentError: sampling broke down.
        """
        device = next(self.network.parameters()).device
        codes = codes.to(device)
        condition = self._encoded(self.student.forecast(codes, frames_out=self.config.sequence.frames_out))
        observed = self._encoded(to_frames(codes).values) if self.config.diffusion.casformer.observations else None
        identity, wanted = sample_identity(codes), torch.tensor(list(numbers), dtype=torch.int64, device=device)
        row = torch.arange(len(codes) * len(wanted), device=device)
        frames, rates, broken = [], [], []
        for part in row.split(self.sampling.chunk):
            which = part // len(wanted)
            rows = Rows(stream_key(self.sampling.seed, "member"), identity[which], wanted[part % len(wanted)])
            first = rows.start(tuple(condition.shape[1:])) if start is None else start.to(device).flatten(0, 1)[part]
            drawn = self._drawn(rows, first, condition[which], None if observed is None else observed[which])
            frames.append(self.autoencoder.decode(drawn.latents))
            rates.append(drawn.clip_rate * len(part) / len(row))
            broken.append(drawn.broken)
        reject_broken(torch.stack(broken).sum(), len(row))
        whole = torch.cat(frames).unflatten(0, (len(codes), len(wanted)))
        return Members(whole, torch.stack(rates).sum())

    def noise_of_domain(self, codes: Tensor, numbers: Sequence[int], *, grid: tuple[int, int]) -> Tensor:
        """Return noise for the latents of ``grid`` (H, W) around uint8 codes ``[T, ...]``, fp32 ``[M, T', C, h, w]``.

        A function of the sampling seed, the codes and each member's number: of a single sample that sample's own.
        """
        model = self.autoencoder.config.autoencoder.model
        height, width = (-(-size // model.reduction) for size in grid)
        wanted = torch.tensor(list(numbers), dtype=torch.int64)
        identity = sample_identity(codes[None]).cpu().expand(len(wanted))
        rows = Rows(stream_key(self.sampling.seed, "member"), identity, wanted)
        return rows.start((self.config.sequence.frames_out, model.latent_channels, height, width))

    def _drawn(self, rows: Rows, first: Tensor, condition: Tensor, observed: Tensor | None) -> Drawn:
        guided, steps, seen = self.sampling.guidance != 1.0, self._steps(), () if observed is None else (observed,)

        def loop(start: Tensor, sample: Tensor, member: Tensor, condition: Tensor, *more: Tensor) -> Drawn:
            nothing = (torch.zeros_like(condition), *(torch.zeros_like(one) for one in more))
            return walk(
                steps,
                lambda x, t: self.network(x, t, condition, *more),
                start,
                unconditional=(lambda x, t: self.network(x, t, *nothing)) if guided else None,
                guidance=self.sampling.guidance,
                clip=self.sampling.clip,
                rows=Rows(rows.key, sample, member),
            )

        tensors = (first, rows.sample, rows.member, condition, *seen)
        return self.graphs.run(loop, *tensors) if self.sampling.cuda_graph else loop(*tensors)

    def _encoded(self, frames: Tensor) -> Tensor:
        return self.autoencoder.moments(frames)[0] * self.autoencoder.scale

    def _steps(self):
        made, sampling = self.config.diffusion, self.sampling
        schedule = make_schedule(
            made.schedule, timesteps=made.timesteps, beta_start=made.beta_start, beta_end=made.beta_end
        )
        timesteps = spaced_timesteps(schedule, sampling.steps, sampling.spacing)
        return plan_steps(sampling.sampler, schedule, timesteps, prediction=made.prediction, eta=sampling.eta)


def sample_identity(codes: Tensor) -> Tensor:
    """Return a number in [0, 2^32) for each sample of uint8 codes ``[B, T, H, W]``, int64 ``[B]``: a hash of them."""
    digests = [hashlib.blake2b(one.contiguous().numpy().tobytes(), digest_size=4).digest() for one in codes.cpu()]
    return torch.tensor([int.from_bytes(digest, "little") for digest in digests], device=codes.device)


def load_autoencoder(run_dir: Path, *, device: torch.device | None = None) -> TrainedAutoencoder:
    """Return the autoencoder that a run left in ``run_dir``, in fp32, evaluating, on ``device`` (CPU).

    Raises:
        ConfigError: the folder holds no finished run of the stage, or its weights do not fit or hold no scale factor.
    """
    config, weights, about, weights_hash, _ = _finished(run_dir, "autoencoder")
    if _SCALE not in about:
        raise ConfigError(f"the weights in {run_dir} hold no {_SCALE}; finish the stage by `simcast train` again")
    network = Autoencoder(config.autoencoder.model)
    _fill(network, weights, run_dir)
    return TrainedAutoencoder(network.to(device or torch.device("cpu")), config, float(about[_SCALE]), weights_hash)


def load_ensemble(run_dir: Path, *, device: torch.device | None = None) -> TrainedEnsemble:
    """Return the ensemble that a run of the stage ``diffusion`` left in ``run_dir``, on ``device`` (CPU).

    Raises:
        ConfigError: no finished run, or its autoencoder or student are not those that it was trained on.
    """
    config, weights, _, weights_hash, marker = _finished(run_dir, "diffusion")
    chosen = config.diffusion
    if chosen.autoencoder is None or chosen.student is None:
        raise ConfigError(f"{run_dir} names no diffusion.autoencoder and diffusion.student")
    autoencoder = load_autoencoder(chosen.autoencoder, device=device)
    student = load_trained(chosen.student, device=device)
    for name, part in (("autoencoder", autoencoder), ("student", student)):
        trained_on = marker["inputs"].get(name)
        if trained_on != part.weights_hash:
            raise ConfigError(
                f"{run_dir} was trained on the {name} of weights {str(trained_on)[:12]}, and "
                f"{getattr(chosen, name)} holds {part.weights_hash[:12]}: latents of another {name} mean nothing to it"
            )
    network = denoiser(config, channels=autoencoder.config.autoencoder.model.latent_channels)
    _fill(network, weights, run_dir)
    made = TrainedEnsemble(network, config, autoencoder, student, config.sampling, weights_hash, marker.get("steps"))
    return made.sampled_by(config.sampling).on(device or torch.device("cpu"))


def load_run(run_dir: Path, *, device: torch.device | None = None) -> TrainedModel | TrainedEnsemble:
    """Return what a finished run forecasts with: a model, or an ensemble where its stage is ``diffusion``.

    Raises:
        ConfigError: as :func:`load_trained` and :func:`load_ensemble`.
    """
    path = RunDirectory(run_dir).config
    if path.is_file() and config_of_run(run_dir).stage == "diffusion":
        return load_ensemble(run_dir, device=device)
    return load_trained(run_dir, device=device)


def denoiser(config: TrainConfig, *, channels: int) -> CasFormer:
    """Return the denoiser of a run for latents of so many channels, freshly initialised."""
    sequence = config.sequence
    return CasFormer(
        config.diffusion.casformer, frames=sequence.frames_out, channels=channels, frames_in=sequence.frames_in
    )


def _finished(run_dir: Path, stage: str):
    reject_a_pipeline(run_dir)
    folder = RunDirectory(run_dir)
    if not folder.config.is_file() or not folder.weights.is_file():
        missing = folder.weights if folder.config.is_file() else folder.config
        raise ConfigError(f"{run_dir} is not a finished training run: there is no {missing}; run `simcast train` first")
    config = config_of_run(run_dir)
    if config.stage != stage:
        raise ConfigError(f"{run_dir} holds the stage {config.stage}; a finished {stage} is needed")
    weights_hash, marker = file_hash(folder.weights), folder.marker()
    if marker is None or marker.get("weights") != weights_hash:
        raise ConfigError(f"{folder.weights} is not what {folder.done} says; run `simcast train` again to finish it")
    reject_another({key: marker["inputs"].get(key) for key in config.science()}, config.science(), where=run_dir)
    try:
        with safe_open(folder.weights, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return config, weights, dict(file.metadata() or {}), weights_hash, marker
    except SafetensorError as error:
        raise ConfigError(f"{folder.weights} cannot be read: {error}") from error


def _fill(network: torch.nn.Module, weights: dict[str, Tensor], run_dir: Path) -> None:
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(f"the weights in {run_dir} do not fit its configuration: {error}") from error
    network.eval().requires_grad_(False)
