"""Loads and stores of tiles, and the sigmoid, for several kernels."""

# Pyright does not understand Triton constexpr arguments in jitted functions.
# pyright: reportArgumentType=false
import triton
import triton.language as tl


@triton.jit
def load_tile(tensor, offset, valid, MASKED: tl.constexpr):
    """Return a tile in float32, 0 where ``valid`` is false; without the mask if all of it is known to be valid."""
    if MASKED:
        return tl.load(tensor + offset, mask=valid, other=0.0).to(tl.float32)
    return tl.load(tensor + offset).to(tl.float32)


@triton.jit
def store_tile(tensor, offset, value, valid, MASKED: tl.constexpr):
    """Store a tile in the dtype of ``tensor`` where ``valid``."""
    if MASKED:
        tl.store(tensor + offset, value.to(tensor.dtype.element_ty), mask=valid)
    else:
        tl.store(tensor + offset, value.to(tensor.dtype.element_ty))


@triton.jit
def sigmoid(z):
    """Return ``1 / (1 + exp(-z))``; a negation would be one more instruction."""
    return 1.0 / (1.0 + tl.exp2(z * -1.4426950408889634))
