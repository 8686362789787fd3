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
_READ_TOGETHER = 2**26
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

    Each rank looks up only the elements that it holds; what every rank holds is read by rank 0 and broadcast. An error
    of ``lookup`` on one rank is raised on all.

    Args:
        engine: a new engine whose learning rate is still 0.
        lookup: see ``Lookup``.
        ranks: of the engine.
        step: number of optimizer steps of the state.
        warm_up: runs a forward pass and returns its loss, since DeepSpeed allocates optimizer state at the first step.
    """
    for _ in range(engine.gradient_accumulation_steps()):
        engine.backward(warm_up() * 0.0)
        engine.step()
    # 1. Master weights, moments, and weights of the forward pass
    if is_plain(engine):
        _write_replicated(engine, lookup, ranks)
    elif stage_3_partition(engine) is not None:
        _write_stage_3(engine, lookup, ranks)
    else:
        with ranks.together():
            for fragment in held_fragments(engine):
                for key, tensor in fragment.tensors.items():
                    tensor.copy_(lookup(key, fragment.name, fragment.start, fragment.length))
        engine.optimizer.update_lp_params()
    # 2. Step
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


def _write_replicated(engine: Any, lookup: Lookup, ranks: TorchRanks) -> None:
    def targets(name: str, parameter: Any) -> Iterator[tuple[str, str, torch.Tensor]]:
        state = engine.optimizer.state[parameter]
        yield from (
            (key, name, tensor) for key, tensor in (("param", parameter.data), *((k, state[k]) for k in MOMENTS))
        )

    every = [target for named in trainable(engine) for target in targets(*named)]
    for (_, _, tensor), value in _read_by_first(every, lookup, ranks):
        if ranks.size > 1:
            value = ranks.broadcast_tensor(value, torch.Size([tensor.numel()]), source=0)
        assert value is not None
        tensor.copy_(value.view(tensor.shape))


def _read_by_first(
    targets: Sequence[tuple[str, str, torch.Tensor]], lookup: Lookup, ranks: TorchRanks
) -> Iterator[tuple[tuple[str, str, torch.Tensor], torch.Tensor | None]]:
    """Yield (kind, name, tensor) with the values, which only rank 0 reads, on the device; None on the others.

    The ranks agree on errors once per ``_READ_TOGETHER`` elements, which rank 0 holds on the host.
    """
    first = 0
    while first < len(targets):
        last, elements = first, 0
        while last < len(targets) and (last == first or elements + _elements(targets[last][2]) <= _READ_TOGETHER):
            elements += _elements(targets[last][2])
            last += 1
        values: list[torch.Tensor | None] = [None] * (last - first)
        with ranks.together():
            if ranks.is_first:
                values = [lookup(kind, name, 0, _elements(tensor)) for kind, name, tensor in targets[first:last]]
        for number, target in enumerate(targets[first:last]):
            value, values[number] = values[number], None
            yield target, None if value is None else value.to(target[2].device)
        first = last


def _elements(tensor: Any) -> int:
    """Return the number of elements of a parameter or of its state."""
    return shape_of(tensor).numel()


def _write_stage_3(engine: Any, lookup: Lookup, ranks: TorchRanks) -> None:
    """Write all parameters by DeepSpeed's setters: with offload, its getters return copies on the device."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    copied: list[tuple[str, str, Any]] = []
    # 1. The partition of this rank
    with ranks.together():
        for name, parameter in trainable(engine):
            start, length = _stage_3_range(parameter)

            def partition(kind: str, name: str = name, part: Any = parameter, start: int = start, n: int = length):
                values = lookup(kind, name, start, n) if n else torch.empty(0)
                return torch.nn.functional.pad(values, (0, part.ds_tensor.numel() - n))

            weights = partition("param")
            safe_set_local_fp32_param(parameter, weights)
            for kind in MOMENTS:
                safe_set_local_optimizer_state(parameter, partition(kind), kind)
            if parameter.ds_status == ZeroParamStatus.NOT_AVAILABLE and parameter.ds_secondary_tensor is None:
                parameter.ds_tensor.data.copy_(weights.view(parameter.ds_tensor.shape))
            else:
                copied.append(("param", name, parameter))
    # 2. Weights that have further copies, such as those of a secondary partition
    for (_, _, parameter), value in _read_by_first(copied, lookup, ranks):
        with GatheredParameters([parameter], modifier_rank=0):
            if value is not None:
                parameter.data.copy_(value.view(parameter.shape))
