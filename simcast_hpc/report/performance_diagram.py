"""Performance diagram (Roebber 2009): probability of detection against success ratio, with lines of CSI and bias."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

_BIASES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
_LINE, _LABEL = "#b9c2cc", "#5f6368"


def performance_axes(axes: Axes, *, right: float = 1.0, top: float = 1.0, label_size: float = 8.5) -> None:
    """Draw lines of equal CSI (solid) and of equal frequency bias (dashed), and set the limits of the axes.

    Args:
        axes: horizontal axis: success ratio 1 - FAR; vertical axis: POD.
        right: largest success ratio shown.
        top: largest POD shown.
        label_size: font size of the labels in points.
    """
    axes.grid(visible=False)
    # 1. CSI: 1 / CSI = 1 / (1 - FAR) + 1 / POD - 1
    ratio = np.linspace(0.005, right, 200)
    for csi in MaxNLocator(5).tick_values(0, 1 / (1 / right + 1 / top - 1)):
        if not 0 < csi < 1:
            continue
        with np.errstate(divide="ignore"):
            pod = 1 / (1 / csi + 1 - 1 / ratio)
        inside = (pod > 0) & (pod <= top)
        if inside.any():
            axes.plot(ratio[inside], pod[inside], color=_LINE, linewidth=0.8, zorder=1)
            axes.text(right, pod[inside][-1], f"{csi:.2g}", fontsize=label_size, color=_LABEL, ha="right", va="bottom")
    # 2. Frequency bias: POD / (1 - FAR)
    for bias in _BIASES:
        end = min(right, top / bias)
        axes.plot([0, end], [0, bias * end], color=_LINE, linewidth=0.8, linestyle="--", zorder=1)
        axes.text(
            0.88 * end, 0.88 * bias * end, f"×{bias:g}", fontsize=label_size, color=_LABEL, ha="center", va="center",
            backgroundcolor="white", zorder=1.5,
        )  # fmt: skip
    axes.set(xlim=(0, right), ylim=(0, top))


def performance_point(
    axes: Axes, far: float, pod: float, *, colour: str, marker: str, errors: tuple[float, float] = (0.0, 0.0)
) -> None:
    """Draw one forecast; ``errors`` are the half widths of the intervals of FAR and POD."""
    far_error, pod_error = errors
    axes.errorbar(
        1 - far, pod, xerr=far_error or None, yerr=pod_error or None, color=colour, marker=marker, markersize=7,
        capsize=2, elinewidth=1, linestyle="", clip_on=False,
    )  # fmt: skip
