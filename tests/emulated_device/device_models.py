"""Forward and backward pass of every network on the emulated GPU, in bf16, fp32 and under autocast.

``python -m tests.emulated_device.device_models LIBRARY`` prints a JSON object: for each network and precision what is
wrong (a mix of devices or dtypes, a value that is not finite), or an empty string.
"""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

PRECISIONS = ("bf16", "fp32", "autocast")


def fault(build: Any, precision: str) -> str:
    """Return what is wrong with a network in a precision, or an empty string."""
    import torch

    torch.manual_seed(0)
    module, sample = build()
    module, sample = module.cuda(), [tensor.cuda() for tensor in sample]
    if precision == "bf16":
        module = module.bfloat16()
    autocast = torch.autocast("cuda", torch.bfloat16) if precision == "autocast" else contextlib.nullcontext()
    try:
        with autocast:
            loss = module(*sample)
        loss.backward()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if loss.dtype != torch.float32 or loss.device.type != "cuda" or not torch.isfinite(loss):
        return f"the loss is {loss.item()}, {loss.dtype} on {loss.device}"
    for name, parameter in module.named_parameters():
        grad = parameter.grad
        if grad is not None and (grad.dtype, grad.device) != (parameter.dtype, parameter.device):
            return f"the gradient of {name} is {grad.dtype} on {grad.device}"
    if not any(parameter.grad is not None for parameter in module.parameters()):
        return "no parameter has a gradient"
    return ""


def main() -> None:
    """Start the device and print the faults."""
    from tests.emulated_device.emulated_cuda import start

    start(Path(sys.argv[1]))
    os.environ["SIMCAST_KERNELS"] = "reference"  # the kernels are tested by device_kernels.py
    from tests.train.test_compiled_network import autoencoder, casformer, correction, earthformer, simvp

    builds = (simvp, correction, earthformer, casformer, autoencoder)
    print(json.dumps({f"{build.__name__} {p}": fault(build, p) for build in builds for p in PRECISIONS}))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # threads of the emulated device may outlive the interpreter
