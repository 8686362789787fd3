"""The figures of ``docs/performance.md``: ours beside the public code, and where a step's time goes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Rows = Sequence[Mapping[str, str]]
PUBLIC, OURS = "#9aa5b1", "#1f6fb2"


def draw(machines: Mapping[str, Mapping[str, Rows]], folder: Path) -> list[str]:
    """Draw what there is of every machine into ``folder`` and return the names of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for machine, tables in machines.items():
        for name, figure in (("peers", _peers), ("end_to_end", _kinds)):
            if name in tables and figure(tables[name], folder / f"{machine}-{name}.png"):
                drawn.append(f"{machine}-{name}.png")
    return sorted(drawn)


def shares(rows: Rows) -> dict[str, tuple[float, float]]:
    """Return ours over public, processor seconds and peak memory, by case, precision and shape."""
    whole = [row for row in rows if row["part"] in ("step", "ensemble")]
    named = {(f"{row['case']} {row['precision']}, {row['shape']}", row["provider"]): row for row in whole}
    return {
        name: (
            float(row["cpu_p50_s"]) / float(named[name, "public"]["cpu_p50_s"]),
            float(row["peak_gb"]) / float(named[name, "public"]["peak_gb"]),
        )
        for (name, provider), row in named.items()
        if provider == "ours"
    }


def _peers(rows: Rows, path: Path) -> bool:
    found = shares(rows)
    if not found:
        return False
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.5 * len(found) + 1.2), sharey=True, layout="constrained")
    for place, (axis, title) in enumerate(zip(axes, ("processor seconds", "peak memory"), strict=True)):
        axis.barh(list(found), [pair[place] for pair in found.values()], color=OURS)
        axis.axvline(1, color=PUBLIC, linewidth=2)
        axis.set_title(f"{title}, ours over public")
        axis.set_xlim(left=0)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return True


def _kinds(rows: Rows, path: Path) -> bool:
    measured = [row for row in rows if row["kinds"]]
    if not measured:
        return False
    figure, axis = plt.subplots(figsize=(9, 0.4 * len(measured) + 1.6), layout="constrained")
    names = [f"{row['case']} {row['precision']}, input {row['input']}" for row in measured]
    left = [0.0] * len(measured)
    kinds = [dict(kind.split(":") for kind in row["kinds"].split()) for row in measured]
    for kind in kinds[0]:
        widths = [100 * float(found[kind]) for found in kinds]
        axis.barh(names, widths, left=left, label=kind)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.set_xlabel("% of the step's time")
    axis.invert_yaxis()
    axis.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return True
