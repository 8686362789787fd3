"""The directory of a run: configuration, versions, metrics, checkpoints, weights and a marker of completion."""

import hashlib
import importlib.metadata
import json
import logging
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simcast_hpc.config import ConfigError, StrictModel, to_yaml
from simcast_hpc.config.text_files import read_json_file
from simcast_hpc.version import __version__, commit

from .atomic_files import sweep, write_json, write_text

logger = logging.getLogger(__name__)
_PACKAGES = ("torch", "deepspeed", "triton", "numpy", "h5py", "pydantic")


class RunDirectory:
    """Paths of one run and its completion marker ``DONE.json``. All files that others read are written atomically."""

    def __init__(self, path: Path):
        self.path = path
        self.config, self.versions, self.metrics = path / "config.yaml", path / "versions.json", path / "metrics.jsonl"
        self.checkpoints, self.events, self.done = path / "checkpoints", path / "events", path / "DONE.json"
        self.weights, self.stacks = path / "weights" / "model.safetensors", path / "stacks"
        self.best, self.dataset = path / "best", path / "dataset.yaml"
        self.profile, self.memory = path / "profile", path / "memory"

    def prepare(self, config: StrictModel, dataset: StrictModel | None = None) -> None:
        """Create the directory, remove what killed runs left, and write the configuration and the software versions.

        Args:
            config: of the run.
            dataset: description of the data set, written to ``dataset.yaml``; None if the configuration names it.

        Raises:
            ConfigError: the directory cannot be written.
        """
        self.create()
        try:
            for directory in (self.path, self.weights.parent):
                sweep(directory)
            write_text(self.config, to_yaml(config))
            if dataset is not None:
                write_text(self.dataset, to_yaml(dataset))
            write_json(self.versions, versions())
        except OSError as error:
            raise self._not_writable(error) from error

    def create(self) -> None:
        """Create the directory.

        Raises:
            ConfigError: it cannot be created; a link above or in it has lost its target; or a file in it has the name
                of a folder of the run, or the reverse. The run would fail there at its last step.
        """
        try:
            self._reject_obstacles()
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._not_writable(error) from error

    def _reject_obstacles(self) -> None:
        folders = (self.checkpoints, self.weights.parent, self.best, self.events, self.stacks)
        for path in (*reversed(self.path.parents), self.path, *folders):
            if path.is_symlink() and not path.exists():
                target = path.readlink()
                raise ConfigError(f"{path} is a link to {target}, which does not exist; restore it or remove the link")
        for path in folders:
            if path.exists() and not path.is_dir():
                raise ConfigError(f"{path} is not a folder; move it, or choose another run_dir")
        for path in (self.weights, self.done, self.config, self.dataset, self.versions, self.metrics):
            if path.is_dir():
                raise ConfigError(f"{path} is a folder, not a file; move it, or choose another run_dir")

    def _not_writable(self, error: OSError) -> ConfigError:
        return ConfigError(f"run_dir={self.path} cannot be written: {error.strerror or error}")

    def finished(self, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the marker if the run is complete: its weights exist and their hash is the marker's.

        Raises:
            ConfigError: the run was completed with other ``inputs``, or the marker is damaged.
        """
        marker = self.marker()
        if marker is None:
            return None
        reject_another(marker["inputs"], inputs, where=self.path)
        if not self.weights.is_file() or file_hash(self.weights) != marker.get("weights"):
            logger.warning("%s is missing or damaged: the run is finished again", self.weights)
            return None
        return marker

    def marker(self) -> dict[str, Any] | None:
        """Return the contents of ``DONE.json``, or None if there is no such file.

        Raises:
            ConfigError: the file is damaged.
        """
        if not self.done.is_file():
            return None
        hint = "remove it to finish the run again"
        try:
            marker = read_json_file(self.done, error=ConfigError, what="the completion marker")
        except ConfigError as error:
            raise ConfigError(f"{self.done} is damaged ({error}); {hint}") from error
        if not isinstance(marker, dict) or not isinstance(marker.get("inputs"), dict):
            raise ConfigError(f"{self.done} is damaged: it has no mapping 'inputs'; {hint}")
        return marker

    def finish(self, inputs: Mapping[str, Any], **results: Any) -> None:
        """Write the marker: the inputs of the completed run and its results."""
        write_json(self.done, {"inputs": inputs, **results})


def reject_another(saved: Mapping[str, Any], inputs: Mapping[str, Any], *, where: Path) -> None:
    """Raise an error if saved results were computed from other inputs.

    Raises:
        ConfigError: names the first keys that differ, with both values.
    """
    current = json.loads(json.dumps(dict(inputs)))
    differing = [key for key in sorted({**saved, **current}) if saved.get(key) != current.get(key)]
    if differing:
        values = "; ".join(f"{key} was {_shown(saved, key)}, is {_shown(current, key)}" for key in differing[:3])
        raise ConfigError(f"{where} belongs to another run: {values}. Restore the value or choose another run_dir")


def _shown(values: Mapping[str, Any], key: str) -> str:
    """Return a value for a message; fields that are omitted at their default have none."""
    return repr(values[key]) if key in values else "not set"


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results, the device and the commit."""
    import torch  # late: data preparation uses this module without torch

    versions_by_name = {"python": platform.python_version(), "machine": platform.machine(), "simcast-hpc": __version__}
    for name in _PACKAGES:
        try:
            versions_by_name[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions_by_name[name] = "absent"
    versions_by_name["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    versions_by_name["commit"] = commit()
    return versions_by_name
