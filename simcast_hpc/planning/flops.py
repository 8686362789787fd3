"""What a model costs: parameters, matrix products and bytes kept for backward, by part; no memory is allocated.

The model is built and run on the meta device, which knows shapes and no values. Attention of torch's own is counted as
the fused one that GPUs run, which keeps no weights of token pairs.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from simcast_hpc.config import AutoencoderConfig, CasFormerConfig, EarthformerConfig, ModelConfig
from simcast_hpc.models import build_model
from simcast_hpc.models.autoencoder import Autoencoder
from simcast_hpc.models.casformer import CasFormer
from simcast_kernels.cuboid_attention.geometry import make_grid

_SPLIT = ("encoder", "decoder")
Levels = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Account:
    """Costs of one model at one batch.

    Attributes:
        parameters: of each part.
        forward_flops: operations of matrix products and convolutions in a forward pass, a multiplication and its
            addition as two, of each part.
        training_flops: of a forward and a backward pass, what is computed again in backward counted again.
        activation_bytes: of the tensors that the forward pass keeps for backward; weights are not among them.
        activation_bytes_kept_all: the same if no level were computed again in backward.
        activation_bytes_recomputed_all: the same if every level were; equal where a model cannot.
    """

    parameters: dict[str, int]
    forward_flops: dict[str, int]
    training_flops: int
    activation_bytes: int
    activation_bytes_kept_all: int
    activation_bytes_recomputed_all: int


class Subject(NamedTuple):
    """A network to be looked at.

    ``made(again)`` builds it, as configured (None) or with these of its ``levels`` computed again in backward: one that
    knows all or nothing has the one level 0, one that cannot has none. ``inputs(batch)`` are those of a micro
    batch, on the meta device.
    """

    made: Callable[[Levels | None], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]
    levels: Levels

    def on_meta(self, again: Levels | None, dtype: torch.dtype) -> nn.Module:
        """Return the network without its memory, ready to train."""
        with torch.device("meta"):
            return self.made(again).to(dtype).train()


def forecaster(
    config: ModelConfig, *, frames_in: int, frames_out: int, grid: tuple[int, int], dtype: torch.dtype
) -> Subject:
    """Return a forecasting network; see :func:`account_of`."""
    levels = tuple(range(config.levels)) if isinstance(config, EarthformerConfig) else ()

    def made(again: Levels | None) -> nn.Module:
        one = config.model_copy(update={"checkpoint_levels": again}) if levels and again is not None else config
        return build_model(one, frames_in=frames_in, frames_out=frames_out)

    def inputs(batch: int) -> tuple[Tensor, ...]:
        return (torch.empty(batch, frames_in, 1, *grid, device="meta", dtype=dtype),)

    return Subject(made, inputs, levels)


def autoencoder(config: AutoencoderConfig, *, grid: tuple[int, int]) -> Subject:
    """Return an autoencoder; see :func:`autoencoder_account`."""

    def made(again: Levels | None) -> nn.Module:
        return Autoencoder(config if again is None else config.model_copy(update={"checkpoint": bool(again)}))

    def inputs(batch: int) -> tuple[Tensor, ...]:
        latent = (config.latent_channels, *(size // config.reduction for size in grid))
        return torch.empty(batch, 1, *grid, device="meta"), torch.empty(batch, *latent, device="meta")

    return Subject(made, inputs, (0,))


def denoiser(
    config: CasFormerConfig, *, frames_in: int, frames_out: int, channels: int, grid: tuple[int, int]
) -> Subject:
    """Return a CasFormer; see :func:`denoiser_account`."""

    def made(again: Levels | None) -> nn.Module:
        one = config if again is None else config.model_copy(update={"checkpoint": bool(again)})
        return CasFormer(one, frames=frames_out, channels=channels, frames_in=frames_in)

    def inputs(batch: int) -> tuple[Tensor, ...]:
        def latents(frames: int) -> Tensor:
            return torch.empty(batch, frames, channels, *grid, device="meta")

        timesteps = torch.empty(batch, dtype=torch.int64, device="meta")
        seen = (latents(frames_in),) if config.observations else ()
        return latents(frames_out), timesteps, latents(frames_out), *seen

    return Subject(made, inputs, (0,))


def account_of(
    config: ModelConfig, *, frames_in: int, frames_out: int, grid: tuple[int, int], batch: int, dtype: torch.dtype
) -> Account:
    """Return what a model costs in training on a micro batch.

    Args:
        config: the ``model`` section of a run's configuration, fitted to ``grid``.
        frames_in: T.
        frames_out: T'.
        grid: H and W, in pixels.
        batch: samples of a micro batch.
        dtype: of weights and activations.

    Raises:
        ValueError: the sizes do not fit one another.
    """
    subject = forecaster(config, frames_in=frames_in, frames_out=frames_out, grid=grid, dtype=dtype)
    return account(subject, batch, dtype)


def autoencoder_account(config: AutoencoderConfig, *, grid: tuple[int, int], batch: int, dtype: torch.dtype) -> Account:
    """Return what an autoencoder costs on a micro batch of single frames; the discriminator is not in it.

    Args:
        config: the network's sizes.
        grid: H and W, in pixels.
        batch: frames of a micro batch.
        dtype: of weights and activations.

    Raises:
        ValueError: the grid does not fall into latents.
    """
    return account(autoencoder(config, grid=grid), batch, dtype)


def denoiser_account(
    config: CasFormerConfig,
    *,
    frames_in: int,
    frames_out: int,
    channels: int,
    grid: tuple[int, int],
    batch: int,
    dtype: torch.dtype,
) -> Account:
    """Return what a CasFormer costs on a micro batch of latent sequences, which are fp32 as in training.

    Args:
        config: the network's sizes.
        frames_in: frames of the observations, of use where ``config.observations`` is set.
        frames_out: T', frames of a latent sequence.
        channels: C, of a latent.
        grid: h and w, of a latent.
        batch: sequences of a micro batch.
        dtype: of weights and activations.

    Raises:
        ValueError: the latents do not fall into patches.
    """
    subject = denoiser(config, frames_in=frames_in, frames_out=frames_out, channels=channels, grid=grid)
    return account(subject, batch, dtype)


def account(subject: Subject, batch: int, dtype: torch.dtype) -> Account:
    """Return what a network costs on a micro batch of ``batch``, in ``dtype``."""
    model, inputs = subject.on_meta(None, dtype), subject.inputs(batch)
    return Account(
        parameters=dict(_by_part({name: p.numel() for name, p in model.named_parameters()})),
        forward_flops=forward_flops(model, *inputs),
        training_flops=training_flops(model, *inputs),
        activation_bytes=kept_bytes(model, *inputs),
        activation_bytes_kept_all=kept_bytes(subject.on_meta((), dtype), *inputs),
        activation_bytes_recomputed_all=kept_bytes(subject.on_meta(subject.levels, dtype), *inputs),
    )


def forward_flops(model: nn.Module, *inputs: Tensor) -> dict[str, int]:
    """Return the operations of a forward pass of each part; see :class:`Account`."""
    with fused_attention(), FlopCounterMode(display=False, custom_mapping=_formulas()) as counter:
        model(*inputs)
    whole = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    own = Counter(whole)
    for name in whole:
        above = _called_above(name, whole)
        if above is not None:
            own[above] -= whole[name]
    own[""] = own.pop("Global", 0)
    root = type(model).__name__
    return dict(_by_part({name.removeprefix(root).removeprefix("."): count for name, count in own.items() if count}))


def training_flops(model: nn.Module, *inputs: Tensor) -> int:
    """Return the operations of a forward and a backward pass; see :class:`Account`."""
    with fused_attention(), FlopCounterMode(display=False, custom_mapping=_formulas()) as counter:
        torch.stack([part.sum() for part in output_tensors(model(*inputs))]).sum().backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def kept_bytes(model: nn.Module, *inputs: Tensor) -> int:
    """Return the bytes of the tensors that a forward pass keeps for backward, each storage once, weights left out."""
    weights = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
    seen: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            seen[_storage(tensor)] = tensor  # held, so that no other storage takes its place
        return tensor

    with fused_attention(), saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(*inputs)
    kept = sum(tensor.untyped_storage().nbytes() for tensor in seen.values())
    del output
    return kept


@contextmanager
def fused_attention() -> Iterator[None]:
    """Take torch's attention on the meta device for the fused one.

    There torch spells it out, and would count weights of pairs that no GPU keeps.

    The function itself is replaced: a mode of torch would not reach what backward computes again.
    """
    spelt_out = F.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if query.device.type != "meta":
            return spelt_out(query, key, value)
        return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, True)[0]

    with patch.object(F, "scaled_dot_product_attention", attention):
        yield


def output_tensors(output: Any) -> list[Tensor]:
    """Return the tensors of a network's output, however they are nested."""
    return [output] if isinstance(output, Tensor) else [tensor for part in output for tensor in output_tensors(part)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _called_above(name: str, called: Mapping[str, Any]) -> str | None:
    """Return the nearest module around ``name`` whose forward was called."""
    while name not in ("", "Global"):
        name = name.rpartition(".")[0] or "Global"
        if name in called:
            return name
    return None


def _by_part(numbers: Mapping[str, int]) -> Counter[str]:
    """Add numbers of modules or parameters up: to the model's children, in encoder and decoder to their children."""
    parts: Counter[str] = Counter()
    for name, number in numbers.items():
        places = name.split(".")
        deep = 1 if places[0] not in _SPLIT else 3 if places[1:2] == ["levels"] else 2
        parts[".".join(places[:deep])] += number
    return parts


def _formulas() -> dict[Any, Any]:
    """Return the operations of our own operators, which torch's counter does not know."""
    operators = torch.ops.simcast_kernels
    return {
        operators.cuboid_attention: _attention_flops,
        operators.cuboid_attention_backward: _attention_backward_flops,
        torch.ops.aten.convolution_backward: _convolution_backward_flops,
    }


def _convolution_backward_flops(grad, _input, weight, *options, out_shape=None) -> int:
    """Return the operations of the gradients that are asked for, each as many as the forward pass has.

    torch's own count takes the weights of a grouped convolution for those of a full one.
    """
    wanted = sum(options[-1][:2])
    return wanted * 2 * grad[0] * prod(grad[2:]) * prod(weight)


def _attention_flops(query, memory, _bias, _global_query, global_key, _global_value, *options, out_shape=None) -> int:
    """Two products: of each token with the keys of its cuboid and of the global vectors, of the weights with values."""
    _heads, cuboid, strategy, shift, *_ = options
    batch, *tokens, width = query
    width = width // 3 if memory is None else width
    keys = tokens if memory is None else memory[1:4]
    grid = make_grid(tuple(keys), cuboid=tuple(cuboid), strategy=tuple(strategy), shift=tuple(shift))
    seen = grid.tokens + (0 if global_key is None else global_key[1])
    return 4 * batch * prod(tokens) * seen * width


def _attention_backward_flops(
    query, memory, bias, global_query, global_key, global_value, _grad, *options, out_shape=None
) -> int:
    """Five products for two: the scores again, and the gradients of values, weights, queries and keys."""
    return _attention_flops(query, memory, bias, global_query, global_key, global_value, *options) * 5 // 2
