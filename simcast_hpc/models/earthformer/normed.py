"""A layer norm and the linear layers that read it."""

from collections.abc import Sequence

from torch import Tensor, nn

from simcast_kernels.layer_norm_linear import layer_norm_linear


def normed_linear(x: Tensor, norm: nn.LayerNorm, layers: Sequence[nn.Linear]) -> list[Tensor]:
    """Return each of ``layers`` of ``norm(x)``; either all of them have a bias or none.

    In one op, which keeps the normed tensor out of a GPU's memory; the modules hold the weights under their own names.
    """
    biases = [layer.bias for layer in layers if layer.bias is not None]
    return layer_norm_linear(
        x, norm.weight, norm.bias, weights=[layer.weight for layer in layers], biases=biases, eps=norm.eps
    )
