"""Capture a network as a ``torch.export`` program that contains only operators of PyTorch."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from simcast_hpc.models.fp32_precision import fp32_precision

BATCH = "batch"


def capture(module: nn.Module, example: Tensor) -> ExportedProgram:
    """Return ``module`` as a program; its first axis is dynamic, all others are those of ``example``.

    Under ``torch.export`` the kernels are traced as the PyTorch operations of their reference implementations.

    Args:
        module: maps one tensor to one or several; in evaluation mode, on the CPU.
        example: an input with at least two samples, because a batch size of one would be captured as a constant.

    Raises:
        ValueError: the program contains an operator that does not come with PyTorch.
    """
    batch = Dim(BATCH, min=1)
    with torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
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
def largest_difference(program: nn.Module, original: nn.Module, inputs: Sequence[Tensor]) -> float:
    """Return the max. difference of two modules' outputs, relative to the largest output.

    For outputs below 1 in magnitude the difference is absolute.
    """
    largest = 0.0
    with torch.no_grad():
        for one in inputs:
            pairs = zip(_parts(program(one)), _parts(original(one)), strict=True)
            for output, expected in pairs:
                scale = max(1.0, expected.abs().max().item())
                largest = max(largest, (output - expected).abs().max().item() / scale)
    return largest


def _parts(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else tuple(output)
