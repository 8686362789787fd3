"""The custom operators: which body runs, what the compiler may know of the results, and their gradients."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from simcast_kernels.dispatch import are_twins_inlined, body_for

from . import reference
from .problem import Inputs, Options, Problem, make_problem

_told: set[str] = set()


def attend(inputs: Inputs, options: Options) -> Tensor:
    """Return the attention of checked inputs, differentiable, through the custom operator."""
    if are_twins_inlined():
        return reference.forward(inputs, make_problem(inputs, options))
    heads, cuboid, strategy, shift, padding, scale, dropout, seed = options
    scale = (inputs.width // heads) ** -0.5 if scale is None else scale
    letters = "".join(strategy)
    return torch.ops.simcast_kernels.cuboid_attention(
        *inputs, heads, list(cuboid), letters, list(shift), padding, float(scale), float(dropout), seed
    )


@torch.library.custom_op("simcast_kernels::cuboid_attention", mutates_args=())
def _forward(
    query: Tensor,
    memory: Tensor | None,
    bias: Tensor | None,
    global_query: Tensor | None,
    global_key: Tensor | None,
    global_value: Tensor | None,
    heads: int,
    cuboid: Sequence[int],
    strategy: str,
    shift: Sequence[int],
    padding: str,
    scale: float,
    dropout: float,
    seed: int,
) -> Tensor:
    inputs = Inputs(query, memory, bias, global_query, global_key, global_value)
    problem = make_problem(inputs, _options(heads, cuboid, strategy, shift, padding, scale, dropout, seed))
    with torch.autocast(query.device.type, enabled=False):
        return _body(inputs, problem).forward(inputs, problem)


@_forward.register_fake
def _(query, memory, bias, global_query, global_key, global_value, *options):
    return query.new_empty(*query.shape[:4], Inputs(query, memory).width)


@torch.library.custom_op("simcast_kernels::cuboid_attention_backward", mutates_args=())
def _backward(
    query: Tensor,
    memory: Tensor | None,
    bias: Tensor | None,
    global_query: Tensor | None,
    global_key: Tensor | None,
    global_value: Tensor | None,
    grad_output: Tensor,
    heads: int,
    cuboid: Sequence[int],
    strategy: str,
    shift: Sequence[int],
    padding: str,
    scale: float,
    dropout: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = Inputs(query, memory, bias, global_query, global_key, global_value)
    problem = make_problem(inputs, _options(heads, cuboid, strategy, shift, padding, scale, dropout, seed))
    with torch.autocast(query.device.type, enabled=False):
        grads = _body(inputs, problem).backward(inputs, problem, grad_output)
    # An operator cannot return None: an empty tensor stands for the gradient of an input that is not there.
    query_, memory_, bias_, *rest = (query.new_empty(0) if g is None else g.contiguous() for g in grads)
    return query_, memory_, bias_, rest[0], rest[1], rest[2]


@_backward.register_fake
def _(query, memory, bias, global_query, global_key, global_value, grad_output, *options):
    tensors = (query, memory, bias, global_query, global_key, global_value)
    return tuple(
        query.new_empty(0) if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in tensors
    )


def _save_inputs(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


def _gradients(ctx, grad_output):
    tensors = ctx.saved_tensors
    grads = torch.ops.simcast_kernels.cuboid_attention_backward(*tensors, grad_output, *ctx.options)
    return *(None if x is None else g for x, g in zip(tensors, grads, strict=True)), *(None for _ in ctx.options)


_forward.register_autograd(_gradients, setup_context=_save_inputs)


def _options(heads, cuboid, strategy, shift, padding, scale, dropout, seed) -> Options:
    return Options(heads, tuple(cuboid), tuple(strategy), tuple(shift), padding, scale, dropout, seed)


def _body(inputs: Inputs, problem: Problem):
    if body_for("cuboid_attention", inputs.query.device) == "reference":
        return reference
    from . import kernel  # late: the twin needs no Triton

    refused = kernel.refusal(inputs, problem)
    if refused:
        if refused not in _told:
            _told.add(refused)
            warnings.warn(f"cuboid_attention takes its slower PyTorch twin: {refused}", stacklevel=2)
        return reference
    return kernel
