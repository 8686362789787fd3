"""Experiment trackers: MLflow, Weights & Biases or trackio receive the metrics of a run, if one is configured.

None of them is required. ``metrics.jsonl`` stays the record of the run: a tracker that fails is reported once and does
not end the training.
"""

import importlib
import importlib.util
import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from simcast_hpc.config import ConfigError
from simcast_hpc.config.text_files import read_json_file
from simcast_hpc.storage.atomic_files import write_json

logger = logging.getLogger(__name__)
_PARAMETER_LENGTH = 500  # MLflow's limit of a value in all its versions
TRACKERS = ("mlflow", "wandb", "trackio")


class Tracker(Protocol):
    """What a run sends to a tracker."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of one step."""
        ...

    def close(self) -> None:
        """Finish the tracked run."""
        ...


def require_tracker(kind: str) -> None:
    """Check that the package of a tracker is installed, without importing it.

    Raises:
        ConfigError: it is not.
    """
    if kind != "none" and importlib.util.find_spec(kind) is None:
        raise ConfigError(
            f"log.tracker={kind} requires the package {kind}, which is not installed; run `pip install {kind}`, or set "
            "log.tracker=none"
        )


def open_tracker(kind: str, *, project: str, name: str, folder: Path, settings: Mapping[str, Any]) -> Tracker | None:
    """Start or continue the tracked run of a run directory.

    The tracker's identifier of the run is stored in ``folder/tracker.json``, so that a resumed run continues it.

    Args:
        kind: ``none`` or one of ``TRACKERS``.
        project: project (Weights & Biases, trackio) or experiment (MLflow).
        name: of the run.
        folder: run directory.
        settings: configuration of the run by dotted key.

    Returns:
        The tracker; None for ``none``, or if it cannot be started, which is logged.
    """
    if kind == "none":
        return None
    path = folder / "tracker.json"
    try:
        stored = read_json_file(path, error=ConfigError, what="the tracked run") if path.is_file() else {}
        known = stored.get("id") if isinstance(stored, dict) and stored.get("tracker") == kind else None
        tracker: _MLflow | _Logged
        if kind == "mlflow":
            tracker = _MLflow(project, name, settings, known)
        else:
            tracker = _Logged(kind, project, name, settings, known, folder)
        write_json(path, {"tracker": kind, "id": tracker.id})
    except Exception as error:  # whatever the tracker's client raises
        logger.warning("log.tracker=%s cannot be started, metrics are only in metrics.jsonl: %s", kind, error)
        return None
    return _Tolerant(kind, tracker)


class _Tolerant:
    """Stops using a tracker after its first failure, which is logged."""

    def __init__(self, kind: str, tracker: Tracker):
        self._kind, self._tracker = kind, tracker

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._try(lambda tracker: tracker.log(step, metrics))

    def close(self) -> None:
        self._try(lambda tracker: tracker.close())

    def _try(self, call: Any) -> None:
        if self._tracker is None:
            return
        try:
            call(self._tracker)
        except Exception as error:  # whatever the tracker's client raises
            logger.warning("log.tracker=%s failed, further metrics are only in metrics.jsonl: %s", self._kind, error)
            self._tracker = None


class _MLflow:
    """A run of MLflow at ``MLFLOW_TRACKING_URI``, by default a local folder or database."""

    def __init__(self, project: str, name: str, settings: Mapping[str, Any], known: str | None):
        self._mlflow = importlib.import_module("mlflow")
        self._mlflow.set_experiment(project)
        run = self._mlflow.start_run(run_id=known, run_name=None if known else name)
        self.id = run.info.run_id
        if known is None:
            self._mlflow.log_params({key: str(value)[:_PARAMETER_LENGTH] for key, value in settings.items()})

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(metrics), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class _Logged:
    """A run of Weights & Biases, or of trackio, which has the same functions."""

    def __init__(
        self, kind: str, project: str, name: str, settings: Mapping[str, Any], known: str | None, folder: Path
    ):
        self._module = importlib.import_module(kind)
        options: dict[str, Any] = {"project": project, "config": dict(settings), "resume": "allow"}
        if kind == "wandb":
            self.id = known or secrets.token_hex(4)
            options |= {"id": self.id, "name": name, "dir": str(folder)}
        else:  # trackio identifies a run by its name
            self.id = known or f"{name}-{secrets.token_hex(4)}"
            options |= {"name": self.id}
        self._run = self._module.init(**options)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._module.log(dict(metrics), step=step)

    def close(self) -> None:
        self._module.finish()
