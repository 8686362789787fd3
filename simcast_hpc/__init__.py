"""SimCast-HPC: radar nowcasting by short-to-long distillation, from one laptop to many nodes."""

from simcast_hpc.version import __version__

__all__ = ["__version__"]
