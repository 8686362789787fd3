"""The tests; they mirror the packages, with `multi_rank`, `convergence` and `slurm` in addition."""
