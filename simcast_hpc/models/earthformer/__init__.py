"""Earthformer: hierarchical cuboid attention with global vectors; one pass predicts all frames.

Source: Gao et al., "Earthformer: Exploring Space-Time Transformers for Earth System Forecasting" (NeurIPS 2022,
arXiv 2207.05833). Tokens are ``[B, T, H, W, D]``. ``earthformer.py`` is the model, ``patterns.py`` defines which tokens
attend to each other, and the attention is ``simcast_kernels.cuboid_attention``.
"""

from .earthformer import Earthformer

__all__ = ["Earthformer"]
