"""Export of finished runs as files that other systems load, with a model card."""

from .export_folder import ExportResult, export_run

__all__ = ["ExportResult", "export_run"]
