"""Parameters, FLOPs and saved activations of a model by part, without allocating memory.

The model is built and run on the meta device, where tensors have shapes but no values, with the operators that it runs
on CUDA.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from simcast_hpc.config import AutoencoderConfig, CasFormerConfig, EarthformerConfig, ModelConfig
from simcast_hpc.models import build_model, noise_shape
from simcast_hpc.models.autoencoder import Autoencoder
from simcast_hpc.models.casformer import CasFormer
from simcast_kernels.cuboid_attention.geometry import make_grid

from .cuda_operators import cuda_operators

_SPLIT = ("encoder", "decoder")
Levels = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """Cost of one model for one micro-batch.

    Attributes:
        parameters: number of parameters by part.
        forward_flops: FLOPs of matmuls and convolutions in a forward pass by part; a multiply-add counts as two.
        training_flops: FLOPs of a forward and a backward pass, including recomputed activations.
        activation_bytes: bytes of the tensors that the forward pass saves for backward, without weights.
        activation_bytes_without_checkpointing: the same without activation checkpointing.
        activation_bytes_with_checkpointing: the same with all levels checkpointed; equal if the model has none.
    """

    parameters: dict[str, int]
    forward_flops: dict[str, int]
    training_flops: int
    activation_bytes: int
    activation_bytes_without_checkpointing: int
    activation_bytes_with_checkpointing: int


class Network(NamedTuple):
    """A network whose cost is computed.

    Attributes:
        build: builds the network with activation checkpointing of the given levels, or as configured (None).
        inputs: returns the inputs of a micro-batch of the given size, on the meta device.
        levels: levels that can be checkpointed; only level 0 if checkpointing is all or nothing, empty if unsupported.
    """

    build: Callable[[Levels | None], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]
    levels: Levels

    def on_meta(self, recompute_levels: Levels | None, dtype: torch.dtype) -> nn.Module:
        """Return the network on the meta device, in training mode."""
        with torch.device("meta"):
            return self.build(recompute_levels).to(dtype).train()


def forecaster(
    config: ModelConfig, *, frames_in: int, frames_out: int, grid: tuple[int, int], dtype: torch.dtype, members: int = 1
) -> Network:
    """Return a forecasting network; see :func:`forecaster_cost`.

    ``members`` is the number of members per sample of a network with noise channels.
    """
    levels = tuple(range(config.levels)) if isinstance(config, EarthformerConfig) else ()

    def build(recompute: Levels | None) -> nn.Module:
        changes = {"checkpoint_levels": recompute} if levels and recompute is not None else {}
        return build_model(config.model_copy(update=changes), frames_in=frames_in, frames_out=frames_out)

    def inputs(batch: int) -> tuple[Tensor, ...]:
        input_dtype = dtype if config.base == "none" else torch.float32
        frames = torch.empty(batch, frames_in, 1, *grid, device="meta", dtype=input_dtype)
        if not config.noise_channels:
            return (frames,)
        shape = noise_shape(config, frames_in=frames_in, frames_out=frames_out, grid=grid)
        return frames, torch.empty(batch, members, *shape, device="meta")

    return Network(build, inputs, levels)


def autoencoder(config: AutoencoderConfig, *, grid: tuple[int, int]) -> Network:
    """Return an autoencoder; see :func:`autoencoder_cost`."""

    def build(recompute: Levels | None) -> nn.Module:
        changes = {} if recompute is None else {"checkpoint": bool(recompute)}
        return Autoencoder(config.model_copy(update=changes))

    def inputs(batch: int) -> tuple[Tensor, ...]:
        latent = (config.latent_channels, *(size // config.reduction for size in grid))
        return torch.empty(batch, 1, *grid, device="meta"), torch.empty(batch, *latent, device="meta")

    return Network(build, inputs, (0,))


def denoiser(
    config: CasFormerConfig, *, frames_in: int, frames_out: int, channels: int, grid: tuple[int, int]
) -> Network:
    """Return a CasFormer; see :func:`denoiser_cost`."""

    def build(recompute: Levels | None) -> nn.Module:
        changes = {} if recompute is None else {"checkpoint": bool(recompute)}
        return CasFormer(config.model_copy(update=changes), frames=frames_out, channels=channels, frames_in=frames_in)

    def inputs(batch: int) -> tuple[Tensor, ...]:
        def latents(frames: int) -> Tensor:
            return torch.empty(batch, frames, channels, *grid, device="meta")

        timesteps = torch.empty(batch, dtype=torch.int64, device="meta")
        observations = (latents(frames_in),) if config.observations else ()
        return latents(frames_out), timesteps, latents(frames_out), *observations

    return Network(build, inputs, (0,))


def forecaster_cost(
    config: ModelConfig, *, frames_in: int, frames_out: int, grid: tuple[int, int], batch: int, dtype: torch.dtype
) -> ModelCost:
    """Return the cost of training a forecasting model on one micro-batch.

    Args:
        config: the ``model`` section of a run's configuration, with ``grid`` set.
        frames_in: T.
        frames_out: T'.
        grid: H and W, in pixels.
        batch: samples per micro-batch.
        dtype: dtype of weights and activations.

    Raises:
        ValueError: the sizes are inconsistent.
    """
    network = forecaster(config, frames_in=frames_in, frames_out=frames_out, grid=grid, dtype=dtype)
    return model_cost(network, batch, dtype)


def autoencoder_cost(config: AutoencoderConfig, *, grid: tuple[int, int], batch: int, dtype: torch.dtype) -> ModelCost:
    """Return the cost of training an autoencoder on a micro-batch of frames, without the discriminator.

    Args:
        config: the sizes of the network.
        grid: H and W, in pixels.
        batch: frames per micro-batch.
        dtype: dtype of weights and activations.

    Raises:
        ValueError: the grid is not a multiple of the reduction.
    """
    return model_cost(autoencoder(config, grid=grid), batch, dtype)


def denoiser_cost(
    config: CasFormerConfig,
    *,
    frames_in: int,
    frames_out: int,
    channels: int,
    grid: tuple[int, int],
    batch: int,
    dtype: torch.dtype,
) -> ModelCost:
    """Return the cost of training a CasFormer on a micro-batch of latent sequences, which are fp32 as in training.

    Args:
        config: the sizes of the network.
        frames_in: number of observed frames; used only if ``config.observations`` is set.
        frames_out: T', frames of a latent sequence.
        channels: C of a latent.
        grid: h and w of a latent.
        batch: sequences per micro-batch.
        dtype: dtype of weights and activations.

    Raises:
        ValueError: the grid is not a multiple of the patch.
    """
    network = denoiser(config, frames_in=frames_in, frames_out=frames_out, channels=channels, grid=grid)
    return model_cost(network, batch, dtype)


def model_cost(network: Network, batch: int, dtype: torch.dtype) -> ModelCost:
    """Return the cost of training a network on a micro-batch of ``batch`` samples in ``dtype``."""
    model, inputs = network.on_meta(None, dtype), network.inputs(batch)
    forward, training = _flops_of_step(model, *inputs)
    saved = saved_bytes(model, *inputs)
    return ModelCost(
        parameters=dict(_sum_by_part({name: p.numel() for name, p in model.named_parameters()})),
        forward_flops=forward,
        training_flops=training,
        activation_bytes=saved,
        activation_bytes_without_checkpointing=(
            saved_bytes(network.on_meta((), dtype), *inputs) if network.levels else saved
        ),
        activation_bytes_with_checkpointing=(
            saved_bytes(network.on_meta(network.levels, dtype), *inputs) if network.levels else saved
        ),
    )


def forward_flops(model: nn.Module, *inputs: Tensor) -> dict[str, int]:
    """Return the FLOPs of a forward pass by part; see :class:`ModelCost`."""
    with cuda_operators(), FlopCounterMode(display=False, custom_mapping=_formulas()) as counter:
        model(*inputs)
    return _by_part(model, counter)


def _by_part(model: nn.Module, counter: FlopCounterMode) -> dict[str, int]:
    """Return the FLOPs that were counted so far by part."""
    totals = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    own = Counter(totals)  # FLOPs of a module without those of the modules that it calls
    for name in totals:
        caller = _caller(name, totals)
        if caller is not None:
            own[caller] -= totals[name]
    own[""] = own.pop("Global", 0)
    root = type(model).__name__
    return dict(
        _sum_by_part({name.removeprefix(root).removeprefix("."): count for name, count in own.items() if count})
    )


def training_flops(model: nn.Module, *inputs: Tensor) -> int:
    """Return the FLOPs of a forward and a backward pass; see :class:`ModelCost`."""
    return _flops_of_step(model, *inputs)[1]


def _flops_of_step(model: nn.Module, *inputs: Tensor) -> tuple[dict[str, int], int]:
    """Return the FLOPs of a forward pass by part, and those of the forward and the backward pass."""
    with cuda_operators(), FlopCounterMode(display=False, custom_mapping=_formulas()) as counter:
        output = model(*inputs)
        forward = _by_part(model, counter)
        torch.stack([part.sum() for part in output_tensors(output)]).sum().backward()
    model.zero_grad(set_to_none=True)
    return forward, counter.get_total_flops()


def saved_bytes(model: nn.Module, *inputs: Tensor) -> int:
    """Return the bytes of the tensors that a forward pass saves for backward, each storage once, without weights."""
    weights = {_storage_id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _storage_id(tensor) not in weights:
            saved[_storage_id(tensor)] = tensor  # referenced, so that the id of its storage is not reused
        return tensor

    with cuda_operators(), saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(*inputs)
    total = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    del output
    return total


def output_tensors(output: Any) -> list[Tensor]:
    """Return the tensors of a possibly nested output of a network."""
    return [output] if isinstance(output, Tensor) else [tensor for part in output for tensor in output_tensors(part)]


def _storage_id(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _caller(name: str, called: Mapping[str, Any]) -> str | None:
    """Return the nearest enclosing module of ``name`` whose forward was called."""
    while name not in ("", "Global"):
        name = name.rpartition(".")[0] or "Global"
        if name in called:
            return name
    return None


def _sum_by_part(counts: Mapping[str, int]) -> Counter[str]:
    """Sum counts of modules or parameters by child of the model; encoder and decoder are split into their children."""
    parts: Counter[str] = Counter()
    for name, count in counts.items():
        path = name.removeprefix("network.").split(".")  # of a model with a base forecast
        depth = 1 if path[0] not in _SPLIT else 3 if path[1:2] == ["levels"] else 2
        parts[".".join(path[:depth])] += count
    return parts


def _formulas() -> dict[Any, Any]:
    """Return the FLOP formulas of operators that torch's counter does not count correctly."""
    operators = torch.ops.simcast_kernels
    return {
        operators.cuboid_attention: _attention_flops,
        operators.cuboid_attention_backward: _attention_backward_flops,
        torch.ops.aten.convolution_backward: _convolution_backward_flops,
    }


