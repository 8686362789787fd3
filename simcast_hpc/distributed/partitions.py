"""The part of a model's training state that a rank holds, without communication.

ZeRO gives each rank a range of elements of each flattened parameter, in fp32, with both Adam moments: under stages 1
and 2 a contiguous range of all parameters, so that a rank holds most of them completely or not at all; under stage 3 an
equal range of each.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from simcast_hpc.config import EngineConfig

from .named_tensors import MOMENTS, Tensors, is_plain, trainable
from .process_group import TorchRanks

_MAX_WRITERS = 16
Lookup = Callable[[str, str, int, int], torch.Tensor]
"""Maps a kind (``param``, ``exp_avg``, ``exp_avg_sq``), a parameter's name, and the first and the number of elements to
these elements, fp32 ``[length]``."""


class Fragment(NamedTuple):
    """A range of elements of one flattened parameter that this rank holds.

    Attributes:
        name: of the parameter.
        start: the first element.
        tensors: ``param`` and, if they were requested, both moments, fp32 ``[length]``; live memory.
    """

    name: str
    start: int
    tensors: Tensors

    @property
    def length(self) -> int:
        """Number of elements."""
        return self.tensors["param"].numel()


def shape_of(parameter: Any) -> torch.Size:
    """Return the shape of a parameter, which under ZeRO 3 is an empty tensor between its uses."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def stored_fragments(engine: Any, ranks: TorchRanks, *, moments: bool = True) -> Iterator[Fragment]:
    """Yield what this rank stores in a checkpoint: every element of every parameter on exactly one rank.

    State that several ranks hold is stored by one of them: without ZeRO, parameters are distributed by size over at
    most 16 ranks.

    Args:
        engine: the DeepSpeed engine.
        ranks: its ranks.
        moments: with both moments, which exist after the first optimizer step.
    """
    if is_plain(engine):
        named = list(trainable(engine))
        owners = balanced_owners([parameter.numel() for _, parameter in named], writers=min(ranks.size, _MAX_WRITERS))
        owned = {name for (name, _), owner in zip(named, owners, strict=True) if owner == ranks.rank}
        yield from (fragment for fragment in held_fragments(engine, moments=moments) if fragment.name in owned)
        return
    group = _partition_group(engine)
    if group is None or 0 in torch.distributed.get_process_group_ranks(group):  # else a copy of that group's
        yield from held_fragments(engine, moments=moments)


def held_fragments(engine: Any, *, moments: bool = True) -> Iterator[Fragment]:
    """Yield all elements that this rank holds in fp32; empty ranges are omitted."""
    for name, parameter in trainable(engine):
        if is_plain(engine):
            state = engine.optimizer.state[parameter] if moments else {}
            whole = {"param": parameter.data, **{key: state[key] for key in MOMENTS if moments}}
            yield Fragment(name, 0, {key: value.detach().float().flatten() for key, value in whole.items()})
        elif hasattr(parameter, "ds_id"):
            yield from _of_stage_3(name, parameter, moments)
        elif (mapping := parameter._hp_mapping) is not None:
            keys = MOMENTS if moments else ()
            tensors = {"param": mapping.get_hp_fragment(), **{key: mapping.get_hp_fragment(key) for key in keys}}
            detached = {key: value.detach() for key, value in tensors.items()}
            yield Fragment(name, mapping.lp_fragment_address.start, detached)


def stage_3_partition(engine: Any) -> tuple[int, int] | None:
    """Return i and n if this rank holds the i-th of n equal ranges of every parameter (ZeRO 3), otherwise None."""
    _, parameter = next(trainable(engine))
    if not hasattr(parameter, "ds_id"):
        return None
    group = parameter.ds_process_group
    return torch.distributed.get_rank(group), torch.distributed.get_world_size(group)


def write_fragments(engine: Any, lookup: Lookup, ranks: TorchRanks, *, step: int, warm_up: Callable[[], Any]) -> None:
    """Write named state into an engine: fp32 master weights, moments, step, weights of the forward pass. A collective.

    Each rank looks up only the elements that it holds; without ZeRO, rank 0 reads them and broadcasts.

    Args:
        engine: a new engine whose learning rate is still 0.
        lookup: see ``Lookup``.
        ranks: of the engine.
        step: number of optimizer steps of the state.
        warm_up: runs a forward pass and returns its loss, since DeepSpeed allocates optimizer state at the first step.

    Raises:
        SimcastError: on every rank, if a look-up failed on any; it names the rank. The engine is then unusable.
    """
    for _ in range(engine.gradient_accumulation_steps()):
        engine.backward(warm_up() * 0.0)
        engine.step()
    # 1. Master weights and moments. An error is kept until all ranks can raise it: none may wait in a collective.
    failure: Exception | None = None
    try:
        if is_plain(engine):
            failure = _write_replicated(engine, lookup, ranks)
        elif stage_3_partition(engine) is not None:
            for name, parameter in trainable(engine):
                _write_stage_3(name, parameter, lookup)
        else:
            for fragment in held_fragments(engine):
                for key, tensor in fragment.tensors.items():
                    tensor.copy_(lookup(key, fragment.name, fragment.start, fragment.length))
    except Exception as error:
        failure = error
    ranks.raise_together(failure)
    # 2. Weights of the forward pass that are not written yet
    if stage_3_partition(engine) is not None:
        _refresh_secondary_partitions(engine)
    elif not is_plain(engine):
        engine.optimizer.update_lp_params()
    # 3. Step
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for state in inner.state.values():
        if "step" in state:
            state["step"].fill_(step)


