"""How long each part of a pipeline took."""

import json
import logging
import time
from pathlib import Path

from simcast_hpc.storage.atomic_files import write_json

logger = logging.getLogger(__name__)


class Durations:
    """Wall seconds of each part, added up over restarts."""

    def __init__(self, path: Path):
        self._path = path
        self._name = ""
        self._since = 0.0

    def of(self, name: str) -> "Durations":
        """Name the part that a ``with`` block runs."""
        self._name = name
        return self

    def __enter__(self) -> None:
        logger.info("-- %s", self._name)
        self._since = time.perf_counter()

    def __exit__(self, *_error: object) -> None:
        spent = json.loads(self._path.read_text(encoding="utf-8")) if self._path.is_file() else {}
        spent[self._name] = round(spent.get(self._name, 0.0) + time.perf_counter() - self._since, 1)
        write_json(self._path, spent)