def _convolution_backward_flops(grad, _input, weight, *options, out_shape=None) -> int:
    """Return the FLOPs of the requested gradients, each equal to those of the forward pass.

    Torch's counter treats the weights of a grouped convolution as those of an ungrouped one.
    """
    gradients = sum(options[-1][:2])
    return gradients * 2 * grad[0] * prod(grad[2:]) * prod(weight)


def _attention_flops(query, memory, _bias, _global_query, global_key, _global_value, *options, out_shape=None) -> int:
    """Return the FLOPs of two matmuls: query and keys (of cuboid and global vectors), weights and values."""
    _heads, cuboid, strategy, shift, *_ = options
    batch, *tokens, width = query
    width = width // 3 if memory is None else width
    key_grid = tokens if memory is None else memory[1:4]
    grid = make_grid(tuple(key_grid), cuboid=tuple(cuboid), strategy=tuple(strategy), shift=tuple(shift))
    keys = grid.tokens + (0 if global_key is None else global_key[1])
    return 4 * batch * prod(tokens) * keys * width


def _attention_backward_flops(
    query, memory, bias, global_query, global_key, global_value, _grad, *options, out_shape=None
) -> int:
    """Return the FLOPs of five matmuls: recomputed scores and the gradients of values, weights, queries and keys."""
    return _attention_flops(query, memory, bias, global_query, global_key, global_value, *options) * 5 // 2
