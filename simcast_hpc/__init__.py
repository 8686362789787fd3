"""SimCast-HPC: radar nowcasting by short-to-long distillation, from one laptop to many nodes."""

__version__ = "0.1.0"
