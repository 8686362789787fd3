"""Triton kernels for radar nowcasting, each a PyTorch custom operator with a PyTorch reference implementation.

Example::

    import simcast_kernels as sk

    loss = sk.weighted_mse(prediction, target, thresholds=(219,), weights=(1, 10))

The public functions are imported at their first use; importing this package does not import torch. Kernels are imported
by the first call that runs one. :mod:`simcast_kernels.dispatch` selects the kernel or the reference implementation.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adaln_norm import adaln_norm
    from .bias_activation import bias_activation
    from .cuboid_attention import cuboid_attention, cuboid_cross_attention
    from .group_norm_activation import group_norm_activation
    from .layer_norm_linear import layer_norm_linear
    from .sampler_step import sampler_step
    from .weighted_mse import weighted_mse

# The version of both distributions, simcast-kernels and simcast-hpc; their builds read this literal.
__version__ = "0.1.0"

__all__ = [
    "__version__",
    "adaln_norm",
    "bias_activation",
    "cuboid_attention",
    "cuboid_cross_attention",
    "group_norm_activation",
    "layer_norm_linear",
    "sampler_step",
    "weighted_mse",
]

_SUBPACKAGE_OF = {name: name for name in __all__ if name != "__version__"}
_SUBPACKAGE_OF["cuboid_cross_attention"] = "cuboid_attention"


def __getattr__(name: str) -> Any:
    """Import a public function at its first use."""
    if name not in _SUBPACKAGE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_SUBPACKAGE_OF[name]}", __name__), name)
    setattr(sys.modules[__name__], name, value)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """The package, in which the name of an op is its function, also after an import of the subpackage of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system binds the subpackage `weighted_mse` to this attribute.
        if name in _SUBPACKAGE_OF and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
