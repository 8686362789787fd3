"""Load trained models and forecast with them: ensembles, tiles, CUDA graphs."""
