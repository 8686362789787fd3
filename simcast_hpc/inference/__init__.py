"""Trained models as callable forecasts: loading, ensembles, tiles, CUDA graphs."""
