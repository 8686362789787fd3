"""Build a model whose weights are partitioned over the ranks as soon as each module exists (DeepSpeed's zero.Init).

No rank ever stores the complete model. The weights equal those of a model that is built as a whole: random numbers are
drawn on the CPU in fp32 in the same order, and code that initializes the weights of finished submodules gets complete
weights.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from simcast_hpc.config import TrainConfig

from .engine import deepspeed_config
from .process_group import TorchRanks, import_deepspeed

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def build_partitioned(
    build: Callable[[], torch.nn.Module], config: TrainConfig, ranks: TorchRanks, *, unit: Any = None
) -> torch.nn.Module:
    """Return the module that ``build`` returns, with weights in the precision of training. A collective.

    With ``engine.zero_init`` its weights are partitioned; each rank stores its part only. Otherwise they are complete
    on every rank, and DeepSpeed partitions them later.

    Args:
        build: constructs the module; it must be the same on every rank.
        config: of the run.
        ranks: the ranks.
        unit: DeepSpeed's ``mpu``, as in ``build_engine``.
    """
    if not config.engine.zero_init:
        return build()
    deepspeed = import_deepspeed()
    init = deepspeed.zero.Init(
        config_dict_or_path=deepspeed_config(config, world_size=ranks.size),
        # Without overrides, tensors are created as the model states, so that random numbers are those of fp32 on a CPU.
        tensor_overrides=[],
        mpu=unit,
    )
    with init, _complete_weights_for_initialization():
        module = build()
    for parameter in module.parameters():
        if is_partitioned(parameter):
            dtype = _DTYPES[config.engine.precision]
            parameter.data = parameter.data.to(dtype)
            partition: Any = parameter.ds_tensor  # pyright: ignore[reportAttributeAccessIssue]
            partition.data = partition.data.to(dtype)
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            owner._buffers[name] = buffer.to(ranks.device)  # DeepSpeed moves no module that it has built
    return module


def is_partitioned(tensor: Any) -> bool:
    """Return whether a parameter is partitioned by ZeRO 3, so that ``tensor.shape`` is not its own."""
    return hasattr(tensor, "ds_id")


def full_shape(tensor: torch.Tensor) -> torch.Size:
    """Return the shape of a tensor, also of a parameter that is partitioned."""
    return torch.Size(getattr(tensor, "ds_shape", tensor.shape))


def load_values(module: torch.nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """Copy values into the parameters and buffers of these names, one at a time. A collective if they are partitioned.

    Args:
        module: changed in place.
        values: by name, in the full shapes of the parameters; other tensors of the module are unchanged.
    """
    own = module.state_dict(keep_vars=True)
    for name, value in values.items():
        with torch.no_grad(), _gathered([own[name]]):
            own[name].copy_(value)


@contextmanager
def _gathered(tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """Gather those parameters that are partitioned; at the end, each rank keeps its part of rank 0's values."""
    partitioned = [one for one in tensors if is_partitioned(one) and not one.numel()]
    if not partitioned:
        yield
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(partitioned, modifier_rank=0):
        yield


@contextmanager
def _complete_weights_for_initialization() -> Iterator[None]:
    """Let a model initialize the weights of its submodules, which are partitioned already when its own code runs.

    Within the context ``for module in model.modules()`` gathers the weights of each module for its turn of the loop,
    and the functions of ``torch.nn.init`` gather their argument.
    """
    iterate = torch.nn.Module.modules

    def modules(self: torch.nn.Module, remove_duplicate: bool = True) -> Iterator[torch.nn.Module]:
        for module in iterate(self, remove_duplicate):
            with _gathered(list(module.parameters(recurse=False))):
                yield module

    def gathering(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def initialize(tensor: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
            with _gathered([tensor]):
                return function(tensor, *arguments, **options)

        return initialize

    public = [name for name in vars(torch.nn.init) if name.endswith("_") and not name.startswith("_")]
    originals = {name: getattr(torch.nn.init, name) for name in public}
    try:
        torch.nn.Module.modules = modules
        for name, function in originals.items():
            setattr(torch.nn.init, name, gathering(function))
        yield
    finally:
        torch.nn.Module.modules = iterate
        for name, function in originals.items():
            setattr(torch.nn.init, name, function)
