"""Counters and latencies of a watcher, for ``health.json``, and the same as a text file for Prometheus.

The text file is for the textfile collector of the node exporter, which reads ``*.prom`` files of a folder.
"""

import logging
import math
import re
from collections import deque
from datetime import datetime
from pathlib import Path
from typing import Any

from simcast_hpc.storage.atomic_files import write_text

logger = logging.getLogger(__name__)
STATES = ("watching", "stale", "failing", "stopped")
_PERCENTILES = (50, 90, 99)
_LATENCIES = 1000


class WatchStatistics:
    """Counts of a watcher since its start, and the latencies of its last 1000 forecasts.

    The latency is the time from the arrival of the newest input file (the last change of its status, which a transfer
    that keeps modification times does not set back) to the complete product. Frames that arrived before the start of
    the watcher are not counted.

    Args:
        started: seconds since 1970.
    """

    def __init__(self, started: float):
        self._started = started
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self._latency_sum, self._latency_count = 0.0, 0
        self._made = self._failed = self._fallbacks = 0
        self._last_fallback: dict[str, str] | None = None

    def count_forecast(self, issue: str, *, arrived: float, published: float, fallback: str) -> None:
        """Count a forecast; ``fallback`` is the reason why it is not the model's, or empty."""
        self._made += 1
        if fallback:
            self._fallbacks += 1
            self._last_fallback = {"issue": issue, "reason": fallback}
        if arrived >= self._started:
            latency = max(published - arrived, 0.0)
            self._latencies.append(latency)
            self._latency_sum, self._latency_count = self._latency_sum + latency, self._latency_count + 1

    def count_failure(self) -> None:
        """Count a forecast that could not be made."""
        self._failed += 1

    def health(self) -> dict[str, Any]:
        """Return the entries of ``health.json``."""
        ordered = sorted(self._latencies)
        percentiles = {f"p{one}": round(ordered[math.ceil(one / 100 * len(ordered)) - 1], 3) for one in _PERCENTILES} \
            if ordered else dict.fromkeys(f"p{one}" for one in _PERCENTILES)  # fmt: skip
        return {
            "made": self._made,
            "failed": self._failed,
            "fallbacks": self._fallbacks,
            "last_fallback": self._last_fallback,
            "latency_seconds": {
                **percentiles,
                "count": self._latency_count,
                "sum": round(self._latency_sum, 3),
            },
        }


def write_prometheus(path: Path, health: dict[str, Any]) -> None:
    """Write the status in ``health.json`` as a text file for Prometheus, atomically; a failure is logged."""
    try:
        write_text(path, prometheus_text(health))
    except OSError as error:
        logger.warning("%s cannot be written: %s", path, error)


def prometheus_text(health: dict[str, Any]) -> str:
    """Return the status in ``health.json`` in the text format of Prometheus."""
    last, latency = health["last_forecast"], health["latency_seconds"]
    families: list[tuple[str, str, str, list[tuple[dict[str, str], float | None]]]] = [
        ("info", "gauge", "Run and weights of the forecasts.",
         [({"run": health["run"], "weights": health["weights"]}, 1)]),
        ("state", "gauge", "State of the watcher, 1 for the current one.",
         [({"state": one}, float(one == health["state"])) for one in STATES]),
        ("frames", "gauge", "Usable frames in the watched folder.", [({}, health["frames"])]),
        ("forecasts_total", "counter", "Forecasts made since the start.", [({}, health["made"])]),
        ("failures_total", "counter", "Forecasts that failed since the start.", [({}, health["failed"])]),
        ("fallbacks_total", "counter", "Forecasts made by the fallback since the start.", [({}, health["fallbacks"])]),
        ("problems", "gauge", "Current problems.",
         [({"kind": kind}, count) for kind, count in health["problem_counts"].items()]),
        ("start_timestamp_seconds", "gauge", "Start of the watcher.", [({}, _seconds(health["started"]))]),
        ("updated_timestamp_seconds", "gauge", "Time of this status.", [({}, _seconds(health["updated"]))]),
        ("last_frame_timestamp_seconds", "gauge", "Time of the newest frame.", [({}, _seconds(health["last_frame"]))]),
        ("last_forecast_timestamp_seconds", "gauge", "Issue time of the newest forecast.",
         [({}, _seconds(last["issue"] if last else None))]),
    ]  # fmt: skip
    lines: list[str] = []
    for name, kind, about, samples in families:
        lines += _header(name, kind, about)
        lines += [_sample(name, labels, value) for labels, value in samples if value is not None]
    lines += _header("latency_seconds", "summary", "Time from the arrival of a frame to its forecast.")
    for one in _PERCENTILES:
        value = latency[f"p{one}"]
        quantile = {"quantile": f"{one / 100:g}"}
        lines.append(_sample("latency_seconds", quantile, math.nan if value is None else value))
    lines += [_sample(f"latency_seconds_{part}", {}, latency[part]) for part in ("sum", "count")]
    return "\n".join(lines) + "\n"


def _header(name: str, kind: str, about: str) -> list[str]:
    return [f"# HELP simcast_watch_{name} {about}", f"# TYPE simcast_watch_{name} {kind}"]


def _sample(name: str, labels: dict[str, str], value: float) -> str:
    inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    number = "NaN" if math.isnan(value) else repr(float(value)) if value != int(value) else str(int(value))
    return f"simcast_watch_{name}{'{' + inside + '}' if inside else ''} {number}"


def _escaped(text: str) -> str:
    return re.sub(r'([\\"])', r"\\\1", text).replace("\n", r"\n")


def _seconds(text: str | None) -> float | None:
    return None if text is None else datetime.fromisoformat(text).timestamp()
