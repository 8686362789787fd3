"""Call every operator on tensors of an emulated GPU other than the current one, in the kernels of Triton's interpreter.

``python -m tests.emulated_device.device_kernels LIBRARY`` prints a JSON object: for each operator its case, the device
of its results, the number of kernel launches and the largest error of result and gradient against the same kernels on
tensors of the CPU, relative to the largest value.
"""

import importlib
import json
import os
import sys
from math import prod
from pathlib import Path
from typing import Any

DEVICE = "cuda:1"


def results(function: Any, tensors: tuple[Any, ...], *, differentiable: bool) -> list[Any]:
    """Return the result, and its gradient with respect to the first tensor."""
    import torch

    first = tensors[0].detach().requires_grad_(differentiable)
    output = function(first, *tensors[1:])
    if not differentiable:
        return [output]
    gradient = torch.linspace(0.5, 1.0, output.numel()).reshape(output.shape).to(output.device, output.dtype)
    return [output.detach(), *torch.autograd.grad(output, first, gradient)]


def compare(op: str) -> dict[str, Any]:
    """Return the comparison of one operator in its smallest case that the kernel computes."""
    import torch
    from torch.utils._pytree import tree_map

    from benchmarks.cases import op_cases
    from benchmarks.host_overhead import provider_of
    from benchmarks.providers import OURS, use_implementation
    from simcast_kernels.dispatch import Launch

    benchmark = importlib.import_module(f"benchmarks.{op}").BENCHMARK
    launches: list[str] = []
    run = Launch.run

    def counted(launch: Launch) -> None:
        launches.append(str(next(a.device for a in launch.arguments if isinstance(a, torch.Tensor))))
        run(launch)

    cases = [case for case in op_cases(op).CASES if case.dtype != torch.float64]
    Launch.run = counted
    for case in sorted(cases, key=lambda case: prod(case.shape)):
        tensors = benchmark.tensors(case, "cpu", 0)
        with torch.cuda.device(DEVICE):
            of_device = next(p.function for p in benchmark.providers(case, "cuda") if p.name in OURS)
        moved = tree_map(lambda t: t.detach().to(DEVICE) if isinstance(t, torch.Tensor) else t, tensors)
        launches.clear()
        on_device = results(of_device, moved, differentiable=benchmark.differentiable)
        if not (devices := sorted(set(launches))):
            continue  # a reference by default, such as fp32 matmuls
        with use_implementation("triton"):
            on_cpu = results(provider_of(benchmark, case), tensors, differentiable=benchmark.differentiable)
        errors = [
            ((a.cpu().double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-30)).item()
            for a, b in zip(on_device, on_cpu, strict=True)
        ]
        found = sorted({str(result.device) for result in on_device})
        return {"case": case.name, "devices": found, "launches": devices, "error": max(errors)}
    raise AssertionError(f"no case of {op} runs its kernel")


def main() -> None:
    """Start the device and print the comparisons."""
    os.environ["TRITON_INTERPRET"] = "1"
    from tests.emulated_device.emulated_cuda import start

    start(Path(sys.argv[1]))
    from benchmarks.cases import op_names

    found = {}
    for op in op_names():
        try:
            found[op] = compare(op)
        except Exception as error:  # the other operators are compared too
            found[op] = {"failed": f"{type(error).__name__}: {error}"}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # threads of the emulated device may outlive the interpreter
