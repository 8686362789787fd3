"""Training: the loop, its hooks, the learning rate, checkpoints, and one file a stage below ``stages/``."""
