"""What exactly is computed under a name: thresholds, comparison, aggregation and mask rule, as frozen, hashed data.

One phrase such as "CSI-M on SEVIR" stands for several calculations whose answers differ by more than most claimed
gains. A protocol names one of them, and its hash stands beside every number made with it.
"""

import dataclasses
import hashlib
import json
from typing import Any, Literal, get_args

Comparison = Literal["codes", "released", "released-truncated"]
Aggregation = Literal["global", "lead-mean", "frame-mean", "sample-mean"]
MissingRule = Literal["excluded", "non-event"]
MemberReduction = Literal["mean", "each"]
Rounding = Literal["none", "nearest", "truncate"]
Undefined = Literal["nan", "zero"]
Oddity = Literal["bias_ln2", "crps_gaussian", "ssim_batch_range"]

# Every field of the first version stands in the hash; later ones only where they leave their default, so that a
# protocol that does not use them keeps the hash under which its numbers were published. What only adds scores under
# keys of their own (panel) moves no number, so it is part of what is counted but not of the hash.
_FIRST_COUNTING = ("thresholds", "labels", "unit", "scale", "comparison", "missing", "missing_rule")
_FIRST_SCORING = (*_FIRST_COUNTING, "aggregation", "epsilon")
_RULES = ("strict", "partial_blocks", "members", "clip", "rounding", "grid_km", "balance")
_LATER_SCORING = (*_RULES, "pool_aggregation", "epsilon_numerator", "undefined")
_PANEL = ("pools", "fss_km", "ssim", "spectrum", "oddities")
_CHOICES: dict[str, tuple[str, ...]] = {
    "comparison": get_args(Comparison),
    "aggregation": get_args(Aggregation),
    "missing_rule": get_args(MissingRule),
    "members": get_args(MemberReduction),
    "rounding": get_args(Rounding),
    "undefined": get_args(Undefined),
}
# In these units a threshold may equal its code; in others (mm/h, kg/m^2) that is a forgotten conversion.
_CODE_LIKE_UNITS = ("code", "dBZ")
# A threshold computed from a logarithm lands beside its code by a few units in the last place; it means the code.
_ON_A_CODE = 1e-6
# (window area)^2 times the 2.15e10 pixels of the SEVIR test split stays below 2**63.
_WIDEST_FSS = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
    """Blocks over which both fields are reduced before the threshold is applied.

    Attributes:
        size: side of a block in pixels.
        kind: ``max`` or ``avg``. An average is taken over codes, as the evaluators do that publish it.
        overlapping: whether a block stands around every pixel, clipped at the edge (neighbourhood verification), in
            place of blocks side by side.
    """

    size: int
    kind: Literal["max", "avg"] = "max"
    overlapping: bool = False

    def __post_init__(self) -> None:
        if self.size < 2:
            raise ValueError(f"a pool of size {self.size} pools nothing; give 2 pixels or more")
        if self.kind not in ("max", "avg"):
            raise ValueError(f"pool kind {self.kind!r} is not one of ('max', 'avg')")
        if self.overlapping and self.kind == "avg":
            raise ValueError(f"pool {self}: overlapping blocks are for maxima; an average of them is a smoothed field")

    @property
    def key(self) -> str:
        """Return how score keys name the pool: ``pool4``, ``pool4_avg``, ``neighbourhood9``."""
        return f"neighbourhood{self.size}" if self.overlapping else f"pool{self.size}" + ("_avg" * (self.kind == "avg"))


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
            below 219. ``released-truncated`` goes back by fp32 ``x * scale`` and drops the fraction.
        strict: whether an event is above its threshold (``>``) in place of at or above it (``>=``).
        aggregation: ``global`` pools the counts of all windows and leads; ``lead-mean`` pools over windows, scores
            each lead and averages; ``frame-mean`` scores each frame and ``sample-mean`` each window, both averaging
            over those for which the score is defined.
        pool_aggregation: the same for the pooled tables, where it differs.
        pools: blocks over which tables are counted besides the pixels.
        partial_blocks: whether blocks that the edge cuts short count; otherwise the remainder of a frame is dropped.
        members: ``mean`` scores the mean of an ensemble's members, ``each`` scores every member as a forecast.
        clip: whether forecasts are clipped to [0, 1] first.
        rounding: whether forecasts are brought to whole codes first: ``nearest``, ``truncate`` or, as they are,
            ``none``. A forecast that was packed into bytes has been rounded; its protocol says so.
        undefined: what a table score without a denominator is, ``nan`` or ``zero``.
        epsilon_numerator: added to the numerator of CSI, POD and frequency bias.
        fss_km: window sides of the fractions skill score in km.
        grid_km: spacing of the pixels in km.
        ssim: whether SSIM is computed (Gaussian window of 11 pixels, data range 1 of the [0, 1] field).
        spectrum: whether radial power spectra are summed.
        balance: weights of the levels 0, 1, ... of the observed rain in balanced errors; empty for none.
        oddities: quantities of released evaluators that are not what their name says.
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
        self._check_fields()

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

    def _check_fields(self) -> None:
        if not self.grid_km > 0 or any(not km >= self.grid_km for km in self.fss_km):
            raise ValueError(
                f"protocol {self.name!r}: fss_km={self.fss_km} are sides of windows of pixels of {self.grid_km:g} km; "
                "none may be smaller than a pixel"
            )
        if any(window > _WIDEST_FSS for window in self.fss_windows):
            raise ValueError(
                f"protocol {self.name!r}: fss_km={self.fss_km} reach {max(self.fss_windows)} pixels; beyond "
                f"{_WIDEST_FSS} the integer sums of a large test set overflow"
            )
        if len(set(self.fss_windows)) != len(self.fss_windows) or len({p.key for p in self.pools}) != len(self.pools):
            raise ValueError(f"protocol {self.name!r}: fss_km={self.fss_km} or pools={self.pools} repeat a window")
        if self.partial_blocks and any(pool.kind == "avg" for pool in self.pools):
            raise ValueError(
                f"protocol {self.name!r}: partial blocks are for max pools; drop {self.pools} that average"
            )
        if self.balance and len(self.balance) != len(self.thresholds) + 1:
            raise ValueError(
                f"protocol {self.name!r}: balance={self.balance} wants {len(self.thresholds) + 1} weights, below the "
                "first threshold and at each"
            )
        unknown = set(self.oddities) - set(get_args(Oddity))
        if unknown:
            raise ValueError(f"protocol {self.name!r}: oddities {sorted(unknown)} are not of {get_args(Oddity)}")

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
        """Twelve hex digits over everything that moves a score: not over name, source and which scores are added."""
        return _digest(self, _FIRST_SCORING, _LATER_SCORING)

    @property
    def counting_hash(self) -> str:
        """Twelve hex digits over what moves the counts: protocols that share it can share sufficient statistics."""
        if self.scores_frames:
            return _digest(self, _FIRST_SCORING, (*_LATER_SCORING, *_PANEL))
        return _digest(self, _FIRST_COUNTING, (*_RULES, *_PANEL))

    @property
    def scores_frames(self) -> bool:
        """Whether scores are made frame by frame or window by window, so that they are part of the counts."""
        return self.aggregation in ("frame-mean", "sample-mean")

    @property
    def fss_windows(self) -> tuple[int, ...]:
        """The windows of the fractions skill score in whole pixels."""
        return tuple(round(km / self.grid_km) for km in self.fss_km)

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
        for name in ("thresholds", "labels", "fss_km", "balance", "oddities"):
            values[name] = tuple(values[name])
        return cls(**{**values, "pools": tuple(Pool(**pool) for pool in values["pools"])})


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
        rules: further fields of :class:`ScoreProtocol`, such as ``pools``, ``fss_km`` with ``grid_km``, ``ssim``.

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
        **rules,
    )


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


def _digest(protocol: ScoreProtocol, first: tuple[str, ...], later: tuple[str, ...]) -> str:
    values = dataclasses.asdict(protocol)
    # An int and its float are one threshold and must hash as one.
    for field in ("scale", "epsilon", "epsilon_numerator", "grid_km"):
        values[field] = float(values[field])
    for field in ("thresholds", "fss_km", "balance"):
        values[field] = [float(value) for value in values[field]]
    changed = [field for field in later if getattr(protocol, field) != _DEFAULTS[field]]
    text = _canonical({field: values[field] for field in (*first, *changed)})
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:12]


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(ScoreProtocol)}
