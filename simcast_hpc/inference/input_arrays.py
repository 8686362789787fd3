"""Input frames of a forecast as arrays: conversion to tensors, range checks, and missing pixels.

Missing pixels are 255 in encoded values (uint8) and NaN in floats.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from simcast_hpc.data.encoding import LAST_CODE, MISSING_CODE, as_native
from simcast_hpc.verification.input_fields import require_dense

ROUNDING = 1e-6  # floats may be below 0 by rounding errors, and are clipped
MISSING_AS_FLOAT = (
    f"the float 1 = {MISSING_CODE} / 255, the missing code; give uint8 encoded values, or NaN where a pixel is missing "
    f"(clip a forecast to {LAST_CODE} / 255)"
)


def as_array(fields: Any) -> np.ndarray:
    """Return fields as a plain array on the host; masked elements are missing."""
    if isinstance(fields, Tensor):
        require_dense(fields, "fields")
        fields = fields.detach().cpu()
        return (fields.float() if fields.is_floating_point() else fields).numpy()
    return as_native(fields if isinstance(fields, np.ndarray) else np.asarray(fields))


def as_tensor(frames: Any) -> Tensor:
    """Return an array as a tensor that shares its memory where possible; masked elements are missing.

    Raises:
        TypeError: not a dense array, or its dtype is neither uint8 nor floating.
    """
    if isinstance(frames, Tensor):
        require_dense(frames, "frames")
        tensor = frames.detach()
    elif isinstance(frames, np.ndarray):
        if frames.dtype.kind not in "fu" or (frames.dtype.kind == "u" and frames.dtype != np.uint8):
            raise TypeError(_wrong_dtype(frames.dtype))
        tensor = torch.from_numpy(np.require(as_native(frames), requirements=["C", "W"]))
    else:
        raise TypeError(f"frames are a {type(frames).__name__}; give a NumPy array, a torch tensor or a DataArray")
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        raise TypeError(_wrong_dtype(tensor.dtype))
    return tensor if tensor.dtype == torch.uint8 else tensor.float()


def _wrong_dtype(dtype: Any) -> str:
    return f"frames have dtype {dtype}; give uint8 encoded values (255 missing) or floats in [0, 1] (NaN missing)"


def checked_values(frames: Tensor) -> Tensor:
    """Return frames ``[B, T, H, W]``, with rounding errors below 0 replaced by 0.

    Raises:
        ValueError: a sample has no valid value, or floats are not encoded values / 255.
    """
    codes, valid = frames.dtype == torch.uint8, ~missing_pixels(frames)
    empty = torch.nonzero(~valid.flatten(1).any(1)).flatten().tolist()
    if empty:
        raise ValueError(f"every value of frames is missing (255 or NaN) in sample {', '.join(map(str, empty))}")
    if codes:
        return frames
    low, high = (edge.item() for edge in torch.aminmax(frames[valid]))
    if abs(high - 1.0) <= ROUNDING and low >= -ROUNDING:
        raise ValueError(f"frames contain {MISSING_AS_FLOAT}")
    if not -ROUNDING <= low <= high <= 1.0 + ROUNDING:
        raise ValueError(
            f"frames are floats from {low:.9g} to {high:.9g}, which must lie in [0, 1]: give encoded values as uint8, "
            "divide them by 255, or convert physical values by Forecaster.from_physical"
        )
    return frames if low >= 0.0 else frames.clamp(min=0.0)


def missing_pixels(frames: Tensor) -> Tensor:
    """Return which pixels are missing, bool in the shape of ``frames``: uint8 encoded values or floats."""
    return frames == MISSING_CODE if frames.dtype == torch.uint8 else torch.isnan(frames)


def missing_in_any(frames: Tensor) -> Tensor:
    """Return which pixels ``[B, H, W]`` are missing in at least one of the frames ``[B, T, H, W]``."""
    return missing_pixels(frames).any(dim=1)


def missing_summary(frames: Tensor) -> str:
    """Return which frames leave no pixel to forecast, and how much of each is missing; empty if some pixel is left.

    Args:
        frames: the input frames that a forecast depends on, ``[B, T, H, W]``.
    """
    missing = missing_pixels(frames)
    none_left = missing.any(dim=1).flatten(1).all(dim=1).nonzero().flatten().tolist()
    if not none_left:
        return ""
    shares = missing[none_left[0]].flatten(1).double().mean(dim=1).tolist()
    count = len(shares)
    parts = [
        f"{100 * share:.3g} % of frame {number} of {count}" + (" (the last)" if number == count else "")
        for number, share in enumerate(shares, start=1)
        if share
    ]
    return (
        f"no pixel of sample {', '.join(map(str, none_left))} is valid in every input frame, so there is no forecast; "
        f"missing in sample {none_left[0]}: {', '.join(parts)}"
    )
