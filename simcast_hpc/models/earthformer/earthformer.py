"""The whole: stem, positions, encoder, decoder, head."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simcast_hpc.config import EarthformerConfig

from .activations import LEAKY_SLOPE
from .attention import CuboidSelfAttention
from .cross_attention import CuboidCrossAttention
from .decoder import Decoder, InitialQuery
from .encoder import Encoder
from .levels import check_patterns, level_grids
from .positions import Positions
from .stems import build_head_stages, build_stem, head_width, stem_grids

# Attentions of one pass share a random draw and add their number, so draws stand this far apart.
SEEDS_PER_PASS = 2**16


class Head(nn.Linear):
    """The last projection: ``[..., D] -> [..., C]``, in fp32 whatever it was cast to.

    One bf16 step near 1 is up to half of a radar code out of 255, so everything from here on stays fp32.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the frames, fp32."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        # The meta device, on which a run is checked before any device is touched, knows no autocast.
        wide_only = nullcontext() if input.is_meta else torch.autocast(input.device.type, enabled=False)
        with wide_only:
            return F.linear(input.to(wide), self.weight.to(wide), self.bias.to(wide))


class Earthformer(nn.Module):
    """Earthformer, non-autoregressive: ``[B, T, C, H, W] -> [B, T', C, H, W]``, fp32 out.

    All T' frames come from one pass. Predictions are not bounded: no activation follows the head. In training with
    ``attention_dropout`` each pass draws one seed from torch's CPU generator, outside of what is computed again in
    backward; each attention adds its number. Other dropout uses the generator of its device.

    Args:
        config: the ``model`` section of a run's configuration; ``grid`` is H and W.
        frames_in: T.
        frames_out: T'.
        channels: C.

    Raises:
        ValueError: an unknown pattern, or sizes that do not fit one another.

    Source: Gao et al. (NeurIPS 2022, arXiv 2207.05833). Linear and convolution weights are drawn from normal
    distributions of variance 1 / fan-in, with He's factor for the stem's activation, biases are 0, as in the released
    training code; tables from a normal distribution of standard deviation 0.02 cut at 2.
    """

    def __init__(self, config: EarthformerConfig, *, frames_in: int, frames_out: int, channels: int = 1):
        super().__init__()
        for name, value in (("frames_in", frames_in), ("frames_out", frames_out), ("channels", channels)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.frames_in, self.frames_out, self.channels = frames_in, frames_out, channels
        self.grid = stem_grids(config)[0]
        check_patterns(config, frames_in=frames_in)
        vectors, finest = config.global_vectors, level_grids(config)[0]
        self.stem = build_stem(config, channels=channels)
        self.positions = Positions(config.positions, tokens=(frames_in, *finest), width=config.width)
        self.global_vectors = nn.Parameter(torch.empty(vectors.count, config.width)) if vectors.count else None
        self.encoder = Encoder(config, frames_in=frames_in)
        self.query = InitialQuery(config, frames_out=frames_out)
        self.decoder = Decoder(config, frames_in=frames_in, frames_out=frames_out)
        self.head_stages = build_head_stages(config)
        self.head = Head(head_width(config), channels)
        self.draws_seeds = config.attention_dropout > 0
        self._number_attentions()
        if not (vectors.in_decoder or vectors.in_cross_attention):
            self._leave_out_last_renewal()
        self._draw_weights()

    def forward(self, frames: Tensor) -> Tensor:
        """Forecast the next frames.

        Args:
            frames: ``[B, T, C, H, W]``, floating point, in [0, 1], on the configured grid. Cast to the dtype of the
                weights inside.

        Returns:
            ``[B, T', C, H, W]``, fp32, in the units of the input.

        Raises:
            TypeError: ``frames`` holds integers.
            ValueError: ``frames`` has another shape than the model was built for.
        """
        self._check_frames(frames)
        seed = _draw_seed() if self.training and self.draws_seeds else 0
        batch = frames.shape[0]  # len() would fix the size in an exported program
        pixels = frames.to(self.head.weight.dtype).flatten(0, 1).permute(0, 2, 3, 1)
        x = self.positions(self.stem(pixels).unflatten(0, (batch, self.frames_in)))
        vectors = None if self.global_vectors is None else self.global_vectors.expand(batch, -1, -1)
        memories, vector_memories = self.encoder(x, vectors, seed=seed)
        tokens = self.decoder(self.query(memories[-1]), memories, vector_memories, seed=seed)
        forecast = self.head(self.head_stages(tokens.flatten(0, 1)))
        return forecast.permute(0, 3, 1, 2).unflatten(0, (batch, self.frames_out))

    def output_time_tables(self) -> list[str]:
        """Return the names of the parameters that hold a row for each frame of the forecast: ``[T', D]``."""
        places = {"query.positions": self.query.positions}
        places |= {f"decoder.positions.{i}": one for i, one in enumerate(self.decoder.positions)}
        return [f"{place}.time" for place in places]

    def _check_frames(self, frames: Tensor) -> None:
        wanted = (self.frames_in, self.channels, *self.grid)
        if frames.ndim != 5 or tuple(frames.shape[1:]) != wanted or frames.shape[0] == 0:
            raise ValueError(
                f"this Earthformer was built for frames [B, {', '.join(map(str, wanted))}] (frames_in, channels and "
                f"model.grid), got shape {tuple(frames.shape)}"
            )
        if not frames.is_floating_point():
            raise TypeError(
                f"Earthformer wants floating-point frames in [0, 1], got {frames.dtype}; divide codes by 255 first"
            )

    def _number_attentions(self) -> None:
        kinds = (CuboidSelfAttention, CuboidCrossAttention)
        for number, attention in enumerate(module for module in self.modules() if isinstance(module, kinds)):
            attention.number = number

    def _leave_out_last_renewal(self) -> None:
        """Let the encoder's last attention leave the global vectors as they are: nobody reads them after it."""
        *_, last = (module for module in self.encoder.modules() if isinstance(module, CuboidSelfAttention))
        last.renews = False

    def _draw_weights(self) -> None:
        if self.global_vectors is not None:
            nn.init.trunc_normal_(self.global_vectors, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=LEAKY_SLOPE)
            else:
                continue
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _draw_seed() -> int:
    return int(torch.randint(2**46, (), device="cpu")) * SEEDS_PER_PASS
