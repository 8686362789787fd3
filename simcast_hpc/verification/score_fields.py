"""Score fields that fit into memory: ``score(observation, forecast)``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from .counting import count
from .data_array_fields import arrays_of
from .physical_values import physical_protocol, physical_unit, with_requests
from .protocols import MissingMembers, ScoreProtocol
from .published_protocols import resolve_protocol
from .scores import scores as scores_by_key

if TYPE_CHECKING:
    import xarray

_DEFAULT = "sevir-global"
_AGGREGATIONS = ("global", "lead-mean", "frame-mean", "sample-mean")


def score(
    observation: "Tensor | np.ndarray | xarray.DataArray",
    forecast: "Tensor | np.ndarray | xarray.DataArray",
    *,
    protocol: str | ScoreProtocol | None = None,
    unit: str | None = None,
    thresholds: Sequence[float] | None = None,
    no_echo: float | None = None,
    events: Sequence[str] | None = None,
    valid: "Tensor | np.ndarray | xarray.DataArray | None" = None,
    per_lead: bool = False,
    mean_over: Sequence[str] | None = None,
    scores: Sequence[str] = (),
    missing_members: MissingMembers | None = None,
) -> dict[str, float]:
    """Score a forecast that fits into memory, in encoded values or in a physical unit.

    Args:
        observation: ``[N, T, H, W]`` or ``[T, H, W]`` of one window, uint8 pixel values or floats in [0, 1]; missing is
            255 (see the protocol), NaN or masked. With ``unit``, floats in this unit, NaN or masked where missing. The
            dimensions of a DataArray are recognized by name, see :func:`.arrays_of`.
        forecast: of the same shape, or members ``[N, M, T, H, W]`` or ``[M, T, H, W]``, uint8 pixel values or floats;
            clipped and rounded only if the protocol requires it.
        protocol: a name in ``PROTOCOLS``, by default ``sevir-global``, or a protocol of :func:`.protocol_for` or
            :func:`.physical_protocol`. With ``unit``, an aggregation: ``global`` (the default), ``lead-mean``,
            ``frame-mean`` or ``sample-mean``.
        unit: unit of the fields, the thresholds and the errors: ``mm/h``, ``dBZ``, ``kg/m^2`` or ``mm``.
        thresholds: in ``unit``, see :func:`.physical_protocol` for the default.
        no_echo: dBZ that replaces minus infinity.
        events: the event of each window; does not change pooled scores.
        valid: boolean, broadcastable; False pixels count as missing.
        per_lead: whether to add ``<key>/lead/<k>``, k from 1, for every key.
        mean_over: labels of the thresholds in ``<score>/mean``; all by default.
        scores: names of additional scores, such as ``ets`` (see ``OPTIONAL_SCORES``), or ``all``.
        missing_members: ``mask`` excludes pixels where any member is missing, ``ignore`` scores the members that are
            present; by default as the protocol defines.

    Returns:
        The keys of :func:`scores`; ``psnr`` only for encoded values.

    Raises:
        KeyError: unknown protocol, or a label in ``mean_over`` that the protocol does not have.
        ValueError: an unknown score or unit, shapes or coordinates differ, floats are not [0, 1] fields, or a float
            observation contains 1 = 255 / 255 under a protocol that excludes pixels of 255 (a forecast may, and so may
            the protocols ``-released``). With ``unit``, a value that is infinite, negative or not plausible in it.
        TypeError: fields are neither uint8 nor floating point.
    """
    rules = with_requests(_protocol(protocol, unit, thresholds, no_echo), scores, missing_members)
    own = rules.unit if rules.comparison == "physical" else None
    observed, predicted, mask = arrays_of(observation, forecast, valid, unit=own)
    statistics = count(observed, predicted, protocol=rules, events=events, valid=mask)
    return scores_by_key(statistics, per_lead=per_lead, mean_over=mean_over)


def _protocol(
    protocol: str | ScoreProtocol | None, unit: str | None, thresholds: Sequence[float] | None, no_echo: float | None
) -> ScoreProtocol:
    if unit is None:
        if thresholds is not None or no_echo is not None:
            raise ValueError(f"thresholds={thresholds} and no_echo={no_echo} require unit, for example unit='mm/h'")
        return resolve_protocol(_DEFAULT if protocol is None else protocol)
    if isinstance(protocol, ScoreProtocol):
        if (protocol.comparison, protocol.unit) != ("physical", physical_unit(unit)) or thresholds is not None:
            raise ValueError(
                f"protocol {protocol.name!r} defines unit {protocol.unit} and thresholds; with unit={unit!r} give "
                "physical_protocol(unit, thresholds) or no protocol"
            )
        return protocol
    if protocol is not None and protocol not in _AGGREGATIONS:
        raise ValueError(
            f"protocol={protocol!r} is of encoded values; with unit={unit!r} choose from {', '.join(_AGGREGATIONS)} "
            "or give physical_protocol(unit, thresholds, ...)"
        )
    rules: dict[str, Any] = {} if protocol is None else {"aggregation": protocol}
    return physical_protocol(unit, thresholds, no_echo=no_echo, **rules)