def balanced_owners(sizes: Sequence[int], *, writers: int) -> list[int]:
    """Return an owner in ``0 .. writers - 1`` for each size, the largest first to the least loaded."""
    loads, owners = [0] * writers, [0] * len(sizes)
    for number in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        owners[number] = min(range(writers), key=loads.__getitem__)
        loads[owners[number]] += sizes[number]
    return owners


def stored_elements(sizes: Sequence[int], engine: EngineConfig, ranks: int) -> int:
    """Return the largest number of elements that a rank stores of parameters of the given sizes."""
    if engine.zero_stage > 0:
        return -(-sum(sizes) // ranks)
    owners = balanced_owners(sizes, writers=min(ranks, _MAX_WRITERS))
    return max(sum(size for size, owner in zip(sizes, owners, strict=True) if owner == one) for one in set(owners))


def _partition_group(engine: Any) -> Any:
    """Return the process group over which the optimizer's state is partitioned."""
    _, parameter = next(trainable(engine))
    return getattr(parameter, "ds_process_group", None) or getattr(parameter, "_dp_group", None)


def _of_stage_3(name: str, parameter: Any, moments: bool) -> Iterator[Fragment]:
    from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

    start, length = _stage_3_range(parameter)
    if not length:
        return
    tensors = {"param": safe_get_local_fp32_param(parameter)}
    if moments:
        tensors |= {key: safe_get_local_optimizer_state(parameter, key) for key in MOMENTS}
    yield Fragment(name, start, {key: value.detach().flatten()[:length] for key, value in tensors.items()})


def _stage_3_range(parameter: Any) -> tuple[int, int]:
    """Return the first element and the number of elements of this rank's partition, without its padding."""
    partition = parameter.ds_tensor.numel()
    start = partition * torch.distributed.get_rank(parameter.ds_process_group)
    return start, max(0, min(partition, parameter.ds_numel - start))


def _write_replicated(engine: Any, lookup: Lookup, ranks: TorchRanks) -> Exception | None:
    """Write parameters and moments from rank 0; return its error, after which it broadcasts zeros to the end."""
    failure: Exception | None = None
    for name, parameter in trainable(engine):
        state = engine.optimizer.state[parameter]
        for key, tensor in (("param", parameter.data), *((key, state[key]) for key in MOMENTS)):
            value = torch.zeros(tensor.numel(), device=tensor.device) if ranks.is_first else None
            if ranks.is_first and failure is None:
                try:
                    value = lookup(key, name, 0, tensor.numel()).to(tensor.device)
                except Exception as error:
                    failure = error
            if ranks.size > 1:
                value = ranks.broadcast_tensor(value, torch.Size([tensor.numel()]), source=0)
            assert value is not None
            tensor.copy_(value.view(tensor.shape))
    return failure


def _write_stage_3(name: str, parameter: Any, lookup: Lookup) -> None:
    """Write this rank's partition by DeepSpeed's setters: with offload, its getters return copies on the device."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    start, length = _stage_3_range(parameter)

    def partition(kind: str) -> torch.Tensor:
        values = lookup(kind, name, start, length) if length else torch.empty(0)
        return torch.nn.functional.pad(values, (0, parameter.ds_tensor.numel() - length))

    weights = partition("param")
    safe_set_local_fp32_param(parameter, weights)
    for kind in MOMENTS:
        safe_set_local_optimizer_state(parameter, partition(kind), kind)
    if parameter.ds_status == ZeroParamStatus.AVAILABLE:  # the complete weight is gathered again at its next use
        parameter.partition()
    parameter.ds_tensor.data.copy_(weights.view(parameter.ds_tensor.shape))


def _refresh_secondary_partitions(engine: Any) -> None:
    """Create the secondary partition of each weight (``zero_hpz_partition_size``) again, by an all-gather per weight.

    Weights are gathered from the primary partitions if there is no secondary one, which DeepSpeed then creates.
    """
    from deepspeed.runtime.zero import GatheredParameters

    for _, parameter in trainable(engine):
        if parameter.ds_secondary_tensor is not None:
            parameter.ds_secondary_tensor = None
            with GatheredParameters([parameter]):
                pass
