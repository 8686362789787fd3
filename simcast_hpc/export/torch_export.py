"""Capture a network as a ``torch.export`` program that contains only operators of PyTorch."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from simcast_hpc.models.fp32_precision import fp32_precision

BATCH = "batch"


# One input, or all inputs of a module with several.
Inputs = Tensor | tuple[Tensor, ...]


def arguments(inputs: Inputs) -> tuple[Tensor, ...]:
    """Return the positional arguments of a module."""
    return (inputs,) if isinstance(inputs, Tensor) else inputs


def capture(module: nn.Module, example: Inputs) -> ExportedProgram:
    """Return ``module`` as a program; the first axis of its inputs is dynamic, all others are those of ``example``.

    Under ``torch.export`` the kernels are traced as the PyTorch operations of their reference implementations.

    Args:
        module: maps one tensor or several to one or several; in evaluation mode, on the CPU.
        example: an input with at least two samples, because a batch size of one would be captured as a constant.

    Raises:
        ValueError: the program contains an operator that does not come with PyTorch.
    """
    batch = Dim(BATCH, min=1)
    with torch.no_grad():
        inputs = arguments(example)
        program = torch.export.export(module, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
    if foreign := foreign_operators(program):
        raise ValueError(f"the captured program calls {', '.join(foreign)}, which does not come with PyTorch")
    return program


def foreign_operators(program: ExportedProgram) -> list[str]:
    """Return the operators in a program and its nested programs that do not come with PyTorch."""
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    called = {node.target for graph in graphs for node in graph.nodes if node.op == "call_function"}
    own = ("aten", "prim", "prims")
    return sorted(str(op) for op in called if isinstance(op, torch._ops.OpOverload) and op.namespace not in own)


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write a program as ``.pt2``, which ``torch.export.load`` reads."""
    with warnings.catch_warnings():
        # torch 2.13's serialization calls a function that torch deprecates.
        warnings.simplefilter("ignore", FutureWarning)
        torch.export.save(program, path)


@fp32_precision()
def largest_difference(program: nn.Module, original: nn.Module, inputs: Sequence[Inputs]) -> float:
    """Return the max. difference of two modules' outputs, relative to the largest output.

    For outputs below 1 in magnitude the difference is absolute.
    """
    largest = 0.0
    with torch.no_grad():
        for one in inputs:
            given = arguments(one)
            pairs = zip(arguments(program(*given)), arguments(original(*given)), strict=True)
            for output, expected in pairs:
                scale = max(1.0, expected.abs().max().item())
                largest = max(largest, (output - expected).abs().max().item() / scale)
    return largest
