"""Ranks, process groups, the DeepSpeed engine and sharded state: the only importer of torch.distributed and MPI."""
