"""Training: trainer, loop, hooks, learning rate, checkpoints, and one file per stage in ``stages/``."""
