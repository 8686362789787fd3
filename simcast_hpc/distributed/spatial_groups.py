"""The process groups of spatial sharding, as DeepSpeed's sequence-parallel groups.

DeepSpeed partitions weights and optimizer states over all ranks, and averages the gradients of all ranks. So the loss
of a rank is p times its share of the loss of a sample: then the average over the ranks is that over the samples.
"""

from typing import Any

import torch

from .process_group import import_deepspeed
from .row_shards import RowShards


class SpatialParallelUnit:
    """DeepSpeed's ``mpu`` of spatial sharding: sequence groups are DeepSpeed's, model-parallel size is 1.

    DeepSpeed's own module takes the sequence group for the model-parallel group, and gradient norms, which DeepSpeed
    sums over the latter, would count each gradient p times.

    The size of a sequence group is not an attribute: DeepSpeed 0.19.8 would divide the sum of the gradients by the
    number of samples under ZeRO 0, 1 and 2, but by the number of ranks under ZeRO 3 with ``reduce_scatter``.
    """

    def __init__(self, groups: Any, own: Any, *, size: int):
        self._groups, self._own, self._size = groups, own, size
        self.get_sequence_parallel_group = groups.get_sequence_parallel_group
        self.get_sequence_parallel_rank = groups.get_sequence_parallel_rank
        self.get_sequence_data_parallel_group = groups.get_sequence_data_parallel_group
        self.get_sequence_data_parallel_world_size = groups.get_sequence_data_parallel_world_size
        self.get_sequence_data_parallel_rank = groups.get_sequence_data_parallel_rank

    def initialize_sequence_parallel(self, size: int) -> None:
        """Create the groups. DeepSpeed recognizes sequence parallelism by this method."""
        self._groups.initialize_sequence_parallel(size)

    def get_data_parallel_world_size(self) -> int:
        """Return the number of groups, which process different samples: DeepSpeed checks the batch size with it."""
        return torch.distributed.get_world_size() // self._size

    def get_data_parallel_rank(self) -> int:
        """Return the number of the group of this rank."""
        return torch.distributed.get_rank() // self._size

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
    unit = SpatialParallelUnit(parallel_state_sp, own, size=size)
    unit.initialize_sequence_parallel(size)
    group = parallel_state_sp.get_sequence_parallel_group()
    rank = parallel_state_sp.get_sequence_parallel_rank()
    return RowShards(rank, size, group, device=device), unit
