"""Compute the products of a forecast: accumulations, percentiles, matched means and probabilities.

Fields are computed by blocks of rows, so that the memory in addition to the members and the results is bounded. The
probability-matched mean needs all members of one time at once.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from simcast_hpc.forecast.forecast_fields import Forecast

from .accumulation import NO_ECHO_TOLERANCE, AccumulationGroup, accumulation_groups, amounts, time_axis
from .product_fields import RATE_NAMES, ProductField
from .product_settings import ProductSettings

logger = logging.getLogger(__name__)
_BLOCK_BYTES = 32 << 20  # of the members in a block of rows; intermediate results take several times as much


def derive_fields(forecast: Forecast, settings: ProductSettings) -> tuple[ProductField, ...]:
    """Return the products of a forecast.

    A fallback has the products that its frames and its one member allow, and a forecast before which frames are missing
    has the accumulations that the others cover, see :func:`omitted_products`.

    Raises:
        ConfigError: a product cannot be computed from forecasts of this model.
        DataError: there is no conversion to rain rates.
    """
    if not forecast.fallback:
        axis = time_axis(forecast)
        if forecast.lacks_frames and forecast.inputs is not None:  # what lacks is omitted, what is impossible an error
            axis = replace(axis, observed=forecast.inputs.wanted)
        settings.check(forecast.unit, forecast.z_r, axis, is_ensemble=forecast.is_ensemble)
    fields = _at_lead_times(forecast, settings)
    if groups := groups_of(forecast, settings):
        fields += _accumulations(forecast, settings, groups)
    if settings.neighborhood_km:
        fields += _neighborhood_probabilities(forecast, settings, fields)
    return tuple(fields)


def groups_of(forecast: Forecast, settings: ProductSettings) -> list[AccumulationGroup]:
    """Return the groups of windows; of a fallback, or if frames are missing, those that the frames cover."""
    axis = time_axis(forecast)
    if not (forecast.fallback or forecast.lacks_frames):
        return accumulation_groups(settings.accumulate, settings.windows, axis)
    lengths = [minutes for minutes in settings.accumulate if minutes <= axis.end - axis.start]
    return accumulation_groups(lengths, [window for window in settings.windows if axis.contains(window)], axis)


def omitted_products(forecast: Forecast, settings: ProductSettings) -> str:
    """Return the options whose products a forecast does not have, separated by commas; empty if it has all.

    A fallback lacks those of an ensemble, and both it and a forecast without enough observed frames accumulations.
    """
    if not (forecast.fallback or forecast.lacks_frames):
        return ""
    axis = time_axis(forecast)
    options = [f"--accumulate {one:g}" for one in settings.accumulate if one > axis.end - axis.start]
    options += [f"--window {one[0]:g}:{one[1]:g}" for one in settings.windows if not axis.contains(one)]
    if forecast.fallback and not forecast.is_ensemble:
        given = {
            "--percentile": settings.percentiles,
            "--matched-mean": settings.matched_mean,
            "--threshold": settings.thresholds and not settings.neighborhood_km,
            "--accumulation-threshold": settings.accumulation_thresholds and not settings.neighborhood_km,
        }
        options += [option for option, chosen in given.items() if chosen]
    return ", ".join(options)


def _at_lead_times(forecast: Forecast, settings: ProductSettings) -> list[ProductField]:
    """Return percentiles and the probability-matched mean at the lead times."""
    members, name, unit = forecast.values, RATE_NAMES[forecast.unit], forecast.unit
    if not forecast.is_ensemble or members is None:
        return []
    fields = []
    if settings.percentiles:
        levels = tuple(sorted(settings.percentiles))
        values = np.empty((len(levels), *members.shape[1:]), np.float32)
        for rows in _row_blocks(members):
            values[:, :, rows] = np.percentile(members[:, :, rows], levels, axis=0)
        fields.append(ProductField(f"{name}_percentile", unit, unit, "percentile", values, levels))
    if settings.matched_mean:
        assert forecast.mean is not None
        frames = [matched_mean(members[:, k], forecast.mean[k]) for k in range(members.shape[1])]
        fields.append(ProductField(f"{name}_matched_mean", unit, unit, "matched_mean", np.stack(frames)))
    return fields


def _accumulations(
    forecast: Forecast, settings: ProductSettings, groups: Sequence[AccumulationGroup]
) -> list[ProductField]:
    members = forecast.values
    assert members is not None
    shape, percentiles = members.shape[2:], tuple(sorted(settings.percentiles))
    levels = tuple(sorted(settings.accumulation_thresholds))
    # 1. Empty fields by group
    made = [
        {
            "mean": np.empty((len(group.windows), *shape), np.float32),
            "percentile": np.empty((len(percentiles), len(group.windows), *shape), np.float32),
            "probability": np.empty((len(levels), len(group.windows), *shape), np.float32),
        }
        for group in groups
    ]
    # 2. Blocks of rows
    for rows in _row_blocks(members):
        for fields, sums in zip(made, amounts(forecast, groups, rows), strict=True):
            fields["mean"][:, rows] = sums.mean(axis=0)
            fields["probability"][:, :, rows] = exceedance(sums, levels)
            if forecast.is_ensemble and percentiles:
                fields["percentile"][:, :, rows] = np.percentile(sums, percentiles, axis=0)
    # 3. Fields with names and windows
    products = []
    for group, fields in zip(groups, made, strict=True):
        name = f"rainfall_amount_{group.name}"
        about = {"group": group.name, "windows": group.windows}
        if not forecast.is_ensemble:
            products.append(ProductField(name, "mm", "mm", "forecast", fields["mean"], **about))
        else:
            products.append(ProductField(f"{name}_mean", "mm", "mm", "mean", fields["mean"], **about))
            if percentiles:
                values = fields["percentile"]
                products.append(
                    ProductField(f"{name}_percentile", "mm", "mm", "percentile", values, percentiles, **about)
                )
        # Of one forecast 0 or 1, from which neighborhood probabilities are computed.
        if levels and (forecast.is_ensemble or settings.neighborhood_km):
            products.append(
                ProductField(f"probability_of_{name}", "1", "mm", "probability", fields["probability"], levels, **about)
            )
        if settings.matched_mean and forecast.is_ensemble:
            values = _matched_amounts(forecast, group, fields["mean"])
            products.append(ProductField(f"{name}_matched_mean", "mm", "mm", "matched_mean", values, **about))
    return products


def _matched_amounts(forecast: Forecast, group: AccumulationGroup, mean: np.ndarray) -> np.ndarray:
    members = forecast.values
    assert members is not None
    values = np.empty_like(mean)
    for number, window in enumerate(group.windows):
        one = AccumulationGroup(group.name, (window,))
        sums = np.empty((len(members), *mean.shape[1:]), np.float32)
        for rows in _row_blocks(members):
            sums[:, rows] = amounts(forecast, [one], rows)[0][:, 0]
        values[number] = matched_mean(sums, mean[number])
    return values


def _neighborhood_probabilities(
    forecast: Forecast, settings: ProductSettings, fields: list[ProductField]
) -> list[ProductField]:
    """Return the means of probabilities over square neighborhoods.

    Those of one forecast, 0 and 1, are removed from ``fields``.
    """
    radius = round(settings.neighborhood_km / forecast.grid.spacing_km)
    sources = [field for field in fields if field.statistic == "probability"]
    levels, probability = forecast.thresholds, forecast.probability
    if probability is None:
        assert forecast.values is not None
        probability = exceedance(forecast.values, [max(level, lowest_echo(forecast)) for level in levels])
    name = "probability_of_exceedance"
    sources.insert(0, ProductField(name, "1", forecast.unit, "probability", probability, levels))
    if not forecast.is_ensemble:
        fields[:] = [field for field in fields if field.statistic != "probability"]
    return [
        ProductField(
            f"neighborhood_{field.name}", "1", field.quantity_unit, "neighborhood_probability",
            box_mean(field.values, radius), field.levels, field.group, field.windows,
        )
        for field in sources
    ]  # fmt: skip


def lowest_echo(forecast: Forecast) -> float:
    """Return the value in the unit of a forecast below which there is no echo, which reaches no threshold.

    In dBZ no echo is a value, which a threshold can be below.
    """
    return forecast.no_echo_dbz + NO_ECHO_TOLERANCE if forecast.unit == "dBZ" else 0.0


def exceedance(members: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Return the share of members at or above each level, float32 ``[K, T, H, W]``, NaN where a member is missing.

    Args:
        members: float32 ``[M, T, H, W]``.
        levels: in the unit of the members.
    """
    shares = np.empty((len(levels), *members.shape[1:]), np.float32)
    if not levels:
        return shares
    missing = np.isnan(members).any(axis=0)
    for number, level in enumerate(levels):
        reached = (members >= np.float32(level)).sum(axis=0)
        shares[number] = np.where(missing, np.nan, reached / len(members))
    return shares


