"""What exactly is computed under a name: thresholds, comparison, aggregation and mask rule, as frozen, hashed data.

One phrase such as "CSI-M on SEVIR" stands for several calculations whose answers differ by more than most claimed
gains. A protocol names one of them, and its hash stands beside every number made with it.
"""

import dataclasses
import difflib
import hashlib
import json
from typing import Any, Literal

SEVIR_THRESHOLDS = (16.0, 74.0, 133.0, 160.0, 181.0, 219.0)

Comparison = Literal["codes", "released"]
Aggregation = Literal["global", "lead-mean"]
MissingRule = Literal["excluded", "non-event"]

_COUNTING_FIELDS = ("thresholds", "labels", "unit", "scale", "comparison", "missing", "missing_rule")
_SCORING_FIELDS = (*_COUNTING_FIELDS, "aggregation", "epsilon")
_CHOICES = {
    "comparison": ("codes", "released"),
    "aggregation": ("global", "lead-mean"),
    "missing_rule": ("excluded", "non-event"),
}
# In these units a threshold may equal its code; in others (mm/h, kg/m^2) that is a forgotten conversion.
_CODE_LIKE_UNITS = ("code", "dBZ")
# A threshold computed from a logarithm lands beside its code by a few units in the last place; it means the code.
_ON_A_CODE = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreProtocol:
    """One way to turn observations and forecasts into scores.

    Attributes:
        name: what the protocol is called on pages; not part of the hash.
        thresholds: ascending, in the data set's code; an event is ``code >= threshold``.
        labels: the thresholds as they stand in score keys (``csi/<label>``), in ``unit``.
        unit: unit of the labels, such as ``code`` or ``mm/h``.
        scale: what a code is divided by to give the [0, 1] field that models see.
        comparison: ``codes`` compares uint8 codes with the threshold and floats with ``float32(threshold / scale)``,
            correctly rounded, so that a float made from code 219 is an event at 219. ``released`` turns every field
            into [0, 1], uint8 codes by ``code / scale``, and back by fp32 ``x / (1 / scale)``, by which code 219 falls
            below 219.
        aggregation: ``global`` pools the counts of all leads; ``lead-mean`` scores each lead and averages.
        missing: the uint8 code that means "no observation"; None where every code is a value. In floats it is NaN.
        missing_rule: ``excluded`` leaves out pixels that are missing in either field; ``non-event`` counts them as
            correct negatives. Squared and absolute errors leave them out under both.
        epsilon: added to the denominator of every score of the 2 x 2 table; 0 leaves an undefined score NaN.
        source: where the calculation comes from; not part of the hash.
    """

    name: str
    thresholds: tuple[float, ...]
    labels: tuple[str, ...]
    unit: str = "code"
    scale: float = 255.0
    comparison: Comparison = "codes"
    aggregation: Aggregation = "global"
    missing: int | None = 255
    missing_rule: MissingRule = "excluded"
    epsilon: float = 0.0
    source: str = ""

    def __post_init__(self) -> None:
        for field, allowed in _CHOICES.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"protocol {self.name!r}: {field}={getattr(self, field)!r} is not one of {allowed}")
        if not self.epsilon >= 0:
            raise ValueError(f"protocol {self.name!r}: epsilon={self.epsilon} must be 0 or more")
        if not self.scale > 0:
            raise ValueError(f"protocol {self.name!r}: scale={self.scale} must be positive, 255 for 8-bit codes")
        if self.missing is not None and not 0 <= self.missing <= 255:
            raise ValueError(f"protocol {self.name!r}: missing={self.missing} is no 8-bit code; give 0..255 or None")
        self._check_thresholds()
        self._check_labels()

    def _check_labels(self) -> None:
        if len(self.labels) != len(self.thresholds):
            raise ValueError(
                f"protocol {self.name!r} has {len(self.thresholds)} thresholds {self.thresholds} and "
                f"{len(self.labels)} labels {self.labels}; give one label a threshold"
            )
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"protocol {self.name!r}: labels {self.labels} repeat themselves; they must differ")
        for label in self.labels:
            if not label or label == "mean" or "/" in label or any(character.isspace() for character in label):
                raise ValueError(
                    f"protocol {self.name!r}: label {label!r} cannot stand in a key such as csi/<label>; "
                    "use the bare number, such as 219 or 0.5"
                )
        if self.unit not in _CODE_LIKE_UNITS and all(map(_names_value, self.labels, self.thresholds)):
            raise ValueError(
                f"protocol {self.name!r}: thresholds {self.thresholds} repeat the labels in {self.unit}; give the "
                f"data set's codes of {', '.join(self.labels)} {self.unit} as thresholds and keep the labels"
            )

    def _check_thresholds(self) -> None:
        if not self.thresholds:
            raise ValueError(f"protocol {self.name!r} has no thresholds; give at least one code, such as 74")
        if any(low >= high for low, high in zip(self.thresholds, self.thresholds[1:], strict=False)):
            raise ValueError(
                f"protocol {self.name!r}: thresholds {self.thresholds} must ascend; "
                f"try {tuple(sorted(set(self.thresholds)))}"
            )
        lowest = 1 if self.unit == "code" else 0.5  # half a code is "any echo" for an encoding's place of a threshold
        highest = 254 if self.missing == 255 else 255
        outside = [threshold for threshold in self.thresholds if not lowest <= threshold <= highest]
        if outside:
            raise ValueError(
                f"protocol {self.name!r}: threshold {outside[0]:g} is no code of the data set, whose echoes have codes "
                f"1 to {highest}; turn a threshold in {self.unit if self.unit != 'code' else 'mm/h, dBZ or kg/m2'} "
                "into the data set's code first"
            )

    @property
    def hash(self) -> str:
        """Twelve hex digits over everything that moves a score or its key: not over name and source."""
        return _digest(self, _SCORING_FIELDS)

    @property
    def counting_hash(self) -> str:
        """Twelve hex digits over what moves the counts: protocols that share it can share sufficient statistics."""
        return _digest(self, _COUNTING_FIELDS)

    def to_json(self) -> str:
        """Return the protocol as canonical JSON (sorted keys, no spaces)."""
        return _canonical(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ScoreProtocol":
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: the text is not such JSON; the message names the keys that are wrong.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"not the JSON of a verification protocol: {error}") from error
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            got = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"the JSON of a verification protocol has the keys {sorted(names)}, got {got}")
        return cls(**{**values, "thresholds": tuple(values["thresholds"]), "labels": tuple(values["labels"])})


