"""Charts of power spectra of observation, forecasts, ensemble members and ensemble means."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .colors import LineStyle, line_styles
from .lead_time_curves import FAINT, Chart, draw_line, name_axes, new_chart
from .pipeline_results import ScoreFile, Spectra

OBSERVED = "observed"
_OBSERVED_STYLE = LineStyle("#111111", "", "-")


def spectra_styles(scores: ScoreFile) -> dict[str, LineStyle]:
    """Return the line styles of the observation and every forecast; an ensemble has two, for members and mean."""
    styles = {OBSERVED: _OBSERVED_STYLE}
    for name, style in line_styles(scores.names).items():
        if (spectra := _spectra(scores, name)) is None:
            continue
        if spectra.members is None:
            styles[name] = style
        else:
            styles[f"{name}, members"] = style
            styles[f"{name}, mean"] = replace(style, dashes=":", marker="")
    return styles if len(styles) > 1 else {}


def spectra_charts(scores: ScoreFile) -> list[Chart]:
    """Return charts of power at the first and last lead time, and of power relative to the observation at the last."""
    styles = spectra_styles(scores)
    if not styles:
        return []
    leads = dict.fromkeys([0, scores.frames_out - 1])
    charts = [_chart(scores, lead, styles, relative=False) for lead in leads]
    return [*charts, _chart(scores, scores.frames_out - 1, styles, relative=True)]


def complete_frames(scores: ScoreFile) -> tuple[int, int] | None:
    """Return the numbers of complete and of all frames at the first lead time; None if there are no spectra."""
    spectra = next((one for name in scores.names if (one := _spectra(scores, name)) is not None), None)
    return None if spectra is None else (spectra.frames[0], scores.windows)


def _spectra(scores: ScoreFile, name: str) -> Spectra | None:
    return scores.diagrams[name].spectra if name in scores.diagrams else None


def _curves(scores: ScoreFile, lead: int) -> tuple[Sequence[float], dict[str, Sequence[float | None]]]:
    """Return the wavelengths in km, and power by the names of :func:`spectra_styles`."""
    curves: dict[str, Sequence[float | None]] = {}
    wavelengths: Sequence[float] = ()
    for name in scores.names:
        if (spectra := _spectra(scores, name)) is None:
            continue
        wavelengths = spectra.wavelength_km
        curves.setdefault(OBSERVED, spectra.observed[lead])
        if spectra.members is None:
            curves[name] = spectra.forecast[lead]
        else:
            curves[f"{name}, members"] = spectra.members[lead]
            curves[f"{name}, mean"] = spectra.forecast[lead]
    return wavelengths, curves


def _chart(scores: ScoreFile, lead: int, styles: Mapping[str, LineStyle], *, relative: bool) -> Chart:
    wavelengths, curves = _curves(scores, lead)
    ratios = {
        name: [_ratio(*pair) for pair in zip(values, curves[OBSERVED], strict=True)] for name, values in curves.items()
    }
    figure, axes = new_chart()
    for name, values in (ratios if relative else curves).items():
        positive = [value if value is not None and value > 0 else None for value in values]
        draw_line(axes, wavelengths, positive, styles[name], name=name, every=max(1, len(wavelengths) // 8))
    _log_axes(axes, wavelengths)
    minutes = f"+{scores.lead_minutes[lead]:g} min"
    title = f"{minutes}, relative power" if relative else f"{minutes}, power"
    name_axes(axes, "wavelength, km", "power / observed power" if relative else "power")
    if relative:
        axes.set_ylim(bottom=max(axes.get_ylim()[0], 1e-4))
        axes.axhline(1.0, color=FAINT, linewidth=0.8)
    ends = ", ".join(
        f"{name} {'undefined' if values[-1] is None else f'{values[-1]:.2g}'}"
        for name, values in ratios.items()
        if name != OBSERVED
    )
    description = f"Power relative to the observation at the shortest wavelength, {wavelengths[-1]:.3g} km: {ends}."
    return Chart(title, f"Power spectra at {minutes}. {description}", figure)


def _ratio(power: float | None, observed: float | None) -> float | None:
    return power / observed if power is not None and observed else None


def _log_axes(axes: Axes, wavelengths: Sequence[float]) -> None:
    axes.set(xscale="log", yscale="log", xlim=(wavelengths[0] * 1.05, wavelengths[-1] / 1.05))
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if _decades(wavelengths) < 2 else (1.0, 3.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _decades(wavelengths: Sequence[float]) -> float:
    return math.log10(wavelengths[0] / wavelengths[-1])
