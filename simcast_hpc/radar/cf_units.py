"""Units of rain rates and amounts in CF files: the spellings of UDUNITS for lengths and masses per area, per time."""

import re
from collections import Counter
from fractions import Fraction

_SI: dict[str, tuple[str, Fraction]] = {}
for _names, _dimension, _factor in (
    (("m", "meter", "metre"), "L", Fraction(1)),
    (("cm", "centimeter", "centimetre"), "L", Fraction(1, 100)),
    (("mm", "millimeter", "millimetre"), "L", Fraction(1, 1000)),
    (("in", "inch", "inches"), "L", Fraction(254, 10000)),
    (("kg", "kilogram"), "M", Fraction(1)),
    (("g", "gram"), "M", Fraction(1, 1000)),
    (("s", "sec", "second"), "T", Fraction(1)),
    (("min", "minute"), "T", Fraction(60)),
    (("h", "hr", "hour"), "T", Fraction(3600)),
    (("d", "day"), "T", Fraction(86400)),
):
    _SI |= {name + plural: (_dimension, _factor) for name in _names for plural in ("", "s" if len(name) > 1 else "")}
del _SI["mms"], _SI["cms"], _SI["kgs"], _SI["ins"]
_TOKEN = re.compile(
    r"\s*(?:(?P<divide>/|per\b)|(?P<multiply>[.*·])|(?P<name>[a-z]+)(?:\s?\*\*\s?|\s?\^\s?)?(?P<power>[+-]?\d(?!\d))?)"
)
# Few digits: the factors are exact fractions, whose powers of 10 grow with the exponent.
_SCALE = re.compile(r"\d{1,9}(\.\d{0,9})?(e[+-]?\d{1,2})?(?=\s)")
_SUPERSCRIPTS = str.maketrans("⁻⁺⁰¹²³", "-+0123")


def rate_factor(units: str) -> float | None:
    """Return the factor from ``units`` to mm/h (1 kg m-2 of water is 1 mm); None if they are no rain rate."""
    dimensions, factor = _parse(units)
    if dimensions == {"L": 1, "T": -1}:
        return float(factor * 3_600_000)
    return float(factor * 3600) if dimensions == {"M": 1, "L": -2, "T": -1} else None


def depth_factor(units: str) -> float | None:
    """Return the factor from ``units`` to mm, or to kg m-2 of water; None if they are no amount."""
    dimensions, factor = _parse(units)
    if dimensions == {"L": 1}:
        return float(factor * 1000)
    return float(factor) if is_mass_per_area(units) else None


def is_mass_per_area(units: str) -> bool:
    """Return whether ``units`` are a mass per area."""
    return _parse(units)[0] == {"M": 1, "L": -2}


def is_unit(units: str, unit: str) -> bool:
    """Return whether ``units``, in any spelling, are mm/h, kg/m^2 or dBZ, whichever ``unit`` is."""
    if unit == "mm/h":
        return rate_factor(units) == 1.0
    if unit == "kg/m^2":
        return is_mass_per_area(units) and depth_factor(units) == 1.0
    return units.strip().lower() == unit.lower()


def _parse(units: str) -> tuple[dict[str, int], Fraction]:
    """Return the powers of length, mass and time, and the factor to SI units; no powers if a name is unknown."""
    text = units.strip().lower().translate(_SUPERSCRIPTS)
    scale = _SCALE.match(text)
    factor = Fraction(scale.group()) if scale else Fraction(1)
    position = scale.end() if scale else 0
    powers: Counter[str] = Counter()
    sign = 1
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None or (token["name"] and token["name"] not in _SI):
            return {}, Fraction(1)
        position = token.end()
        if token["divide"]:
            sign = -1
        elif token["name"]:
            dimension, si = _SI[token["name"]]
            power, sign = sign * int(token["power"] or 1), 1
            powers[dimension] += power
            factor *= si**power
    return {name: power for name, power in powers.items() if power}, factor
