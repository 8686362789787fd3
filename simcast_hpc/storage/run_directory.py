"""The folder of a run: resolved configuration, versions, metrics, checkpoints, weights, and a marker at the end."""

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from simcast_hpc.config import ConfigError, StrictModel, to_yaml
from simcast_hpc.version import __version__, commit

_PACKAGES = ("torch", "deepspeed", "triton", "numpy", "h5py", "pydantic")


class RunDirectory:
    """Where one run writes. Every file that others read appears by a rename, whole."""

    def __init__(self, path: Path):
        self.path = path
        self.config, self.versions, self.metrics = path / "config.yaml", path / "versions.json", path / "metrics.jsonl"
        self.checkpoints, self.events, self.done = path / "checkpoints", path / "events", path / "DONE.json"
        self.weights = path / "weights" / "model.safetensors"

    def prepare(self, config: StrictModel) -> None:
        """Make the folder and keep the resolved configuration and the versions of what runs it.

        Raises:
            ConfigError: it cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(self.config, to_yaml(config))
            write_whole(self.versions, json.dumps(versions(), indent=1))
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def make(self) -> None:
        """Make the folder alone.

        Raises:
            ConfigError: it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def finished(self, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the marker if this run is done, with its weights in place; None if it is not done.

        Raises:
            ConfigError: it was done with other ``inputs``, or the marker is damaged.
        """
        marker = self.marker()
        if marker is None:
            return None
        reject_another(marker["inputs"], inputs, where=self.path)
        return marker if self.weights.is_file() else None

    def marker(self) -> dict[str, Any] | None:
        """Return what ``DONE.json`` holds, None where there is none.

        Raises:
            ConfigError: it is damaged.
        """
        if not self.done.is_file():
            return None
        try:
            marker = json.loads(self.done.read_text(encoding="utf-8"))
            return {"inputs": dict(marker["inputs"]), **marker}
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self.done} is damaged ({error!r}); remove it, and the run is finished again"
            ) from error

    def finish(self, inputs: Mapping[str, Any], **results: Any) -> None:
        """Write the marker: with which inputs this run is done, and what came out."""
        write_whole(self.done, json.dumps({"inputs": inputs, **results}, indent=1))


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"run_dir={path} cannot be written: {error.strerror or error}")


def reject_another(saved: Mapping[str, Any], inputs: Mapping[str, Any], *, where: Path) -> None:
    """Refuse to go on with what was made from other inputs.

    Raises:
        ConfigError: names the first keys that differ, with both values.
    """
    now = json.loads(json.dumps(dict(inputs)))
    differing = [key for key in sorted({**saved, **now}) if saved.get(key) != now.get(key)]
    if differing:
        said = "; ".join(f"{key} was {saved.get(key)!r}, is {now.get(key)!r}" for key in differing[:3])
        raise ConfigError(f"{where} belongs to another run: {said}. Set it back, or give this run another run_dir")


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a reader, a kill or a power cut never meets half of it."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    settle(path.parent)


def settle(folder: Path) -> None:
    """Have the names in a folder on disk: a rename outlives a power cut only then."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no such call
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python, the packages that decide numbers, the device and our own commit."""
    found = {"python": platform.python_version(), "machine": platform.machine(), "simcast-hpc": __version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    found["commit"] = commit()
    return found
