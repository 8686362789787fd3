"""Cost of training a model, computed without allocating it.

``flops`` counts parameters, FLOPs and saved activations, ``peak_memory`` the peak of a training step, ``recompute`` the
trade-off of activation checkpointing, ``memory_plan`` searches ZeRO stage, offload, checkpointing and micro-batch, and
``training_cost`` estimates GPU-hours and storage.
"""
