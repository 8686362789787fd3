"""The only owner of torch.distributed, DeepSpeed and MPI: place in the world, engine, collectives, launch."""