def protocol_for(
    name: str,
    thresholds_codes: tuple[float, ...],
    labels: tuple[str, ...] | None = None,
    *,
    unit: str = "code",
    aggregation: Aggregation = "global",
    missing: int | None = 255,
    scale: float = 255.0,
    source: str = "",
) -> ScoreProtocol:
    """Return the honest protocol for a data set's own thresholds.

    Args:
        name: what to call it, such as ``radar-global``.
        thresholds_codes: ascending thresholds in the data set's 8-bit code, fractions allowed: 0.5 mm/h is code 47.6
            of the ``rr`` rule. A value within 1e-6 of a whole code is taken to be that code.
        labels: the same thresholds as keys name them, in ``unit`` (``("0.5", "2", "5")``); by default the codes.
        unit: unit of the labels.
        aggregation: ``global`` or ``lead-mean``.
        missing: uint8 code of a missing pixel, None where there is none.
        scale: divisor from code to [0, 1].
        source: where the thresholds come from.

    Raises:
        ValueError: thresholds are not ascending, out of the code's range, or in ``unit`` in place of codes.
    """
    codes = tuple(_snapped(float(threshold)) for threshold in thresholds_codes)
    return ScoreProtocol(
        name=name,
        thresholds=codes,
        labels=tuple(f"{code:g}" for code in codes) if labels is None else tuple(labels),
        unit=unit,
        aggregation=aggregation,
        missing=missing,
        scale=scale,
        source=source,
    )


def resolve_protocol(protocol: str | ScoreProtocol) -> ScoreProtocol:
    """Return a protocol by its name in ``PROTOCOLS``; a protocol passes through.

    Raises:
        KeyError: no protocol has this name; the message gives the nearest one and all others.
    """
    if isinstance(protocol, ScoreProtocol):
        return protocol
    if protocol not in PROTOCOLS:
        near = difflib.get_close_matches(protocol, PROTOCOLS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise KeyError(f"unknown verification protocol {protocol!r}; {hint}known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[protocol]


def _names_value(label: str, value: float) -> bool:
    try:
        return float(label) == value
    except ValueError:
        return False


def _snapped(threshold: float) -> float:
    whole = float(round(threshold)) if abs(threshold) < 2**31 else threshold
    return whole if abs(threshold - whole) < _ON_A_CODE else threshold


def _canonical(values: dict[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _digest(protocol: ScoreProtocol, fields: tuple[str, ...]) -> str:
    values = dataclasses.asdict(protocol)
    # An int and its float are one threshold and must hash as one.
    for field in ("thresholds", "scale", "epsilon"):
        values[field] = [float(v) for v in values[field]] if field == "thresholds" else float(values[field])
    text = _canonical({field: values[field] for field in fields})
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:12]


def _sevir(name: str, **rules: Any) -> ScoreProtocol:
    labels = tuple(f"{threshold:g}" for threshold in SEVIR_THRESHOLDS)
    return ScoreProtocol(name=name, thresholds=SEVIR_THRESHOLDS, labels=labels, **rules)


_RELEASED: dict[str, Any] = {"comparison": "released", "missing_rule": "non-event", "epsilon": 1e-4}
_EARTHFORMER = "earth-forecasting-transformer 7732b03, src/earthformer/metrics/sevir.py, "

PROTOCOLS: dict[str, ScoreProtocol] = {
    protocol.name: protocol
    for protocol in (
        _sevir("sevir-global", source="thresholds of SEVIR (Veillette et al. 2020); counts pooled over all leads"),
        _sevir("sevir-lead-mean", aggregation="lead-mean", source="thresholds of SEVIR; mean over leads"),
        _sevir("sevir-global-released", **_RELEASED, source=_EARTHFORMER + "metrics mode 0"),
        _sevir("sevir-lead-mean-released", **_RELEASED, aggregation="lead-mean", source=_EARTHFORMER + "mode 2"),
    )
}
