"""Custom operators of cuboid attention: implementation, fake tensors, gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor

from simcast_kernels.direct_call import custom_operator
from simcast_kernels.dispatch import select_implementation, warn_of_fallback, without_autocast

from . import reference
from .geometry import Inputs, Options, Problem, make_problem

_OP = "cuboid_attention"


def attend(inputs: Inputs, options: Options) -> Tensor:
    """Return the attention of validated inputs, differentiable."""
    if torch.compiler.is_exporting():
        return reference.forward(inputs, make_problem(inputs, options))
    heads, cuboid, strategy, shift, padding, scale, dropout, seed, offset, domain = options
    scale = (inputs.width // heads) ** -0.5 if scale is None else scale
    letters = "".join(strategy)
    return forward_operator(
        *inputs, heads, list(cuboid), letters, list(shift), padding, float(scale), float(dropout), seed,
        list(offset), list(domain or ()),
    )  # fmt: skip


@custom_operator("simcast_kernels::cuboid_attention")
def forward_operator(
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
    offset: Sequence[int],
    domain: Sequence[int],
) -> Tensor:
    """Return the attention ``[B, T, H, W, D]``."""
    inputs = Inputs(query, memory, bias, global_query, global_key, global_value)
    options = _options(heads, cuboid, strategy, shift, padding, scale, dropout, seed, offset, domain)
    problem = make_problem(inputs, options)
    with without_autocast(query.device.type):
        return _implementation(inputs, problem).forward(inputs, problem)


@forward_operator.register_fake
def _(query, memory, bias, global_query, global_key, global_value, *options):
    return query.new_empty(*query.shape[:4], Inputs(query, memory).width)


@custom_operator("simcast_kernels::cuboid_attention_backward")
def backward_operator(
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
    offset: Sequence[int],
    domain: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradient of each tensor of the inputs."""
    inputs = Inputs(query, memory, bias, global_query, global_key, global_value)
    options = _options(heads, cuboid, strategy, shift, padding, scale, dropout, seed, offset, domain)
    problem = make_problem(inputs, options)
    with without_autocast(query.device.type):
        grads = _implementation(inputs, problem).backward(inputs, problem, grad_output)
    # An operator cannot return None: the gradient of an absent input is an empty tensor.
    query_, memory_, bias_, *rest = (query.new_empty(0) if g is None else g.contiguous() for g in grads)
    return query_, memory_, bias_, rest[0], rest[1], rest[2]


@backward_operator.register_fake
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
    grads = backward_operator(*tensors, grad_output, *ctx.options)
    return *(None if x is None else g for x, g in zip(tensors, grads, strict=True)), *(None for _ in ctx.options)


forward_operator.register_autograd(_gradients, setup_context=_save_inputs)


def _options(heads, cuboid, strategy, shift, padding, scale, dropout, seed, offset, domain) -> Options:
    """Return the options of an operator call; an empty ``domain`` is the grid itself."""
    return Options(
        heads, tuple(cuboid), tuple(strategy), tuple(shift), padding, scale, dropout, seed, tuple(offset),
        tuple(domain) or None,
    )  # fmt: skip


def _implementation(inputs: Inputs, problem: Problem):
    double = inputs.query.dtype == torch.float64
    if double or select_implementation(_OP, inputs.query.device) == "reference":
        return reference
    from . import kernel  # imports Triton

    if reason := kernel.unsupported(inputs, problem):
        warn_of_fallback(_OP, reason)
        return reference
    return kernel
