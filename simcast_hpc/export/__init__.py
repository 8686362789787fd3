"""``simcast export``: a finished run as files that other systems load, with what they need to know beside them."""

from .export_folder import Exported, export_run

__all__ = ["Exported", "export_run"]
