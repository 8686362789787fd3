"""Trackers get the settings once and the metrics of each step; a failure or an absent package ends no training."""

import logging
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from simcast_hpc.config import ConfigError
from simcast_hpc.monitoring.trackers import open_tracker, require_tracker


class _Calls:
    """A stand-in for the client of a tracker that records its calls."""

    def __init__(self, fail: str = ""):
        self.calls: list[tuple[str, Any, dict[str, Any]]] = []
        self._fail = fail

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **keywords: Any) -> Any:
            if name == self._fail:
                raise ConnectionError("no route to host")
            self.calls.append((name, args, keywords))
            return SimpleNamespace(info=SimpleNamespace(run_id=keywords.get("run_id") or "mlflow-7"))

        return call

    def named(self, name: str) -> list[tuple[Any, dict[str, Any]]]:
        return [(args, keywords) for called, args, keywords in self.calls if called == name]


@pytest.fixture
def logged(caplog):
    logger = logging.getLogger("simcast_hpc")
    propagate, logger.propagate = logger.propagate, True
    with caplog.at_level(logging.WARNING, logger="simcast_hpc"):
        yield caplog
    logger.propagate = propagate


def _open(kind: str, folder: Any) -> Any:
    settings = {"optimizer.learning_rate": 0.1, "loss.weights": (1.0, 10.0)}
    return open_tracker(kind, project="radar", name="student", folder=folder, settings=settings)


def test_mlflow_continues_a_run(tmp_path, monkeypatch):
    mlflow = _Calls()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    for step in (20, 40):
        tracker = _open("mlflow", tmp_path)
        tracker.log(step, {"validation/csi/219": 0.5})
        tracker.close()
    assert mlflow.named("set_experiment") == [(("radar",), {})] * 2
    assert [keywords for _, keywords in mlflow.named("start_run")] == [
        {"run_id": None, "run_name": "student"},
        {"run_id": "mlflow-7", "run_name": None},
    ]
    parameters = {"optimizer.learning_rate": "0.1", "loss.weights": "(1.0, 10.0)"}
    assert mlflow.named("log_params") == [((parameters,), {})], "only of the new run"
    metrics = {"validation/csi/219": 0.5}
    assert mlflow.named("log_metrics") == [((metrics,), {"step": 20}), ((metrics,), {"step": 40})]
    assert len(mlflow.named("end_run")) == 2


@pytest.mark.parametrize(("kind", "identifier"), [("wandb", "id"), ("trackio", "name")])
def test_wandb_and_trackio_continue_a_run(kind, identifier, tmp_path, monkeypatch):
    module = _Calls()
    monkeypatch.setitem(sys.modules, kind, module)
    for step in (20, 40):
        tracker = _open(kind, tmp_path)
        tracker.log(step, {"loss": 0.5})
        tracker.close()
    first, second = (keywords for _, keywords in module.named("init"))
    assert first == second and first["project"] == "radar" and first["resume"] == "allow"
    assert first[identifier] and first["config"]["optimizer.learning_rate"] == 0.1
    assert module.named("log") == [(({"loss": 0.5},), {"step": 20}), (({"loss": 0.5},), {"step": 40})]
    assert len(module.named("finish")) == 2


def test_a_run_of_another_tracker_is_not_continued(tmp_path, monkeypatch):
    modules = {kind: _Calls() for kind in ("mlflow", "wandb")}
    for kind, module in modules.items():
        monkeypatch.setitem(sys.modules, kind, module)
        _open(kind, tmp_path).close()
    (_, keywords) = modules["wandb"].named("init")[0]
    assert keywords["id"] != "mlflow-7"


def test_a_failure_is_logged_once(tmp_path, monkeypatch, logged):
    module = _Calls(fail="log")
    monkeypatch.setitem(sys.modules, "wandb", module)
    tracker = _open("wandb", tmp_path)
    for step in (1, 2):
        tracker.log(step, {"loss": 0.5})
    tracker.close()
    assert logged.text.count("no route to host") == 1 and module.named("finish") == []


def test_a_tracker_that_cannot_start_is_logged(tmp_path, monkeypatch, logged):
    monkeypatch.setitem(sys.modules, "wandb", _Calls(fail="init"))
    assert _open("wandb", tmp_path) is None
    assert "log.tracker=wandb cannot be started" in logged.text and not (tmp_path / "tracker.json").exists()


def test_no_tracker(tmp_path):
    require_tracker("none")
    assert _open("none", tmp_path) is None and not list(tmp_path.iterdir())


def test_an_absent_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"log\.tracker=trackio requires the package trackio"):
        require_tracker("trackio")


def test_the_mlflow_package_itself(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    for step in (20, 40):
        tracker = _open("mlflow", tmp_path)
        tracker.log(step, {"validation/csi/219": 0.25})
        tracker.close()
    (run,) = mlflow.search_runs(experiment_names=["radar"], output_format="list")
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "validation/csi/219")
    assert [(entry.step, entry.value) for entry in history] == [(20, 0.25), (40, 0.25)]


def test_the_wandb_package_itself(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = _open("wandb", tmp_path)
    tracker.log(20, {"loss": 0.25})
    tracker.close()
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
