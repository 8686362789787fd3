"""Latent diffusion: autoencoder, CasFormer, and how both are trained and sampled."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from .errors import ConfigError
from .path_expansion import FieldPath, NameOrPath
from .stage_sections import Added, Operational, Section, StrictModel, Unit


class AutoencoderConfig(StrictModel):
    """KL autoencoder of single frames (Rombach et al. 2022); the default is CasCast's: 83.6 M parameters, 384 -> 48."""

    widths: Annotated[tuple[PositiveInt, ...], Unit("channels")] = (128, 256, 512, 512)
    """Channels per level, finest first; every level except the last halves the grid."""
    blocks: Annotated[PositiveInt, Unit("blocks")] = 2
    """Residual blocks per level of the encoder; the decoder has one more."""
    latent_channels: Annotated[PositiveInt, Unit("channels")] = 4
    """Channels of the latent representation."""
    groups: Annotated[PositiveInt, Unit("groups")] = 32
    """Groups of group normalization; must divide all widths."""
    checkpoint: Operational[bool] = False
    """Recompute the activations of each level in the backward pass (activation checkpointing)."""

    @property
    def reduction(self) -> int:
        """Pixels per latent element along an axis."""
        return 2 ** (len(self.widths) - 1)

    @model_validator(mode="after")
    def _groups_divide_widths(self) -> Self:
        if not self.widths or any(width % self.groups for width in self.widths):
            raise ValueError(
                f"autoencoder.widths={list(self.widths)} must have one width per level, each a multiple of "
                f"autoencoder.groups={self.groups}"
            )
        return self


class CasFormerConfig(StrictModel):
    """CasFormer (Gong et al. 2024, section 3.3); the default is CasCast's for SEVIR: 309 M parameters at 12 frames."""

    frame_width: Annotated[PositiveInt, Unit("channels")] = 256
    """Width of the blocks that process each frame separately."""
    frame_depth: Annotated[PositiveInt, Unit("blocks")] = 12
    """Number of blocks that process each frame separately."""
    frame_heads: Annotated[PositiveInt, Unit("heads")] = 4
    """Attention heads of the blocks that process each frame separately; must divide ``frame_width``."""
    width: Annotated[PositiveInt, Unit("channels")] = 1152
    """Width of the blocks that process all frames jointly."""
    depth: Annotated[PositiveInt, Unit("blocks")] = 12
    """Number of blocks that process all frames jointly."""
    heads: Annotated[PositiveInt, Unit("heads")] = 16
    """Attention heads of the blocks that process all frames jointly; must divide ``width``."""
    feed_forward_ratio: Annotated[PositiveFloat, Unit("1")] = 4.0
    """Hidden width of a feed-forward layer divided by its input width."""
    patch: Annotated[PositiveInt, Unit("latent elements")] = 2
    """Side of the square of latent elements that form one token."""
    observations: bool = False
    """Add the paper's cross-attention to the latents of observed frames, which the official implementation lacks."""
    checkpoint: Operational[bool] = False
    """Recompute the activations of each block in the backward pass (activation checkpointing)."""

    @model_validator(mode="after")
    def _heads_divide_widths(self) -> Self:
        for width, heads in (("frame_width", "frame_heads"), ("width", "heads")):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(
                    f"casformer.{width}={getattr(self, width)} must be a multiple of casformer.{heads}="
                    f"{getattr(self, heads)}"
                )
        if self.frame_width % 4:
            raise ValueError(
                f"casformer.frame_width={self.frame_width} must be a multiple of 4 for its position encoding"
            )
        return self


class DiscriminatorConfig(StrictModel):
    """Patch discriminator (Isola et al. 2017)."""

    layers: Annotated[PositiveInt, Unit("layers")] = 3
    """Number of convolutions with stride 2."""
    width: Annotated[PositiveInt, Unit("channels")] = 64
    """Channels after the first convolution."""
    groups: Annotated[PositiveInt, Unit("groups")] = 8
    """Groups of group normalization; must divide ``width``."""

    @model_validator(mode="after")
    def _groups_divide_width(self) -> Self:
        if self.width % self.groups:
            raise ValueError(
                f"autoencoder.discriminator.width={self.width} must be a multiple of autoencoder.discriminator.groups="
                f"{self.groups}"
            )
        return self


