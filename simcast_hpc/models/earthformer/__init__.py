"""Earthformer: a hierarchy of cuboid attentions with global vectors, all next frames at once.

Source: Gao et al., "Earthformer: Exploring Space-Time Transformers for Earth System Forecasting" (NeurIPS 2022,
arXiv 2207.05833). Inside, tokens are ``[B, T, H, W, D]``; ``earthformer.py`` is the model, ``patterns.py`` says who
attends to whom, and the attention itself is ``simcast_kernels.cuboid_attention``.
"""

from .earthformer import Earthformer

__all__ = ["Earthformer"]
