"""Power by wavelength: what of the observed small scales a forecast, a member and a mean of members still hold."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .colours import LineStyle, line_styles
from .lead_time_curves import FAINT, Chart, draw_line, name_axes, new_chart
from .pipeline_results import ScoreFile, Spectra

OBSERVED = "observed"
_OBSERVED_STYLE = LineStyle("#111111", "", "-")


def spectra_styles(scores: ScoreFile) -> dict[str, LineStyle]:
    """Return the line of the observation and of every forecast; an ensemble has one of its members and of its mean."""
    found = {OBSERVED: _OBSERVED_STYLE}
    for name, style in line_styles(scores.names).items():
        if (held := _spectra(scores, name)) is None:
            continue
        if held.members is None:
            found[name] = style
        else:
            found[f"{name}, its members"] = style
            found[f"{name}, their mean"] = replace(style, dashes=":", marker="")
    return found if len(found) > 1 else {}


def spectra_charts(scores: ScoreFile) -> list[Chart]:
    """Return power against wavelength at the first and the last lead, and at the last relative to the observed."""
    styles = spectra_styles(scores)
    if not styles:
        return []
    leads = dict.fromkeys([0, scores.frames_out - 1])
    charts = [_chart(scores, lead, styles, relative=False) for lead in leads]
    return [*charts, _chart(scores, scores.frames_out - 1, styles, relative=True)]


def whole_frames(scores: ScoreFile) -> tuple[int, int] | None:
    """Return how many frames the spectra are of, and how many there were, at the first lead; None without spectra."""
    held = next((found for name in scores.names if (found := _spectra(scores, name)) is not None), None)
    return None if held is None else (held.frames[0], scores.windows)


def _spectra(scores: ScoreFile, name: str) -> Spectra | None:
    return scores.diagrams[name].spectra if name in scores.diagrams else None


def _curves(scores: ScoreFile, lead: int) -> tuple[Sequence[float], dict[str, Sequence[float | None]]]:
    """Return the wavelengths in km and power by name, as :func:`spectra_styles` names the curves."""
    curves: dict[str, Sequence[float | None]] = {}
    wavelengths: Sequence[float] = ()
    for name in scores.names:
        if (held := _spectra(scores, name)) is None:
            continue
        wavelengths = held.wavelength_km
        curves.setdefault(OBSERVED, held.observed[lead])
        if held.members is None:
            curves[name] = held.forecast[lead]
        else:
            curves[f"{name}, its members"] = held.members[lead]
            curves[f"{name}, their mean"] = held.forecast[lead]
    return wavelengths, curves


def _chart(scores: ScoreFile, lead: int, styles: Mapping[str, LineStyle], *, relative: bool) -> Chart:
    wavelengths, curves = _curves(scores, lead)
    shown = {
        name: [_over(*pair) for pair in zip(values, curves[OBSERVED], strict=True)] for name, values in curves.items()
    }
    figure, axes = new_chart()
    for name, values in (shown if relative else curves).items():
        drawn = [value if value is not None and value > 0 else None for value in values]
        draw_line(axes, wavelengths, drawn, styles[name], name=name, every=max(1, len(wavelengths) // 8))
    _log_axes(axes, wavelengths)
    minutes = f"+{scores.lead_minutes[lead]:g} min"
    title = f"{minutes}, relative to the observed" if relative else f"{minutes}, power"
    name_axes(axes, "wavelength, km", "power / observed power" if relative else "power")
    if relative:
        axes.set_ylim(bottom=max(axes.get_ylim()[0], 1e-4))
        axes.axhline(1.0, color=FAINT, linewidth=0.8)
    ends = ", ".join(
        f"{name} {'undefined' if values[-1] is None else f'{values[-1]:.2g}'}"
        for name, values in shown.items()
        if name != OBSERVED
    )
    said = f"At the shortest wavelength, {wavelengths[-1]:.3g} km, over the observed power: {ends}."
    return Chart(title, f"Power spectra at {minutes}. {said}", figure)


def _over(power: float | None, observed: float | None) -> float | None:
    return power / observed if power is not None and observed else None


def _log_axes(axes: Axes, wavelengths: Sequence[float]) -> None:
    axes.set(xscale="log", yscale="log", xlim=(wavelengths[0] * 1.05, wavelengths[-1] / 1.05))
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if _decades(wavelengths) < 2 else (1.0, 3.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _decades(wavelengths: Sequence[float]) -> float:
    return math.log10(wavelengths[0] / wavelengths[-1])
