"""Choice of algorithms during a training run: deterministic ones (``engine.deterministic``), or the fastest of cuDNN.

The shapes of a training step do not change, so cuDNN times its convolution algorithms once per shape and uses the
fastest (``torch.backends.cudnn.benchmark``); its default is a heuristic, which is poor for grouped convolutions. The
memory format is the other half of that choice: SimVP (``model.channels_last``), Earthformer, the autoencoder and its
discriminator have channels-last activations on a GPU, the layout of tensor cores.

By default cuDNN may choose weight gradients of convolutions that sum with atomics, and the backward pass of
``scaled_dot_product_attention`` sums with atomics too, so two equal steps on a GPU differ in the last bits. The kernels
of this project use no atomics. On a CPU all operators of the project are deterministic.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from simcast_hpc.config import ConfigError

_WORKSPACE, _WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Use only deterministic algorithms in a block if ``enabled``, otherwise the convolutions that cuDNN times fastest.

    The settings of the process are restored. With ``enabled``, an operator without a deterministic algorithm raises an
    error; enter the block before the first matmul on a GPU, because cuBLAS reads its variable once.

    Raises:
        ConfigError: ``CUBLAS_WORKSPACE_CONFIG`` is set to a value with which cuBLAS is not deterministic.
    """
    cudnn: Any = torch.backends.cudnn
    if not enabled:
        searched, cudnn.benchmark = cudnn.benchmark, True
        try:
            yield
        finally:
            cudnn.benchmark = searched
        return
    workspace = os.environ.get(_WORKSPACE)
    if workspace not in (None, *_WORKSPACES):
        raise ConfigError(
            f"{_WORKSPACE}={workspace!r} is not deterministic; unset it or choose {' or '.join(_WORKSPACES)}, or set "
            "engine.deterministic=false"
        )
    memory: Any = torch.utils.deterministic
    before = (cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory)
    mode = torch.get_deterministic_debug_mode()
    os.environ[_WORKSPACE] = workspace or _WORKSPACES[0]
    try:
        cudnn.deterministic, cudnn.benchmark = True, False
        # DeepSpeed reads the padding of partitions, which it never writes; filled, it would be NaN.
        memory.fill_uninitialized_memory = False
        torch.use_deterministic_algorithms(True)
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory = before
        torch.set_deterministic_debug_mode(mode)
        if workspace is None:
            del os.environ[_WORKSPACE]
