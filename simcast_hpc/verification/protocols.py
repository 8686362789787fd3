"""Verification protocols: thresholds, comparison, aggregation and mask rule as frozen, hashed data.

A phrase such as "CSI-M on SEVIR" is used for several calculations whose results differ by more than most claimed
gains. A protocol defines one of them, and its hash is printed with every number computed under it.
"""

import dataclasses
import hashlib
import json
import math
from typing import Any, Literal, get_args

from .optional_scores import additional_sums, requested_scores

Comparison = Literal["codes", "released", "released-truncated", "physical"]
Aggregation = Literal["global", "lead-mean", "frame-mean", "sample-mean"]
MissingRule = Literal["excluded", "non-event"]
MemberReduction = Literal["mean", "each"]
MissingMembers = Literal["mask", "ignore"]
Rounding = Literal["none", "nearest", "truncate"]
Undefined = Literal["nan", "zero"]
Oddity = Literal["bias_ln2", "crps_gaussian", "ssim_batch_range"]

# The hash contains every field of the first version, and later fields only if they differ from their default, so that
# a protocol that does not use them keeps the hash under which its numbers were published. Fields that only add scores
# under separate keys (panel) change no number, so they are part of the counting hash but not of the hash.
_FIRST_COUNTING = ("thresholds", "labels", "unit", "scale", "comparison", "missing", "missing_rule")
_FIRST_SCORING = (*_FIRST_COUNTING, "aggregation", "epsilon")
_RULES = ("strict", "partial_blocks", "members", "missing_members", "clip", "rounding", "grid_km", "balance", "no_echo")
_LATER_SCORING = (*_RULES, "pool_aggregation", "epsilon_numerator", "undefined")
_PANEL = ("pools", "fss_km", "ssim", "spectrum", "oddities")
_CHOICES: dict[str, tuple[str, ...]] = {
    "comparison": get_args(Comparison),
    "aggregation": get_args(Aggregation),
    "missing_rule": get_args(MissingRule),
    "members": get_args(MemberReduction),
    "missing_members": get_args(MissingMembers),
    "rounding": get_args(Rounding),
    "undefined": get_args(Undefined),
}
# Fields that protocols stored by earlier versions lack.
_ADDED = frozenset({"missing_members", "no_echo", "scores"})
# In these units a threshold may equal its encoded value; in others (mm/h, kg/m^2) that is a missing conversion.
_CODE_LIKE_UNITS = ("code", "dBZ")
# A threshold computed from a logarithm differs from its encoded value by rounding; within this distance it is snapped.
_ON_A_CODE = 1e-6
# (window area)^2 times the 2.15e10 pixels of the SEVIR test split stays below 2**63.
_WIDEST_FSS = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
    """Blocks over which both fields are reduced before the threshold is applied.

    Attributes:
        size: side length of a block in pixels.
        kind: ``max`` or ``avg``. Averages are taken over pixel values, as in the published evaluators.
        overlapping: whether there is a block around every pixel, clipped at the edge (neighborhood verification),
            instead of adjacent blocks.
    """

    size: int
    kind: Literal["max", "avg"] = "max"
    overlapping: bool = False

    def __post_init__(self) -> None:
        if self.size < 2:
            raise ValueError(f"pool size {self.size} must be at least 2 pixels")
        if self.kind not in ("max", "avg"):
            raise ValueError(f"pool kind {self.kind!r} is not one of ('max', 'avg')")
        if self.overlapping and self.kind == "avg":
            raise ValueError(f"{self}: overlapping blocks require kind='max', got kind='avg'")

    @property
    def key(self) -> str:
        """The name of the pool in score keys: ``pool4``, ``pool4_avg``, ``neighbourhood9``."""
        return f"neighbourhood{self.size}" if self.overlapping else f"pool{self.size}" + ("_avg" * (self.kind == "avg"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreProtocol:
    """One definition of how scores are computed from observations and forecasts.

    Attributes:
        name: name of the protocol; not part of the hash.
        thresholds: ascending, in encoded values of the data set; an event is ``value >= threshold``.
        labels: the thresholds in score keys (``csi/<label>``), in ``unit``.
        unit: unit of the labels, such as ``code`` (encoded value) or ``mm/h``.
        scale: divisor from encoded values to the [0, 1] field that models see.
        comparison: ``codes`` compares uint8 values with the threshold and floats with ``float32(threshold / scale)``,
            correctly rounded, so that a float made from 219 is an event at 219. ``released`` converts every field to
            [0, 1], uint8 values by ``value / scale``, and back by fp32 ``x / (1 / scale)``, which turns 219 into less
            than 219, so not an event at 219. ``released-truncated`` converts back by fp32 ``x * scale`` and truncates.
            ``physical`` compares values and thresholds in ``unit``.
        strict: whether an event is above its threshold (``>``) instead of at or above it (``>=``).
        aggregation: ``global`` pools the counts of all windows and lead times; ``lead-mean`` pools over windows, scores
            each lead time and averages; ``frame-mean`` scores each frame and ``sample-mean`` each window, and both
            average over those for which the score is defined.
        pool_aggregation: aggregation of the pooled tables, if it differs.
        pools: blocks for which additional tables are counted.
        partial_blocks: whether blocks that are cut by the edge count; otherwise the remainder of a frame is dropped.
        members: ``mean`` scores the ensemble mean, ``each`` scores every member as a forecast.
        missing_members: ``mask`` excludes a pixel from scores of an ensemble if any member is missing there; ``ignore``
            scores it by the members that are present.
        no_echo: value that replaces minus infinity in fields in dBZ; None rejects it.
        clip: whether forecasts are clipped to [0, 1] first.
        rounding: rounding of forecasts to whole encoded values before counting: ``nearest``, ``truncate`` or ``none``.
            Forecasts stored as uint8 are rounded already, and their protocol must declare it.
        undefined: value of a table score without a denominator, ``nan`` or ``zero``.
        epsilon_numerator: added to the numerator of CSI, POD and frequency bias.
        fss_km: window sizes of the fractions skill score in km.
        grid_km: grid spacing in km.
        ssim: whether SSIM is computed (Gaussian window of 11 pixels, data range 1 of the [0, 1] field).
        spectrum: whether radial power spectra are summed.
        balance: weights of the observed levels 0, 1, ... in balanced errors; empty for none.
        oddities: quantities of published evaluators that differ from their standard definition.
        scores: names of additional scores, see ``OPTIONAL_SCORES``.
        missing: uint8 value of a missing pixel; None if every value is valid. In floats missing is NaN.
        missing_rule: ``excluded`` ignores pixels that are missing in either field; ``non-event`` counts them as
            correct negatives. Squared and absolute errors ignore them under both.
        epsilon: added to the denominator of every score of the 2 x 2 table; with 0 an undefined score is NaN.
        source: origin of the calculation; not part of the hash.
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
    strict: bool = False
    pools: tuple[Pool, ...] = ()
    partial_blocks: bool = False
    pool_aggregation: Aggregation | None = None
    members: MemberReduction = "mean"
    clip: bool = False
    rounding: Rounding = "none"
    undefined: Undefined = "nan"
    epsilon_numerator: float = 0.0
    fss_km: tuple[float, ...] = ()
    grid_km: float = 1.0
    ssim: bool = False
    spectrum: bool = False
    balance: tuple[float, ...] = ()
    oddities: tuple[Oddity, ...] = ()
    missing_members: MissingMembers = "mask"
    no_echo: float | None = None
    scores: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        for field, allowed in _CHOICES.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"protocol {self.name!r}: {field}={getattr(self, field)!r} is not one of {allowed}")
        if not self.epsilon >= 0:
            raise ValueError(f"protocol {self.name!r}: epsilon={self.epsilon} must not be negative")
        if not self.scale > 0:
            raise ValueError(f"protocol {self.name!r}: scale={self.scale} must be positive; use 255 for uint8 values")
        if any(not isinstance(pool, Pool) for pool in self.pools):
            raise ValueError(f"protocol {self.name!r}: pools={self.pools} must be Pool objects, such as Pool(size=4)")
        if self.missing is not None and not 0 <= self.missing <= 255:
            raise ValueError(f"protocol {self.name!r}: missing={self.missing} must be within 0..255 or None")
        self._check_thresholds()
        self._check_labels()
        self._check_fields()

    def _check_labels(self) -> None:
        if len(self.labels) != len(self.thresholds):
            raise ValueError(
                f"protocol {self.name!r} has {len(self.thresholds)} thresholds {self.thresholds} and "
                f"{len(self.labels)} labels {self.labels}; give one label per threshold"
            )
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"protocol {self.name!r}: labels {self.labels} must be unique")
        for label in self.labels:
            if not label or label == "mean" or "/" in label or any(character.isspace() for character in label):
                raise ValueError(
                    f"protocol {self.name!r}: label {label!r} is invalid in a key such as csi/<label>; "
                    "use the number without unit, such as 219 or 0.5"
                )
        is_physical = self.comparison == "physical"
        if self.unit not in _CODE_LIKE_UNITS and not is_physical and all(map(_is_number, self.labels, self.thresholds)):
            raise ValueError(
                f"protocol {self.name!r}: thresholds {self.thresholds} are in {self.unit}; they must be the encoded "
                f"values of {', '.join(self.labels)} {self.unit} in the data set"
            )

    def _check_fields(self) -> None:
        if not self.grid_km > 0 or any(not km >= self.grid_km for km in self.fss_km):
            raise ValueError(
                f"protocol {self.name!r}: fss_km={self.fss_km} must not be smaller than a pixel, "
                f"grid_km={self.grid_km:g}"
            )
        if any(window > _WIDEST_FSS for window in self.fss_windows):
            raise ValueError(
                f"protocol {self.name!r}: fss_km={self.fss_km} gives a window of {max(self.fss_windows)} pixels; with "
                f"more than {_WIDEST_FSS} the integer sums of a large test set overflow"
            )
        if len(set(self.fss_windows)) != len(self.fss_windows) or len({p.key for p in self.pools}) != len(self.pools):
            raise ValueError(
                f"protocol {self.name!r}: fss_km={self.fss_km} and pools={self.pools} must not contain a window twice"
            )
        if self.partial_blocks and any(pool.kind == "avg" for pool in self.pools):
            raise ValueError(
                f"protocol {self.name!r}: partial_blocks=True requires pools with kind='max', got {self.pools}"
            )
        if self.balance and len(self.balance) != len(self.thresholds) + 1:
            raise ValueError(
                f"protocol {self.name!r}: balance={self.balance} must have {len(self.thresholds) + 1} weights: one for "
                "values below the first threshold and one per threshold"
            )
        try:
            object.__setattr__(self, "scores", requested_scores(self.scores))
        except ValueError as error:
            raise ValueError(f"protocol {self.name!r}: {error}") from error
        unknown = set(self.oddities) - set(get_args(Oddity))
        if unknown:
            raise ValueError(f"protocol {self.name!r}: oddities {sorted(unknown)} are not in {get_args(Oddity)}")

    def _check_thresholds(self) -> None:
        if not self.thresholds:
            raise ValueError(f"protocol {self.name!r} has no thresholds; give at least one, such as 74")
        if any(low >= high for low, high in zip(self.thresholds, self.thresholds[1:], strict=False)):
            raise ValueError(
                f"protocol {self.name!r}: thresholds {self.thresholds} must ascend; "
                f"try {tuple(sorted(set(self.thresholds)))}"
            )
        if self.comparison == "physical":
            self._check_physical()
            return
        lowest = 1 if self.unit == "code" else 0.5  # in other units 0.5 means "any echo"
        highest = 254 if self.missing == 255 else 255
        outside = [threshold for threshold in self.thresholds if not lowest <= threshold <= highest]
        if outside:
            raise ValueError(
                f"protocol {self.name!r}: threshold {outside[0]:g} is not an encoded value of an echo, 1 to {highest}; "
                f"convert thresholds in {self.unit if self.unit != 'code' else 'mm/h, dBZ or kg/m2'} to encoded values "
                "of the data set"
            )

    def _check_physical(self) -> None:
        """Check the fields that a comparison in a physical unit restricts."""
        if not all(map(math.isfinite, self.thresholds)) or (self.unit != "dBZ" and self.thresholds[0] < 0):
            raise ValueError(
                f"protocol {self.name!r}: thresholds {self.thresholds} must be finite values in {self.unit}, "
                "not negative except in dBZ"
            )
        required = {
            "scale": 1.0, "missing": None, "missing_rule": "excluded", "clip": False, "rounding": "none", "ssim": False,
            "oddities": (),
        }  # fmt: skip
        for field, value in required.items():
            if getattr(self, field) != value:
                raise ValueError(
                    f"protocol {self.name!r}: {field}={getattr(self, field)!r} requires encoded values; with "
                    f"comparison='physical' it must be {value!r}"
                )
        if self.no_echo is not None and (self.unit != "dBZ" or not -math.inf < self.no_echo < self.thresholds[0]):
            raise ValueError(
                f"protocol {self.name!r}: no_echo={self.no_echo:g} must be a reflectivity below the lowest threshold, "
                f"{self.thresholds[0]:g} {self.unit}; it applies only to fields in dBZ"
            )

    @property
    def hash(self) -> str:
        """Twelve hex digits over every field that changes a score; name, source and additional scores are excluded."""
        return _digest(self, _FIRST_SCORING, _LATER_SCORING)

    @property
    def counting_hash(self) -> str:
        """Twelve hex digits over every field that changes the counts; with equal hashes statistics can be shared."""
        if self.scores_frames:
            return _digest(self, _FIRST_SCORING, (*_LATER_SCORING, *_PANEL), counts=True)
        return _digest(self, _FIRST_COUNTING, (*_RULES, *_PANEL), counts=True)

    @property
    def sums(self) -> tuple[str, ...]:
        """What the additional scores need beyond the tables and errors of pixels."""
        return additional_sums(self.scores, scores_frames=self.scores_frames)

    @property
    def scores_frames(self) -> bool:
        """Whether scores are computed per frame or per window, so that they are part of the counts."""
        return self.aggregation in ("frame-mean", "sample-mean")

    @property
    def fss_windows(self) -> tuple[int, ...]:
        """The window sizes of the fractions skill score in whole pixels."""
        return tuple(round(km / self.grid_km) for km in self.fss_km)

    def to_json(self) -> str:
        """Return the protocol as canonical JSON (sorted keys, no spaces)."""
        return _canonical(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ScoreProtocol":
        """Read a protocol written by :meth:`to_json`.

        Raises:
            ValueError: the text is not JSON with exactly the fields of a protocol.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"invalid JSON of a verification protocol: {error}") from error
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or not names - _ADDED <= set(values) <= names:
            keys = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"the JSON of a verification protocol must have the keys {sorted(names)}, got {keys}")
        try:
            for name in {"thresholds", "labels", "fss_km", "balance", "oddities", "scores"} & set(values):
                values[name] = tuple(values[name])
            return cls(**{**values, "pools": tuple(Pool(**pool) for pool in values["pools"])})
        except TypeError as error:
            raise ValueError(f"the JSON of a verification protocol has a field of the wrong type: {error}") from error


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
    **rules: Any,
) -> ScoreProtocol:
    """Return a protocol with exact comparison for the thresholds of a data set.

    Args:
        name: name of the protocol, such as ``radar-global``.
        thresholds_codes: ascending thresholds in uint8 encoded values of the data set, fractions allowed: 0.5 mm/h is
            47.6 in the ``rr`` encoding. A value within 1e-6 of an integer is rounded to it.
        labels: the same thresholds in score keys, in ``unit`` (``("0.5", "2", "5")``); by default the encoded values.
        unit: unit of the labels.
        aggregation: ``global``, ``lead-mean``, ``frame-mean`` or ``sample-mean``.
        missing: uint8 value of a missing pixel; None if every value is valid.
        scale: divisor from encoded values to [0, 1].
        source: origin of the thresholds.
        rules: further fields of :class:`ScoreProtocol`, such as ``pools``, ``fss_km`` with ``grid_km``, ``ssim``.

    Raises:
        ValueError: thresholds are not ascending, outside the encoded values, or in ``unit`` instead of encoded values.
    """
    codes = tuple(_snap(float(threshold)) for threshold in thresholds_codes)
    return ScoreProtocol(
        name=name,
        thresholds=codes,
        labels=tuple(f"{code:g}" for code in codes) if labels is None else tuple(labels),
        unit=unit,
        aggregation=aggregation,
        missing=missing,
        scale=scale,
        source=source,
        **rules,
    )


def _is_number(label: str, value: float) -> bool:
    try:
        return float(label) == value
    except ValueError:
        return False


def _snap(threshold: float) -> float:
    integer = float(round(threshold)) if abs(threshold) < 2**31 else threshold
    return integer if abs(threshold - integer) < _ON_A_CODE else threshold


def _canonical(values: dict[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _digest(protocol: ScoreProtocol, first: tuple[str, ...], later: tuple[str, ...], *, counts: bool = False) -> str:
    values = dataclasses.asdict(protocol)
    # An int and the equal float are the same threshold and must have the same hash.
    for field in ("scale", "epsilon", "epsilon_numerator", "grid_km"):
        values[field] = float(values[field])
    for field in ("thresholds", "fss_km", "balance"):
        values[field] = [float(value) for value in values[field]]
    changed = [field for field in later if getattr(protocol, field) != _DEFAULTS[field]]
    content = {field: values[field] for field in (*first, *changed)}
    if counts and protocol.sums:
        content["sums"] = protocol.sums
    return hashlib.sha256(_canonical(content).encode("ascii")).hexdigest()[:12]


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(ScoreProtocol)}
