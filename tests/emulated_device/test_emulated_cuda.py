"""The emulated device raises the errors of a GPU and rounds as one; otherwise the tests on it would show nothing."""

import subprocess
import sys

import pytest

from tests.multi_rank.runs import environment

pytestmark = pytest.mark.ci
_PROGRAM = """
import sys
from pathlib import Path
from tests.emulated_device.emulated_cuda import start
start(Path(sys.argv[1]))
import torch

def error(function):
    try:
        return f"no error: {function()}"
    except RuntimeError as error:
        return str(error).partition("\\n")[0]

x = torch.full((4,), 2.0, device="cuda", requires_grad=True)
(x * 3).sum().backward()
print(x.device, x.grad.tolist())
print(torch.isnan(torch.empty(3, device="cuda")).tolist())
print(error(lambda: x + torch.ones(4)))
print(error(lambda: torch.zeros(3, device="cuda:0") + torch.zeros(3, device="cuda:1")))
print(error(lambda: torch.zeros(3, device="cuda:2")))
print(error(lambda: torch.cuda.set_device(2)))
# 1 + 2^-10 has 10 bits of mantissa, 1 + 2^-12 is rounded to 1.
for bits in (10, 12):
    image = torch.full((1, 1, 1, 1), 1.0 + 2.0**-bits, device="cuda")
    kernel, matrix = torch.ones(1, 1, 1, 1, device="cuda"), image[0, 0]
    for allowed in (True, False):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
        results = torch.nn.functional.conv2d(image, kernel), matrix @ kernel[0, 0]
        print(bits, allowed, [(one.item() - 1.0) * 2.0**bits for one in results])
graph = torch.cuda.CUDAGraph()
source = torch.ones(2, device="cuda")
with torch.cuda.graph(graph):
    result = source * 2 + 1
source.fill_(5.0)
graph.replay()
print(result.tolist())
def capture():
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        source.sum().item()
print(error(capture))
pixels = torch.rand(1, 1, 4, 4, device="cuda", requires_grad=True)
larger = torch.nn.functional.interpolate(pixels, scale_factor=2, mode="bilinear")
torch.use_deterministic_algorithms(True)
print(error(lambda: larger.sum().backward()))
"""


def test_errors_and_rounding_of_a_gpu(library: str):
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, library], env=environment() | {"EMULATED_DEVICES": "2"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    mixed = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and "
    assert done.stdout.splitlines() == [
        "cuda:0 [3.0, 3.0, 3.0, 3.0]",
        "[True, True, True]",
        f"{mixed}cpu!",
        f"{mixed}cuda:1!",
        "CUDA error: invalid device ordinal (2 of 2)",
        "CUDA error: invalid device ordinal (2 of 2)",
        "10 True [1.0, 1.0]",
        "10 False [1.0, 1.0]",
        "12 True [0.0, 0.0]",
        "12 False [1.0, 1.0]",
        "[11.0, 11.0]",
        "CUDA error: operation not permitted when stream is capturing (item)",
        "aten::upsample_bilinear2d_backward.grad_input does not have a deterministic implementation, but deterministic "
        "algorithms are required",
    ]
