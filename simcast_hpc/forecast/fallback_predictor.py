"""A model with a baseline that forecasts when the model cannot: damaged weights, lack of memory or of input frames."""

import gc
import json
import logging
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from simcast_hpc.config import ConfigError, DataError, SimcastError
from simcast_hpc.config.text_files import printable
from simcast_hpc.radar.frame_encoding import EncodedFrame, ModelEncoding

from .baseline_predictor import BaselinePredictor
from .choose_frames import FrameRequest, FrameSet
from .forecast_fields import FALLBACK, FALLBACK_REASON, Forecast
from .predictor import Predictor

logger = logging.getLogger(__name__)
# A model that could not be loaded is loaded again after this time: the memory may be free, or the run complete.
_LOAD_AGAIN_SECONDS = 600.0


class _Gap(NamedTuple):
    """Why the model cannot forecast from the ``available`` frames, from which those of the fallback were chosen."""

    issue: datetime
    available: frozenset[datetime]
    problem: str

    def explains(self, issue: datetime, times: Collection[datetime]) -> bool:
        return issue == self.issue and self.available.issuperset(times)


class FallbackPredictor:
    """Forecast with a model; if that fails, with a baseline. The product always states which, and why.

    Args:
        name: of the run, for messages.
        load: loads the model.
        baseline: the fallback, with the encoding of the model if its configuration can be read.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], Predictor],
        baseline: BaselinePredictor,
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._name, self._load, self._baseline, self._clock = name, load, baseline, clock
        self._model: Predictor | None = None
        self._problem, self._next_load = "", -float("inf")
        self._gap: _Gap | None = None  # of the latest choice of frames
        self._try_to_load(is_start=True)

    def _try_to_load(self, *, is_start: bool = False) -> None:
        if self._model is not None or self._clock() < self._next_load:
            return
        self._next_load = self._clock() + _LOAD_AGAIN_SECONDS
        try:
            self._model, self._problem = self._load(), ""
        except Exception as error:  # whatever is wrong with the run, forecasts continue
            if is_start and isinstance(error, OptionError):
                raise
            self._problem = f"the model cannot be loaded: {describe(error)}"
            logger.warning("%s; forecasts are by %s", self._problem, self._baseline.name)
            _free_memory()

    @property
    def model(self) -> Predictor | None:
        """The model; None as long as it cannot be loaded."""
        return self._model

    @property
    def code(self) -> ModelEncoding:
        """Encoding of the input frames, that of the model and of the fallback."""
        return self._baseline.code

    @property
    def wanted(self) -> FrameRequest:
        """The input frames of the model, or of the fallback if there is no model."""
        return self._baseline.wanted if self._model is None else self._model.wanted

    @property
    def about(self) -> dict[str, str]:
        """Run directory and hash of the weights of the model."""
        return {"run": self._name, "weights": "none"} if self._model is None else self._model.about

    @property
    def identity(self) -> str:
        """Everything that determines the forecasts except their inputs, the program's version and failures."""
        own = f"no model: {self._name}" if self._model is None else self._model.identity
        return json.dumps([own, self._baseline.identity])

    def inputs(self, available: Sequence[datetime], issue: datetime) -> FrameSet:
        """Choose the input frames of the model, or those of the fallback if frames of the model are missing.

        Raises:
            DataError: frames are missing; states why of the model and of the fallback.
        """
        self._try_to_load()
        problem = self._problem
        if self._model is not None:
            try:
                chosen = self._model.inputs(available, issue)
            except DataError as gap:
                # A choice among the frames of the fallback, from which more are missing, is no reason of its own.
                if self._gap is None or not self._gap.explains(issue, available):
                    self._gap = _Gap(issue, frozenset(available), str(gap))
                problem = self._gap.problem
            else:
                self._gap = None
                return chosen
        try:
            return self._baseline.inputs(available, issue)
        except DataError as error:
            raise DataError(self._both(problem, error)) from None

    def _both(self, problem: str, error: Exception) -> str:
        return f"{problem}; --fallback {self._baseline.name} cannot forecast either: {describe(error)}"

    def predict(self, frames: Mapping[datetime, EncodedFrame], issue: datetime) -> Forecast:
        """Return the forecast of the model, or of the fallback with the reason in its provenance.

        Raises:
            DataError: the frames do not suffice for the fallback either; states why of the model and of the fallback.
            RuntimeError: the model or the fallback failed otherwise, and neither can forecast.
        """
        failure: Exception | None = None
        reason = self._problem
        if self._model is not None:
            try:
                return self._model.predict(frames, issue)
            except Exception as error:  # any failure of the network
                failure = error
                is_gap = isinstance(error, DataError)
                reason = str(error) if is_gap else f"the model failed: {describe(error)}"
                if is_gap and self._gap is not None and self._gap.explains(issue, frames):
                    reason = self._gap.problem
                _free_memory()
        try:
            forecast = self._baseline.predict(frames, issue)
        except Exception as error:
            is_input = isinstance(error, SimcastError) and isinstance(failure or error, SimcastError)
            raise (DataError if is_input else RuntimeError)(self._both(reason, error)) from (failure or error)
        name = self._model.model.config.name if self._model is not None else self._name
        logger.warning("the forecast of %s is by %s: %s", f"{issue:%Y-%m-%d %H:%M} UTC", self._baseline.name, reason)
        said = {FALLBACK: self._baseline.name, FALLBACK_REASON: printable(reason)[:1000]}
        return replace(forecast, provenance={**forecast.provenance, **said, "simcast_fallback_for": printable(name)})


class OptionError(ConfigError):
    """An option is invalid, which no fallback hides."""


def describe(error: Exception) -> str:
    """Return the first line of an error, with its type unless it is one of ours."""
    text = (str(error).splitlines() or [""])[0]
    return text if isinstance(error, SimcastError) else f"{type(error).__name__}: {text}"


def _free_memory() -> None:
    """Return memory of a failed forecast to the device."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        try:
            torch.cuda.empty_cache()
        except RuntimeError as error:  # after an error of the device, which the next forecast reports
            logger.warning("%s", describe(error))