class AutoencoderTrainingConfig(Section, read_by=("autoencoder",)):
    """Autoencoder and its losses (Rombach et al. 2022, section 3.1; CasCast's values).

    The loss is L1 over a learned variance, summed over pixels, plus ``divergence_weight`` times the Kullback-Leibler
    divergence. After ``adversarial_start`` optimizer steps the discriminator's loss is added, weighted by
    ``adversarial_weight`` times the ratio of both losses' gradients at the last layer (Esser et al. 2021, Eq. 7).
    """

    model: AutoencoderConfig = AutoencoderConfig()
    """Architecture of the autoencoder."""
    divergence_weight: Annotated[float, Unit("1")] = Field(default=1e-6, ge=0)
    """Weight of the Kullback-Leibler divergence."""
    adversarial_start: Annotated[int, Unit("optimizer steps")] = Field(default=25_000, ge=0)
    """Number of optimizer steps before the adversarial loss of the discriminator is added."""
    adversarial_weight: Annotated[float, Unit("1")] = Field(default=0.5, ge=0)
    """Weight of the adversarial loss, before multiplication by the ratio of gradients."""
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    """Architecture of the discriminator."""


MEMBER_FIELDS = ("members", "chunk", "seed", "cuda_graph")


class SamplingConfig(Section, read_by=("direct", "student", "diffusion")):
    """How an ensemble is sampled; no field affects training, but validation scores depend on ``members`` and ``seed``.

    For a network with ``model.noise_channels``, only ``members``, ``chunk``, ``seed`` and ``cuda_graph`` have an
    effect; for other runs of the stages `direct` and `student`, none.
    """

    sampler: Literal["ddpm", "ddim", "dpm_solver", "dpm_solver_sde"] = "ddim"
    """Sampling method; `dpm_solver` is DPM-Solver++ and `dpm_solver_sde` its stochastic form."""
    steps: Annotated[PositiveInt, Unit("denoising steps")] = 20
    """Number of denoising steps."""
    order: Added[Annotated[int, Unit("1")]] = Field(default=2, ge=1, le=3)
    """Order of `dpm_solver` and `dpm_solver_sde`, 1 to 3; 2 for other samplers, which have none."""
    spacing: Literal["leading", "linspace", "trailing", "karras"] = "leading"
    """Selection of the noise levels that the sampler uses: `leading`, `linspace` and `trailing` select training time
    steps as in diffusers, `karras` levels of noise between them."""
    eta: Annotated[float, Unit("1")] = Field(default=0.0, ge=0, le=1)
    """Amount of noise that DDIM adds: 0 is deterministic, 1 adds as much as DDPM."""
    guidance: Annotated[float, Unit("1")] = Field(default=2.0, ge=0)
    """Scale of classifier-free guidance; 1 uses the conditional prediction without guidance."""
    clip: Annotated[PositiveFloat | None, Unit("standard deviations of the latent")] = 13.0
    """Bound to which the predicted clean latent is clipped in every step (CasCast: 13); null does not clip."""
    members: Annotated[PositiveInt, Unit("members")] = 10
    """Number of ensemble members."""
    chunk: Annotated[PositiveInt, Unit("members")] = 10
    """Number of members, over all samples, that are computed at the same time; affects only memory."""
    seed: Annotated[int, Unit("1")] = Field(default=0, ge=0)
    """Seed of the random numbers of the members."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of denoiser and decoder; latents and the sampler's updates are always fp32."""
    cuda_graph: bool = True
    """Replay the denoising loop, or the pass of a network with noise, as a CUDA graph, from the second chunk of the
    same size on."""

    def reject_denoising(self, name: str) -> None:
        """Raise an error if a field differs from its default that has no effect on a network with noise channels.

        Raises:
            ConfigError: names the fields, and ``name``, the run.
        """
        given = [f"sampling.{key}={value}" for key, value in self.given().items() if key not in MEMBER_FIELDS]
        if given:
            raise ConfigError(
                f"{', '.join(given)} has no effect on {name}, a network with noise channels; set only "
                f"{', '.join(MEMBER_FIELDS)}"
            )

    def given(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults."""
        fields = type(self).model_fields
        return {key: value for key, value in self if value != fields[key].default}


class EnsembleValidationConfig(StrictModel):
    """Ensembles sampled during training with the averaged weights, in fp32, as section ``sampling`` describes."""

    every_steps: Annotated[int, Unit("optimizer steps")] = Field(default=0, ge=0)
    """Number of optimizer steps between validations; 0 disables validation."""
    windows: Annotated[PositiveInt, Unit("windows")] = 8
    """Number of windows, evenly spaced over the split ``val`` and the same at every validation."""
    members: Annotated[int, Unit("members")] = Field(default=4, ge=2)
    """Number of ensemble members per window."""


class DiffusionConfig(Section, read_by=("diffusion",)):
    """Denoiser, noise schedule, and the finished runs that it is conditioned on (CasCast, section 4.1)."""

    autoencoder: Operational[FieldPath | None] = None
    """Run directory of the autoencoder. Operational, because the run adds the hash of its weights."""
    student: Operational[FieldPath | None] = None
    """Run directory of the conditioning model: any stage that forecasts the long horizon."""
    fold_students: Operational[tuple[FieldPath, ...] | None] = None
    """Run directories of models, each trained without another fold of the events (``data.hold_out``). The condition of
    a training window is the forecast of the model that was not trained on its event. Ensembles use ``student``."""
    latents: Operational[NameOrPath] = "cached"
    """Folder of cached latents: ``cached`` is the folder ``latents`` of the run directory; any other value is the path
    of a folder that several runs can share."""
    casformer: CasFormerConfig = CasFormerConfig()
    """Architecture of the denoiser."""
    schedule: Literal["linear", "scaled_linear", "cosine"] = "linear"
    """Shape of the noise schedule: linear betas, linear square roots of the betas, or cosine."""
    zero_terminal_snr: Added[bool] = False
    """Shift and scale the schedule so that its last time step is pure noise (Lin et al. 2024). It requires the
    prediction `v` or `sample`; sample with ``sampling.spacing`` `trailing` or `linspace`, which begin there."""
    timesteps: Annotated[PositiveInt, Unit("time steps")] = 1000
    """Number of time steps of the noise schedule."""
    beta_start: Annotated[PositiveFloat, Unit("1")] = 1e-4
    """Noise variance of the first time step (not for the schedule `cosine`)."""
    beta_end: Annotated[PositiveFloat, Unit("1")] = 0.02
    """Noise variance of the last time step (not for the schedule `cosine`)."""
    prediction: Literal["epsilon", "v", "sample"] = "epsilon"
    """Quantity that the denoiser predicts: noise (`epsilon`), velocity (`v`) or clean latents (`sample`)."""
    condition_dropout: Annotated[float, Unit("1")] = Field(default=0.1, ge=0, lt=1)
    """Probability that a training sample has no condition, for classifier-free guidance."""
    validation: Operational[EnsembleValidationConfig] = EnsembleValidationConfig()
    """Ensembles sampled during training; they do not affect it."""

    @model_validator(mode="after")
    def _schedule_suits_the_prediction(self) -> Self:
        if self.schedule != "cosine" and not self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"diffusion.beta_start={self.beta_start:g} and diffusion.beta_end={self.beta_end:g} must satisfy 0 < "
                "start <= end < 1"
            )
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise ValueError(
                "diffusion.prediction='epsilon' does not determine the clean latents at the last time step of "
                "diffusion.zero_terminal_snr=true, which is pure noise; choose v or sample"
            )
        if self.zero_terminal_snr and self.timesteps == 1:
            raise ValueError("diffusion.zero_terminal_snr=true requires diffusion.timesteps of at least 2")
        return self
