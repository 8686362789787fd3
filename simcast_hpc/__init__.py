"""SimCast-HPC: radar nowcasting by short-to-long distillation, from one laptop to many nodes.

``import simcast_hpc as sc`` is cheap; the functions below are imported at first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from simcast_hpc.version import __version__

if TYPE_CHECKING:
    from simcast_hpc.api import Forecaster, load
    from simcast_hpc.config import read_run_config as read_config
    from simcast_hpc.data import datasets
    from simcast_hpc.pysteps_method import PystepsNowcast
    from simcast_hpc.verification import score

__all__ = ["Forecaster", "PystepsNowcast", "__version__", "datasets", "load", "read_config", "score"]

_LAZY = {
    "Forecaster": ("simcast_hpc.api", "Forecaster"),
    "PystepsNowcast": ("simcast_hpc.pysteps_method", "PystepsNowcast"),
    "datasets": ("simcast_hpc.data.datasets", None),
    "load": ("simcast_hpc.api", "load"),
    "read_config": ("simcast_hpc.config", "read_run_config"),
    "score": ("simcast_hpc.verification", "score"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    loaded = import_module(module)
    value = loaded if attribute is None else getattr(loaded, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
