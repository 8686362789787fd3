"""Align the parameters of a network in ZeRO's flat buffers to 16 bytes.

DeepSpeed stores the parameters of an optimizer group one after another in one buffer. After a parameter whose size is
not a multiple of 16 bytes (Earthformer's tables of position biases, 100 or 252 elements), all that follow are
misaligned: a kernel then reads them one element at a time, since vector loads need aligned addresses. Triton compiles
each combination of aligned and misaligned arguments separately.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from simcast_hpc.config import EngineConfig

ALIGNMENT_BYTES = 16
_ELEMENTS = 8  # of bf16; twice what fp32 requires
_PREFIX = "alignment_padding_"


def zero_alignment(engine: EngineConfig) -> dict[str, Any]:
    """Return the ZeRO options that align parameters; ZeRO 1 in bf16 ignores them (see :func:`padded_groups`)."""
    return {"parameter_alignment": True} if engine.zero_stage in (1, 2) else {}


def needs_padding(engine: EngineConfig, *, world_size: int) -> bool:
    """Return whether DeepSpeed's optimizer has no option that aligns parameters.

    ZeRO 1 in bf16 uses the BF16_Optimizer, which ignores ``parameter_alignment``. ZeRO 3 on one rank copies nothing:
    its parameters are views of one flat buffer, without such an option.
    """
    in_bf16 = engine.zero_stage == 1 and engine.precision == "bf16" and engine.offload == "none"
    return in_bf16 or (engine.zero_stage == 3 and world_size == 1)


@contextmanager
def padded_groups(
    module: torch.nn.Module, groups: list[dict[str, Any]], *, pad: bool
) -> Iterator[list[dict[str, Any]]]:
    """Yield ``groups`` with a padding parameter after each parameter whose size is no multiple of 8 elements.

    Inside the context the padding belongs to ``module`` too, since DeepSpeed looks up each parameter's name, device and
    dtype there. Afterwards it exists in the optimizer only: it has no gradient, its values stay 0, and neither
    ``module.parameters()`` nor a checkpoint contains it.
    """
    if not pad:
        yield groups
        return
    names: list[str] = []

    def padding(parameter: torch.nn.Parameter) -> list[torch.nn.Parameter]:
        elements = -getattr(parameter, "ds_numel", parameter.numel()) % _ELEMENTS  # ds_numel: already partitioned
        if not elements:
            return []
        names.append(f"{_PREFIX}{len(names)}")
        zeros = torch.nn.Parameter(torch.zeros(elements, dtype=parameter.dtype, device=parameter.device))
        module.register_parameter(names[-1], zeros)
        return [zeros]

    try:
        yield [
            group | {"params": [one for owned in group["params"] for one in (owned, *padding(owned))]}
            for group in groups
        ]
    finally:
        for name in names:
            delattr(module, name)
