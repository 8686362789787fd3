"""Performance diagram (Roebber 2009): probability of detection against success ratio, with lines of CSI and bias."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

_BIASES = (0.125, 0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0)
_LINE, _LABEL = "#b9c2cc", "#5f6368"


def performance_axes(
    axes: Axes, *, left: float = 0.0, bottom: float = 0.0, right: float = 1.0, top: float = 1.0, label_size: float = 8.5
) -> None:
    """Draw lines of equal CSI (solid) and of equal frequency bias (dashed), and set the limits of the axes.

    Args:
        axes: horizontal axis: success ratio 1 - FAR; vertical axis: POD.
        left: smallest success ratio shown.
        bottom: smallest POD shown.
        right: largest success ratio shown.
        top: largest POD shown.
        label_size: font size of the labels in points.
    """
    axes.grid(visible=False)
    # 1. CSI: 1 / CSI = 1 / (1 - FAR) + 1 / POD - 1
    ratio = np.linspace(max(left, 0.005), right, 200)
    lowest = 0.0 if min(left, bottom) <= 0 else 1 / (1 / left + 1 / bottom - 1)
    for csi in MaxNLocator(5).tick_values(lowest, 1 / (1 / right + 1 / top - 1)):
        if not 0 < csi < 1:
            continue
        with np.errstate(divide="ignore"):
            pod = 1 / (1 / csi + 1 - 1 / ratio)
        inside = (pod >= max(bottom, 1e-9)) & (pod <= top)
        if inside.any():
            axes.plot(ratio[inside], pod[inside], color=_LINE, linewidth=0.8, zorder=1)
        if np.count_nonzero(inside) > len(ratio) // 8:
            at = (ratio[inside][-1], pod[inside][-1])
            axes.text(*at, f"{csi:.2g}", fontsize=label_size, color=_LABEL, ha="right", va="bottom")
    # 2. Frequency bias: POD / (1 - FAR)
    for bias in _BIASES:
        start, end = max(left, bottom / bias), min(right, top / bias)
        if start >= end:
            continue
        axes.plot([start, end], [bias * start, bias * end], color=_LINE, linewidth=0.8, linestyle="--", zorder=1)
        # Lines that leave at the right are labeled farther inside, where the labels of CSI are not.
        place = start + (0.88 if bias * end >= top * 0.999 else 0.75) * (end - start)
        axes.text(
            place, bias * place, f"×{bias:g}", fontsize=label_size, color=_LABEL, ha="center", va="center",
            backgroundcolor="white", zorder=1.5,
        )  # fmt: skip
    axes.set(xlim=(left, right), ylim=(bottom, top))


def zoomed_limits(values: Sequence[float], *, margin: float = 0.3, narrowest: float = 0.15) -> tuple[float, float]:
    """Return limits in [0, 1] around values in [0, 1].

    Args:
        values: the values; (0, 1) is returned if there are none.
        margin: space on either side as a fraction of the range of the values.
        narrowest: smallest range shown.
    """
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    half = max((high - low) * (0.5 + margin), narrowest / 2)
    middle = min(max((low + high) / 2, half), 1 - half) if half < 0.5 else 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def performance_point(
    axes: Axes, far: float, pod: float, *, color: str, marker: str, errors: tuple[float, float] = (0.0, 0.0)
) -> None:
    """Draw one forecast; ``errors`` are the half widths of the intervals of FAR and POD."""
    far_error, pod_error = errors
    axes.errorbar(
        1 - far, pod, xerr=far_error or None, yerr=pod_error or None, color=color, marker=marker, markersize=7,
        capsize=2, elinewidth=1, linestyle="", clip_on=False,
    )  # fmt: skip
