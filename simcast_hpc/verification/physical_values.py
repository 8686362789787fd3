"""Fields and thresholds in physical units: a protocol for them, and the check of their values."""

import dataclasses
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simcast_hpc.radar.cf_units import depth_factor, is_unit, rate_factor
from simcast_hpc.radar.radar_frame import ROUNDING_NOISE, require_plausible

from .protocols import ScoreProtocol

UNITS = ("mm/h", "dBZ", "kg/m^2", "mm")
# The thresholds of HKO-7 (Shi et al. 2017) and of CasCast on MeteoNet.
_THRESHOLDS = {"mm/h": (0.5, 2.0, 5.0, 10.0, 30.0), "dBZ": (19.0, 28.0, 35.0, 40.0, 47.0)}


def physical_protocol(
    unit: str, thresholds: Sequence[float] | None = None, *, no_echo: float | None = None, **rules: Any
) -> ScoreProtocol:
    """Return a protocol for fields in a physical unit.

    A value reaches a threshold also if it is smaller by rounding: by less than 2.4e-7 of the threshold (2 ulp of
    float32), in dBZ at least 7.6e-6. So the float32 value of 0.7 and packed values such as 10 * 0.01, decoded in
    float32, reach the thresholds 0.7 and 0.1. If observation and forecast have different types, both are float32.

    Args:
        unit: ``mm/h``, ``dBZ``, ``kg/m^2`` or ``mm`` (an accumulation), in any spelling of CF (``mm h-1``).
        thresholds: ascending, in ``unit``. By default 0.5, 2, 5, 10, 30 mm/h or 19, 28, 35, 40, 47 dBZ; required for
            other units.
        no_echo: dBZ that replaces minus infinity (no echo), below the lowest threshold; without it minus infinity is an
            error.
        rules: further fields of :class:`ScoreProtocol`, such as ``aggregation``, ``strict``, ``pools``, ``scores``,
            ``missing_members``, ``fss_km`` with ``grid_km``, or ``name``.

    Raises:
        ValueError: an unknown unit, invalid thresholds, or a rule that requires encoded values.
    """
    own = physical_unit(unit)
    chosen = _THRESHOLDS.get(own) if thresholds is None else _numbers(thresholds)
    if not chosen:
        raise ValueError(f"thresholds={thresholds}: fields in {own} require at least one, for example (1, 5, 10)")
    if no_echo is not None and not isinstance(no_echo, Real):
        raise ValueError(f"no_echo={no_echo!r} must be a number in dBZ, for example -10")
    values: dict[str, Any] = {"name": f"{own}-{rules.get('aggregation', 'global')}"} | rules
    return ScoreProtocol(
        thresholds=chosen,
        labels=tuple(_label(threshold) for threshold in chosen),
        unit=own,
        scale=1.0,
        comparison="physical",
        missing=None,
        no_echo=no_echo,
        **values,
    )


def physical_unit(unit: str) -> str:
    """Return the name in ``UNITS`` of a unit in any spelling.

    Raises:
        ValueError: the unit is not in ``UNITS``.
    """
    name = unit if isinstance(unit, str) else ""
    for own in UNITS:
        if is_unit(name, own) or (own == "mm" and depth_factor(name) == 1.0):
            return own
    rate, depth = rate_factor(name), depth_factor(name)
    remedy = "convert the fields to one of them"
    if rate or depth:
        remedy = f"multiply the fields by {rate or depth:g} and give unit={'mm/h' if rate else 'mm'!r}"
    raise ValueError(f"unit={unit!r} is not one of {', '.join(UNITS)}; {remedy}")


def physical_values(field: Tensor, name: str, protocol: ScoreProtocol) -> Tensor:
    """Return a field in the unit of the protocol: float32 or float64, NaN where missing, no other special value.

    Values from -0.001 to 0 in units other than dBZ are rounding noise and become 0. Minus infinity in dBZ becomes
    ``no_echo``.

    Args:
        field: floats of any shape.
        name: of the field, for messages.
        protocol: a protocol of :func:`physical_protocol`.

    Raises:
        TypeError: the field is uint8.
        ValueError: a value is infinite, negative in a unit other than dBZ, or not plausible in the unit.
    """
    unit = protocol.unit
    if field.dtype == torch.uint8:
        raise TypeError(
            f"{name} has dtype uint8, and floats in {unit} are needed; decode pixel values (Forecaster.to_physical) or "
            "score them without unit"
        )
    field = field.float() if field.dtype in (torch.float16, torch.bfloat16) else field
    silent = torch.isneginf(field) if unit == "dBZ" else None
    if silent is not None and bool(silent.any()):
        if protocol.no_echo is None:
            raise ValueError(
                f"{name} contains -inf (no echo); give no_echo, the reflectivity in dBZ that replaces it, for example "
                "no_echo=-10"
            )
        field = field.masked_fill(silent, protocol.no_echo)
    present = field[~torch.isnan(field)]
    if not present.numel():
        return field
    low, high = (edge.item() for edge in torch.aminmax(present))
    try:
        require_plausible(np.array([high, low]), unit)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if unit == "dBZ":
        return field
    if low < -ROUNDING_NOISE:
        raise ValueError(f"{name} contains {low:g} {unit}, which must not be negative; give NaN where missing")
    return field.clamp(min=0.0) if low < 0 else field


def with_requests(protocol: ScoreProtocol, scores: Sequence[str], missing_members: str | None) -> ScoreProtocol:
    """Return the protocol with additional scores, and with another rule for missing members unless it is None."""
    if not isinstance(scores, Iterable):
        raise ValueError(f"scores={scores!r} must be names of additional scores, such as ('ets',), or 'all'")
    requested = [scores] if isinstance(scores, str) else list(scores)
    changes: dict[str, Any] = {"scores": (*protocol.scores, *requested)}
    if missing_members is not None:
        changes["missing_members"] = missing_members
    return dataclasses.replace(protocol, **changes)


def _numbers(thresholds: Sequence[float]) -> tuple[float, ...]:
    try:
        if isinstance(thresholds, str):
            raise TypeError("text")
        return tuple(float(one) for one in thresholds)
    except (TypeError, ValueError) as error:
        raise ValueError(f"thresholds={thresholds!r} must be a sequence of numbers, for example (1, 5, 10)") from error


def _label(threshold: float) -> str:
    short = f"{threshold:g}"
    return short if float(short) == threshold else repr(threshold)
