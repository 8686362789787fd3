"""Protocols of a data set: by name, with thresholds converted to the encoding of its data."""

import dataclasses
import difflib
import math
from collections.abc import Sequence
from typing import Any, get_args

from simcast_hpc.config import ConfigError
from simcast_hpc.data.dataset_spec import DatasetSpec
from simcast_hpc.verification.optional_scores import requested_scores
from simcast_hpc.verification.protocols import Aggregation, MissingMembers, Pool, ScoreProtocol, protocol_for
from simcast_hpc.verification.published_protocols import PROTOCOLS, resolve_protocol

_OWN: dict[str, Aggregation] = {name: name for name in ("global", "lead-mean", "frame-mean", "sample-mean")}
_FSS_KM = (4.0, 16.0, 64.0)
# HKO-7 converts rain rate to reflectivity by Z = 58.53 R^1.56, not by the Marshall-Palmer relation.
_HKO_A, _HKO_B = 58.53, 1.56


def protocols_of(
    spec: DatasetSpec,
    names: Sequence[str],
    *,
    spacing_km: float | None = None,
    packed: bool = False,
    tables_only: bool = False,
    scores: Sequence[str] = (),
    missing_members: str = "mask",
    field: str = "evaluation.protocols",
) -> list[ScoreProtocol]:
    """Return protocols by name with thresholds in encoded values of the data set; the first also sums power spectra.

    ``global``, ``lead-mean``, ``frame-mean``, ``sample-mean`` and ``pysteps`` use the thresholds of the data set. The
    published SEVIR protocols require the encoding of SEVIR; ``hko7`` and ``meteonet-cascast`` require data in dBZ.

    Args:
        spec: the data set that defines the encoding of the windows.
        names: names of protocols.
        spacing_km: grid spacing of the windows; by default that of the data set.
        packed: whether any of the compared forecasts is stored as uint8: then all forecasts are rounded to integers,
            and the names of the protocols get the suffix ``-packed``.
        tables_only: whether to omit SSIM, FSS and spectra, which take most of the time on a CPU.
        scores: names of additional scores, see ``OPTIONAL_SCORES``.
        missing_members: how an ensemble is scored where members are missing.
        field: name of the configuration field, for messages; that of ``scores`` has the same prefix.

    Raises:
        ConfigError: unknown protocol or score, it does not fit the data set, or the thresholds have different units.
    """
    spacing = spec.grid.spacing_km if spacing_km is None else spacing_km
    protocols = [_by_name(spec, name, spacing, field) for name in names]
    # A score file has one set of thresholds: 10 dBZ and 10 mm/h would have the same label.
    if len({one.unit for one in protocols}) > 1:
        units = ", ".join(f"{name} in {one.unit}" for name, one in zip(names, protocols, strict=True))
        raise ConfigError(f"{field} have thresholds in different units ({units}); evaluate them separately")
    try:
        added = requested_scores(scores)
    except ValueError as error:
        raise ConfigError(f"{field.rstrip('s').replace('protocol', 'scores')}: {error}") from error
    if missing_members not in get_args(MissingMembers):
        raise ConfigError(f"missing_members={missing_members!r} is not one of {', '.join(get_args(MissingMembers))}")
    rules: dict[str, Any] = {"missing_members": missing_members}
    protocols = [dataclasses.replace(one, scores=added, **rules) for one in protocols]
    if packed:
        protocols = [dataclasses.replace(one, name=f"{one.name}-packed", rounding="nearest") for one in protocols]
    if tables_only:
        return [dataclasses.replace(one, ssim=False, fss_km=(), spectrum=False) for one in protocols]
    # One set of spectra is sufficient; protocols that share the counts of the first must continue to share them.
    first = protocols[0].counting_hash
    return [dataclasses.replace(one, spectrum=one.spectrum or one.counting_hash == first) for one in protocols]


def _by_name(spec: DatasetSpec, name: str, spacing: float, field: str) -> ScoreProtocol:
    if name in _OWN:
        return protocol_for(
            f"{spec.name}-{name}",
            spec.threshold_codes(),
            spec.threshold_labels(),
            unit=spec.thresholds.unit,
            aggregation=_OWN[name],
            source=f"thresholds of {spec.name}: {spec.source}",
            pools=(Pool(size=4), Pool(size=16)),
        )
    try:
        protocol = resolve_protocol(name)
    except KeyError as error:
        known = (*_OWN, *PROTOCOLS)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"{field}: unknown verification protocol {name!r}; {hint}choose from {', '.join(known)}"
        ) from error
    if name == "pysteps":
        protocol = _with_thresholds(protocol, spec, spec.threshold_codes(), spec.threshold_labels(), field)
        return dataclasses.replace(protocol, unit=spec.thresholds.unit, **_scales(spacing))
    if protocol.unit == "code" and spec.encoding.kind != "sevir_vil":
        raise ConfigError(
            f"{field}: {name} requires the VIL encoding of SEVIR, but {spec.name} is encoded in "
            f"{spec.encoding.unit}; choose from {', '.join(_OWN)}"
        )
    if protocol.unit != "code":
        protocol = _in_dbz(protocol, spec, field)
    return dataclasses.replace(protocol, **_scales(spacing)) if protocol.fss_km else protocol


def _in_dbz(protocol: ScoreProtocol, spec: DatasetSpec, field: str) -> ScoreProtocol:
    """Return ``hko7`` or ``meteonet-cascast`` with thresholds in encoded values of a data set in dBZ."""
    if spec.encoding.unit != "dBZ":
        raise ConfigError(
            f"{field}: {protocol.name} requires data in dBZ, but {spec.name} is encoded in "
            f"{spec.encoding.unit}; choose from {', '.join(_OWN)}"
        )
    values = [float(label) for label in protocol.labels]
    if protocol.unit == "mm/h":
        values = [10 * (math.log10(_HKO_A) + _HKO_B * math.log10(rain)) for rain in values]
    codes = tuple(float(spec.encoding.code_of(value)) for value in values)
    if protocol.comparison != "codes" and any(
        abs(code - value) > 1e-6 for code, value in zip(codes, values, strict=True)
    ):
        raise ConfigError(
            f"{field}: {protocol.name} divides dBZ by 70, but encoded values of {spec.name} are not dBZ; "
            f"use {protocol.name.removesuffix('-released')}"
        )
    return _with_thresholds(protocol, spec, codes, protocol.labels, field)


def _with_thresholds(
    protocol: ScoreProtocol, spec: DatasetSpec, codes: tuple[float, ...], labels: tuple[str, ...], field: str
) -> ScoreProtocol:
    try:
        scale = protocol.scale if protocol.comparison != "codes" else 255.0
        return dataclasses.replace(protocol, thresholds=codes, labels=labels, scale=scale)
    except ValueError as error:
        raise ConfigError(f"{field}: {protocol.name} does not fit {spec.name}: {error}") from error


def _scales(spacing: float) -> dict[str, object]:
    """Return the FSS windows in km for a grid: none below one pixel, and none with the same number of pixels."""
    by_pixels = {round(km / spacing): km for km in reversed(_FSS_KM) if km >= spacing}
    windows = [pixels for pixels in sorted(by_pixels) if pixels <= 128]
    return {"grid_km": spacing, "fss_km": tuple(by_pixels[pixels] for pixels in windows)}
