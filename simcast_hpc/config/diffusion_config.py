"""The generative half: autoencoder, CasFormer, and how both are trained and sampled."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from .yaml_files import StrictModel


class AutoencoderConfig(StrictModel):
    """The KL autoencoder of single frames (Rombach et al. 2022); by default CasCast's, 83.6 M parameters, 384 -> 48.

    Each level has ``blocks`` residual blocks of ``widths[i]`` features (one more in the decoder) and all but the last
    halve the grid. ``checkpoint`` computes the levels again in backward instead of keeping what they made.
    """

    widths: tuple[PositiveInt, ...] = (128, 256, 512, 512)
    blocks: PositiveInt = 2
    latent_channels: PositiveInt = 4
    groups: PositiveInt = 32
    checkpoint: bool = False

    @property
    def reduction(self) -> int:
        """Pixels of a frame along an axis that one element of the latent stands for."""
        return 2 ** (len(self.widths) - 1)

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        odd = [width for width in self.widths if width % self.groups]
        if not self.widths or odd:
            raise ValueError(
                f"autoencoder.widths={list(self.widths)} must hold a width a level, each a multiple of "
                f"autoencoder.groups={self.groups}"
            )
        return self


class CasFormerConfig(StrictModel):
    """CasFormer (Gong et al. 2024, section 3.3); by default CasCast's for SEVIR, 309 M parameters with 12 frames.

    Frames go through ``frame_depth`` blocks of ``frame_width`` features apart, are joined, and go through ``depth``
    blocks of ``width`` features together. ``observations`` adds the paper's cross-attention to the latents of the
    observed frames, which the released code lacks. ``checkpoint`` computes blocks again in backward.
    """

    frame_width: PositiveInt = 256
    frame_depth: PositiveInt = 12
    frame_heads: PositiveInt = 4
    width: PositiveInt = 1152
    depth: PositiveInt = 12
    heads: PositiveInt = 16
    feed_forward_ratio: PositiveFloat = 4.0
    patch: PositiveInt = 2
    observations: bool = False
    checkpoint: bool = False

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        for width, heads in (("frame_width", "frame_heads"), ("width", "heads")):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(
                    f"casformer.{width}={getattr(self, width)} must be a multiple of casformer.{heads}="
                    f"{getattr(self, heads)}"
                )
        if self.frame_width % 4:
            raise ValueError(f"casformer.frame_width={self.frame_width} must be a multiple of 4, for its positions")
        return self


class DiscriminatorConfig(StrictModel):
    """The patch discriminator (Isola et al. 2017): ``layers`` halvings, ``width`` features after the first."""

    layers: PositiveInt = 3
    width: PositiveInt = 64
    groups: PositiveInt = 8

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        if self.width % self.groups:
            raise ValueError(
                f"autoencoder.discriminator.width={self.width} must be a multiple of autoencoder.discriminator.groups="
                f"{self.groups}"
            )
        return self


class AutoencoderTrainingConfig(StrictModel):
    """Stage ``autoencoder``: the network and its losses (Rombach et al. 2022, section 3.1; CasCast's values).

    The loss is L1 over a learned variance, summed over pixels, plus ``divergence_weight`` times the Kullback-Leibler
    divergence; after ``adversarial_start`` optimizer steps a discriminator joins, weighted by ``adversarial_weight``
    times the ratio of both losses' gradients at the last layer (Esser et al. 2021, Eq. 7).
    """

    model: AutoencoderConfig = AutoencoderConfig()
    divergence_weight: float = Field(default=1e-6, ge=0)
    adversarial_start: int = Field(default=25_000, ge=0)
    adversarial_weight: float = Field(default=0.5, ge=0)
    discriminator: DiscriminatorConfig = DiscriminatorConfig()


class SamplingConfig(StrictModel):
    """How an ensemble is drawn; nothing of it is trained.

    ``clip`` bounds the clean latent of every step, in scaled latents (CasCast: 13; null does not clip). ``guidance`` 1
    is the conditional prediction alone. ``chunk`` is how many members of all samples together are drawn at a time: it
    decides memory, never the result. ``precision`` is that of denoiser and decoder; latents and the sampler's steps are
    fp32 in either. ``cuda_graph`` replays the loop of a chunk's size from its second chunk on, on a GPU.
    """

    sampler: Literal["ddpm", "ddim", "dpm_solver"] = "ddim"
    steps: PositiveInt = 20
    spacing: Literal["leading", "trailing"] = "leading"
    eta: float = Field(default=0.0, ge=0, le=1)
    guidance: float = Field(default=2.0, ge=0)
    clip: PositiveFloat | None = 13.0
    members: PositiveInt = 10
    chunk: PositiveInt = 10
    seed: int = Field(default=0, ge=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    cuda_graph: bool = True


class ValidationConfig(StrictModel):
    """Ensembles drawn while the denoiser trains, every so many optimizer steps (0: never), with the averaged weights.

    ``windows`` of the split ``val`` are spread evenly over it and stay the same; ``members`` are drawn of each, as the
    section ``sampling`` says, in fp32. They change nothing that is trained.
    """

    every_steps: int = Field(default=0, ge=0)
    windows: PositiveInt = 8
    members: int = Field(default=4, ge=2)


class DiffusionConfig(StrictModel):
    """Stage ``diffusion``: the denoiser, its noise, and the finished runs that it stands on (CasCast, section 4.1).

    ``autoencoder`` and ``student`` are run folders; the student may be any stage that forecasts the long horizon.
    ``fold_students`` are such runs that each held out another fold of the events (``data.hold_out``): the condition of
    a training window is then forecast by the one that never saw its event. Members are drawn under the student's own.
    ``latents`` is ``cached`` for the run folder's own ``latents``, or another folder for several runs to share.
    """

    autoencoder: Path | None = None
    student: Path | None = None
    fold_students: tuple[Path, ...] | None = None
    latents: str = "cached"
    casformer: CasFormerConfig = CasFormerConfig()
    schedule: Literal["linear", "cosine"] = "linear"
    timesteps: PositiveInt = 1000
    beta_start: PositiveFloat = 1e-4
    beta_end: PositiveFloat = 0.02
    prediction: Literal["epsilon", "v"] = "epsilon"
    condition_dropout: float = Field(default=0.1, ge=0, lt=1)
    validation: ValidationConfig = ValidationConfig()
