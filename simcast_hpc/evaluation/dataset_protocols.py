"""Which protocols a data set is scored under: those by name, placed on the code of its data."""

import dataclasses
import math
from collections.abc import Sequence

from simcast_hpc.config import ConfigError
from simcast_hpc.data.dataset_spec import DatasetSpec
from simcast_hpc.verification.protocols import Aggregation, Pool, ScoreProtocol, protocol_for
from simcast_hpc.verification.published_protocols import resolve_protocol

_OWN: dict[str, Aggregation] = {name: name for name in ("global", "lead-mean", "frame-mean", "sample-mean")}
_FSS_KM = (4.0, 16.0, 64.0)
# Marshall and Palmer's relation is not HKO's: HKO-7 turns rain into dBZ by Z = 58.53 R^1.56.
_HKO_A, _HKO_B = 58.53, 1.56


def protocols_of(
    spec: DatasetSpec,
    names: Sequence[str],
    *,
    spacing_km: float | None = None,
    packed: bool = False,
    tables_only: bool = False,
) -> list[ScoreProtocol]:
    """Return protocols by name, with thresholds on the data set's code axis; those that count as the first sum spectra.

    ``global``, ``lead-mean``, ``frame-mean``, ``sample-mean`` and ``pysteps`` take the data set's own thresholds. The
    published SEVIR protocols need SEVIR's code, ``hko7`` and ``meteonet-cascast`` data in dBZ.

    Args:
        spec: the data set whose code the windows carry.
        names: protocols.
        spacing_km: spacing of the windows' pixels; by default the data set's own.
        packed: whether a forecast among those compared is packed into bytes: then all are rounded to whole codes, and
            the protocols' names say so.
        tables_only: whether SSIM, FSS and spectra are left out, which take most of the time on a CPU.

    Raises:
        ConfigError: no such protocol, or it does not fit the data set.
    """
    spacing = spec.grid.spacing_km if spacing_km is None else spacing_km
    found = [_by_name(spec, name, spacing) for name in names]
    if packed:
        found = [dataclasses.replace(one, name=f"{one.name}-packed", rounding="nearest") for one in found]
    if tables_only:
        return [dataclasses.replace(one, ssim=False, fss_km=(), spectrum=False) for one in found]
    # Once is enough for a figure; those that share the first's counts must go on sharing them.
    return [
        dataclasses.replace(one, spectrum=one.spectrum or one.counting_hash == found[0].counting_hash) for one in found
    ]


def _by_name(spec: DatasetSpec, name: str, spacing: float) -> ScoreProtocol:
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
        raise ConfigError(f"evaluation.protocols: {error.args[0]}; or {', '.join(_OWN)}") from error
    if name == "pysteps":
        protocol = _with_thresholds(protocol, spec, spec.threshold_codes(), spec.threshold_labels())
        return dataclasses.replace(protocol, unit=spec.thresholds.unit, **_scales(spacing))
    if protocol.unit == "code" and spec.encoding.kind != "sevir_vil":
        raise ConfigError(
            f"evaluation.protocols: {name} compares SEVIR's VIL codes, but {spec.name} is coded in "
            f"{spec.encoding.unit}; its own thresholds are global and lead-mean"
        )
    if protocol.unit != "code":
        protocol = _in_dbz(protocol, spec)
    return dataclasses.replace(protocol, **_scales(spacing)) if protocol.fss_km else protocol


def _in_dbz(protocol: ScoreProtocol, spec: DatasetSpec) -> ScoreProtocol:
    """Return ``hko7`` or ``meteonet-cascast`` with its thresholds on the code of a data set in dBZ."""
    if spec.encoding.unit != "dBZ":
        raise ConfigError(
            f"evaluation.protocols: {protocol.name} has thresholds in dBZ, but {spec.name} is coded in "
            f"{spec.encoding.unit}; its own thresholds are global and lead-mean"
        )
    values = [float(label) for label in protocol.labels]
    if protocol.unit == "mm/h":
        values = [10 * (math.log10(_HKO_A) + _HKO_B * math.log10(rain)) for rain in values]
    codes = tuple(float(spec.encoding.code_of(value)) for value in values)
    if protocol.comparison != "codes" and any(
        abs(code - value) > 1e-6 for code, value in zip(codes, values, strict=True)
    ):
        raise ConfigError(
            f"evaluation.protocols: {protocol.name} divides dBZ by 70, but the code of {spec.name} is not dBZ; "
            f"take {protocol.name.removesuffix('-released')}"
        )
    return _with_thresholds(protocol, spec, codes, protocol.labels)


def _with_thresholds(
    protocol: ScoreProtocol, spec: DatasetSpec, codes: tuple[float, ...], labels: tuple[str, ...]
) -> ScoreProtocol:
    try:
        scale = protocol.scale if protocol.comparison != "codes" else 255.0
        return dataclasses.replace(protocol, thresholds=codes, labels=labels, scale=scale)
    except ValueError as error:
        raise ConfigError(f"evaluation.protocols: {protocol.name} does not fit {spec.name}: {error}") from error


def _scales(spacing: float) -> dict[str, object]:
    """Return the windows of the FSS that a grid can tell apart: none under a pixel, none twice."""
    by_pixels = {round(km / spacing): km for km in reversed(_FSS_KM) if km >= spacing}
    windows = [pixels for pixels in sorted(by_pixels) if pixels <= 128]
    return {"grid_km": spacing, "fss_km": tuple(by_pixels[pixels] for pixels in windows)}
