"""What a model costs: parameters, matrix products and bytes kept for backward, by part; no memory is allocated.

The model is built and run on the meta device, which knows shapes and no values.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from simcast_hpc.config import EarthformerConfig, ModelConfig
from simcast_kernels.cuboid_attention.geometry import make_grid

from . import build_model

_SPLIT = ("encoder", "decoder")


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

    def on_meta(one: ModelConfig) -> nn.Module:
        with torch.device("meta"):
            return build_model(one, frames_in=frames_in, frames_out=frames_out).to(dtype).train()

    frames = torch.empty(batch, frames_in, 1, *grid, device="meta", dtype=dtype)
    model = on_meta(config)
    measured = kept_bytes(model, frames)

    def kept_with(levels: tuple[int, ...]) -> int:
        if not isinstance(config, EarthformerConfig) or set(config.checkpoint_levels) == set(levels):
            return measured
        return kept_bytes(on_meta(config.model_copy(update={"checkpoint_levels": levels})), frames)

    levels = config.levels if isinstance(config, EarthformerConfig) else 0
    return Account(
        parameters=dict(_by_part({name: p.numel() for name, p in model.named_parameters()})),
        forward_flops=forward_flops(model, frames),
        training_flops=training_flops(model, frames),
        activation_bytes=measured,
        activation_bytes_kept_all=kept_with(()),
        activation_bytes_recomputed_all=kept_with(tuple(range(levels))),
    )


def forward_flops(model: nn.Module, frames: Tensor) -> dict[str, int]:
    """Return the operations of a forward pass of each part; see :class:`Account`."""
    with FlopCounterMode(display=False, custom_mapping=_formulas()) as counter:
        model(frames)
    whole = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    own = Counter(whole)
    for name in whole:
        above = _called_above(name, whole)
        if above is not None:
            own[above] -= whole[name]
    own[""] = own.pop("Global", 0)
    root = type(model).__name__
    return dict(_by_part({name.removeprefix(root).removeprefix("."): count for name, count in own.items() if count}))


def training_flops(model: nn.Module, frames: Tensor) -> int:
    """Return the operations of a forward and a backward pass; see :class:`Account`."""
    with FlopCounterMode(display=False, custom_mapping=_formulas()) as counter:
        model(frames).sum().backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def kept_bytes(model: nn.Module, frames: Tensor) -> int:
    """Return the bytes of the tensors that a forward pass keeps for backward, each storage once, weights left out."""
    weights = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
    seen: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            seen[_storage(tensor)] = tensor  # held, so that no other storage takes its place
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(frames)
    kept = sum(tensor.untyped_storage().nbytes() for tensor in seen.values())
    del output
    return kept


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
