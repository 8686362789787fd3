"""The ledger of a download folder: which files are complete, one JSON line per file, in ``.simcast-download.jsonl``.

A line is appended when a file has its final name. A kill can cut the last line; such a line is ignored, and its file is
compared with the server again.
"""

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simcast_hpc.config import ConfigError
from simcast_hpc.config.text_files import printable

_LEDGER = ".simcast-download.jsonl"


class DownloadLedger:
    """Completed files of one product of one archive below a folder.

    Raises:
        ConfigError: the folder contains another product or archive.
    """

    def __init__(self, folder: Path, *, archive: str, product: str):
        self._path, self._mutex = folder / _LEDGER, threading.Lock()
        self._source = {"archive": archive, "product": product}
        self._entries: dict[str, Mapping[str, Any]] = {}
        source, self._starts = None, True
        for line in self._lines():
            if "archive" in line:
                source = {key: line.get(key) for key in self._source}
                self._starts = False
            elif isinstance(line.get("name"), str):
                self._entries[line["name"]] = line
        if source is not None and source != self._source:
            raise ConfigError(
                f"TARGET={folder} contains {printable(str(source['archive']))} {printable(str(source['product']))}; "
                f"choose another folder for {archive} {product}, because data import reads a folder as one radar"
            )

    def _lines(self) -> list[dict[str, Any]]:
        if not self._path.is_file() or self._path.is_symlink():
            return []
        lines = []
        for text in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                lines.append(value)
        return lines

    def entry(self, name: str) -> Mapping[str, Any]:
        """Return what is stored of a file, empty for a file that is not complete."""
        return self._entries.get(name, {})

    def add(self, name: str, **values: Any) -> None:
        """Store that a file is complete."""
        with self._mutex:
            lines = [{"name": name, **values}]
            if self._starts:
                lines.insert(0, dict(self._source))
                self._starts = False
            if self._path.is_symlink():
                raise ConfigError(f"{self._path} is a symbolic link; remove it")
            with self._path.open("a", encoding="utf-8") as file:
                # A line end first, so that a line that a kill cut does not join this one.
                file.write("\n" + "".join(json.dumps(line) + "\n" for line in lines))
            self._entries[name] = lines[-1]
