"""A network as a program of PyTorch's own operations, that runs where this package is not installed."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

BATCH = "batch"


def capture(module: nn.Module, example: Tensor) -> ExportedProgram:
    """Return ``module`` as a program; its first axis is dynamic, all others are those of ``example``.

    Under ``torch.export`` the kernels are traced as the PyTorch operations of their reference implementations.

    Args:
        module: maps one tensor to one or several; evaluating, on the CPU.
        example: an input with at least two samples, since one would be taken for a constant.

    Raises:
        ValueError: an operator that is not PyTorch's own is left in the program.
    """
    batch = Dim(BATCH, min=1)
    with torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
    if foreign := foreign_operators(program):
        raise ValueError(f"the captured program calls {', '.join(foreign)}, which only this package knows")
    return program


def foreign_operators(program: ExportedProgram) -> list[str]:
    """Return the operators in a program, in its inner programs too, that do not come with PyTorch."""
    graphs = [one.graph for one in program.graph_module.modules() if isinstance(one, torch.fx.GraphModule)]
    called = {node.target for graph in graphs for node in graph.nodes if node.op == "call_function"}
    own = ("aten", "prim", "prims")
    return sorted(str(one) for one in called if isinstance(one, torch._ops.OpOverload) and one.namespace not in own)


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write a program as ``.pt2``, which ``torch.export.load`` reads."""
    with warnings.catch_warnings():
        # torch 2.13's own serialisation asks whether a tree is a leaf in a way that it deprecates itself.
        warnings.simplefilter("ignore", FutureWarning)
        torch.export.save(program, path)


def largest_difference(program: nn.Module, original: nn.Module, inputs: Sequence[Tensor]) -> float:
    """Return the largest absolute difference of two modules' outputs over ``inputs``, over the outputs' largest value.

    Outputs below 1 in magnitude are compared as they are.
    """
    found = 0.0
    with torch.no_grad():
        for one in inputs:
            pairs = zip(_parts(program(one)), _parts(original(one)), strict=True)
            for got, wanted in pairs:
                scale = max(1.0, wanted.abs().max().item())
                found = max(found, (got - wanted).abs().max().item() / scale)
    return found


def _parts(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else tuple(output)
