"""Datasets: descriptions, encodings, window sources (archive, shards, synthetic), sample order, loader, preparation.

The public functions are in ``datasets`` (``simcast_hpc.datasets``); a user-defined source implements ``WindowSource``.
"""
