"""Cost of a model, estimated without allocating it: FLOPs, peak memory, activation checkpointing, memory plan."""
