"""The [0, 1] field that networks see, from the 8-bit code that radars keep."""

import torch


def code_to_unit(codes: torch.Tensor, scale: float = 255.0) -> torch.Tensor:
    """Turn uint8 codes into float32 ``codes / scale`` by correctly rounded division.

    The divisor is a tensor because CUDA multiplies by the reciprocal of a scalar, which puts 219 / 255 below itself.
    """
    return codes.to(torch.float32) / torch.full((), scale, dtype=torch.float32, device=codes.device)
