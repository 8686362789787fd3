"""``Forecast``: the fields of one forecast on the map of its inputs; and the interface of what makes forecasts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol

import numpy as np

from simcast_hpc.data.dataset_spec import ZRRelation
from simcast_hpc.radar.frame_encoding import EncodedFrame, ModelEncoding
from simcast_hpc.radar.radar_frame import RadarGrid, Unit

from .choose_frames import FrameRequest, FrameSet

if TYPE_CHECKING:
    from .products.product_fields import ProductField

# Attributes of a forecast file: what made the forecast, the fallback or none, and why it was needed.
MODEL, FALLBACK, FALLBACK_REASON = "simcast_model", "simcast_fallback", "simcast_fallback_reason"


@dataclass(frozen=True, eq=False)
class ObservedFrames:
    """The input frames of a forecast, from which accumulations over the time before the issue are computed.

    Attributes:
        codes: encoded values ``[T, H, W]``.
        times: nominal times, ascending; the last is the issue time.
        decode: function from codes of any shape to values in the unit of the forecast, float32, NaN where missing.
        are_means: whether every frame is the mean rate over an interval that ends at its time (an accumulation), not an
            instantaneous field. The frames that a model forecasts from such frames are means as well.
        wanted: number of frames that accumulations need; fewer existed if it is above that of ``times``.
    """

    codes: np.ndarray
    times: tuple[datetime, ...]
    decode: Callable[[np.ndarray], np.ndarray]
    are_means: bool = False
    wanted: int = 0

    def values(self, frame: int, rows: slice = slice(None)) -> np.ndarray:
        """Return rows of a frame in the unit of the forecast, float32 ``[rows, W]``, NaN where missing."""
        return self.decode(self.codes[frame, rows])


@dataclass(frozen=True, eq=False)
class Forecast:
    """A forecast on the map of its inputs.

    Attributes:
        issue: issue time.
        step_minutes: minutes between two lead times.
        grid: map grid.
        unit: of all fields.
        no_echo_dbz: value of no echo in dBZ.
        observed: last input, float32 ``[H, W]``, NaN where missing.
        thresholds: in ``unit``.
        values: float32 ``[M, T', H, W]``, one member of a deterministic model, NaN where missing; None if an
            ensemble's members were not requested.
        mean: ensemble mean ``[T', H, W]``; None for a deterministic model.
        probability: probability of reaching each threshold ``[K, T', H, W]``; None for a deterministic model.
        provenance: text by attribute name.
        validity: bool ``[T', H, W]``, whether a pixel is determined by observations, see
            :func:`.inflow.origin_is_observed`; None if unknown.
        inputs: the input frames; None if they are not known.
        z_r: relation by which reflectivity is converted to rain rates; None if there is none.
        products: fields that were derived from the forecast.
    """

    issue: datetime
    step_minutes: float
    grid: RadarGrid
    unit: Unit
    no_echo_dbz: float
    observed: np.ndarray
    thresholds: tuple[float, ...]
    values: np.ndarray | None
    mean: np.ndarray | None = None
    probability: np.ndarray | None = None
    provenance: dict[str, str] = field(default_factory=dict)
    validity: np.ndarray | None = None
    inputs: ObservedFrames | None = None
    z_r: ZRRelation | None = None
    products: tuple["ProductField", ...] = ()

    @property
    def shown(self) -> np.ndarray:
        """The field ``[T', H, W]`` that pictures show: the forecast, or the mean of an ensemble."""
        if self.mean is not None:
            return self.mean
        assert self.values is not None
        return self.values[0]

    @property
    def is_ensemble(self) -> bool:
        """Whether the forecast has several members, from which probabilities are estimated."""
        return self.mean is not None

    @property
    def fallback(self) -> str:
        """Why the forecast is not that of the model; empty if it is."""
        return self.provenance.get(FALLBACK_REASON, "")

    @property
    def leads_minutes(self) -> list[float]:
        """Lead times in minutes."""
        return [self.step_minutes * (k + 1) for k in range(len(self.shown))]

    @property
    def lacks_frames(self) -> bool:
        """Whether fewer observed frames existed than accumulations need."""
        return self.inputs is not None and len(self.inputs.times) < self.inputs.wanted

    @property
    def valid(self) -> list[datetime]:
        """The valid times."""
        return [self.issue + timedelta(minutes=lead) for lead in self.leads_minutes]


class ForecastMethod(Protocol):
    """What makes forecasts from encoded frames: a trained model, a baseline, or a model with a fallback."""

    @property
    def code(self) -> ModelEncoding:
        """Encoding, pixel spacing and cadence of the input frames."""
        ...

    @property
    def wanted(self) -> FrameRequest:
        """The input frames of a forecast."""
        ...

    @property
    def identity(self) -> str:
        """Everything that determines the forecasts except their inputs and the program's version."""
        ...

    @property
    def about(self) -> dict[str, str]:
        """Run directory or name (``run``) and hash of the weights (``weights``), for status files."""
        ...

    def inputs(self, available: Sequence[datetime], issue: datetime) -> FrameSet:
        """Choose the input frames of a forecast issued at ``issue``.

        Raises:
            DataError: frames are missing.
        """
        ...

    def predict(self, frames: Mapping[datetime, EncodedFrame], issue: datetime) -> Forecast:
        """Return the forecast issued at ``issue`` from the frames by time.

        Raises:
            DataError: frames are missing, or they do not belong together.
        """
        ...
