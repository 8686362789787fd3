"""Schedulers of the library diffusers in float64, with given noise instead of random numbers."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch


class _Float64:
    """A module in which the name ``float32`` is float64; the schedulers of diffusers name their dtype explicitly."""

    def __init__(self, module: Any):
        self._module, self.float32 = module, module.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def scheduler(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    *,
    noise: Callable[[int], torch.Tensor] | None = None,
    double: bool = True,
    **settings: Any,
) -> Any:
    """Return a scheduler whose tables, steps and noise are float64, or skip the test without diffusers.

    Args:
        monkeypatch: fixture of the test, at whose end the module of the scheduler is restored.
        name: class, such as ``DDPMScheduler``.
        noise: noise of the n-th step that adds some.
        double: whether float32 is replaced by float64.
        settings: arguments of the class.
    """
    reason = "diffusers is not installed: pip install -c constraints.txt -e '.[test]'"
    schedulers = pytest.importorskip("diffusers.schedulers", reason=reason)
    module = importlib.import_module(getattr(schedulers, name).__module__)
    for library in ("torch", "np"):
        if double:
            monkeypatch.setattr(module, library, _Float64(getattr(module, library)))
    if noise is not None:
        numbers = iter(range(10_000))
        monkeypatch.setattr(module, "randn_tensor", lambda *_args, **_kwargs: noise(next(numbers)))
    return getattr(schedulers, name)(**settings)
