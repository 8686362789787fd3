"""The process groups of spatial sharding, as DeepSpeed's sequence-parallel groups.

ZeRO then partitions weights and optimizer states over all ranks, reduces gradients over all ranks, and divides them by
the number of samples in flight, which is world size / p.
"""

from typing import Any

import torch

from .process_group import import_deepspeed
from .row_shards import RowShards


class SpatialParallelUnit:
    """DeepSpeed's ``mpu`` of spatial sharding: sequence groups are DeepSpeed's, model-parallel size is 1.

    DeepSpeed's own module takes the sequence group for the model-parallel group, and the gradient norms of ZeRO 0 and
    of the bf16 optimizer, which are summed over the latter, would count each gradient p times.
    """

    def __init__(self, groups: Any, own: Any):
        self._groups, self._own = groups, own
        for name in ("group", "world_size", "rank"):
            for kind in ("sequence_parallel", "sequence_data_parallel"):
                setattr(self, f"get_{kind}_{name}", getattr(groups, f"get_{kind}_{name}"))

    def initialize_sequence_parallel(self, size: int) -> None:
        """Create the groups. DeepSpeed recognizes sequence parallelism by this method."""
        self._groups.initialize_sequence_parallel(size)

    def get_model_parallel_group(self) -> Any:
        """Return a group of this rank only."""
        return self._own

    def get_model_parallel_world_size(self) -> int:
        """Return 1: each rank has the whole model."""
        return 1

    def get_model_parallel_rank(self) -> int:
        """Return 0."""
        return 0


def join_spatial_groups(size: int, *, device: torch.device) -> tuple[RowShards, SpatialParallelUnit | None]:
    """Return this rank's row shards and the ``mpu`` of DeepSpeed; a collective of all ranks.

    Ranks ``g * size .. (g + 1) * size - 1`` are group g, so that the neighbors are on one node. With ``size`` 1 there
    are no groups and no ``mpu``.
    """
    import_deepspeed()
    from deepspeed.runtime.sequence_parallel import parallel_state_sp
    from deepspeed.utils import groups

    # Groups of an earlier run of this process
    parallel_state_sp._release_sequence_parallel_groups()
    groups.mpu = None
    if size == 1:
        return RowShards(device=device), None
    own = torch.distributed.new_group([torch.distributed.get_rank()], use_local_synchronization=True)
    unit = SpatialParallelUnit(parallel_state_sp, own)
    unit.initialize_sequence_parallel(size)
    group = parallel_state_sp.get_sequence_parallel_group()
    rank = parallel_state_sp.get_sequence_parallel_rank()
    return RowShards(rank, size, group, device=device), unit