def matched_mean(members: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the probability-matched mean of one time (Ebert 2001, section 2b), float32 ``[H, W]``.

    The values of all members are sorted and the middle one of every M values is kept; the pixel with the k-th largest
    ensemble mean gets the k-th largest of them.

    Args:
        members: float32 ``[M, H, W]``; pixels that are missing in a member are not used.
        mean: ensemble mean ``[H, W]``.
    """
    count = len(members)
    valid = np.isfinite(mean) & np.isfinite(members).all(axis=0)
    pool = members[:, valid].ravel()
    pool.sort()
    matched = np.full(mean.shape, np.nan, np.float32)
    ranked = np.empty(int(valid.sum()), np.float32)
    ranked[np.argsort(mean[valid], kind="stable")] = pool[count // 2 :: count]
    matched[valid] = ranked
    return matched


def box_mean(fields: np.ndarray, radius: int) -> np.ndarray:
    """Return means over squares of ``2 radius + 1`` pixels, float32 ``[..., H, W]``, NaN where the pixel is missing.

    Pixels that are missing or outside the domain are not counted.
    """
    means = np.empty(fields.shape, np.float32)
    for index in np.ndindex(fields.shape[:-2]):
        valid = np.isfinite(fields[index])
        total = _box_sum(np.where(valid, fields[index], 0.0), radius)
        with np.errstate(invalid="ignore"):
            means[index] = np.where(valid, total / _box_sum(valid.astype(np.float64), radius), np.nan)
    return np.clip(means, 0.0, 1.0, out=means)  # differences of large sums


def _box_sum(field: np.ndarray, radius: int) -> np.ndarray:
    height, width = field.shape
    sums = np.zeros((height + 1, width + 1))
    np.cumsum(np.cumsum(field, axis=0, dtype=np.float64), axis=1, out=sums[1:, 1:])
    low, high = (np.clip(np.arange(height) + offset, 0, height) for offset in (-radius, radius + 1))
    left, right = (np.clip(np.arange(width) + offset, 0, width) for offset in (-radius, radius + 1))
    return sums[high][:, right] - sums[low][:, right] - sums[high][:, left] + sums[low][:, left]


def _row_blocks(members: np.ndarray) -> Iterator[slice]:
    """Yield blocks of rows of members ``[M, T', H, W]``."""
    count, times, height, width = members.shape
    rows = max(1, _BLOCK_BYTES // (4 * count * times * width))
    for begin in range(0, height, rows):
        yield slice(begin, min(begin + rows, height))
