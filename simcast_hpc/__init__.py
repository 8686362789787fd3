"""SimCast-HPC: radar nowcasting by short-to-long distillation, from one laptop to many nodes."""

from simcast_kernels import __version__ as __version__
