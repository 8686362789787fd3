"""Simulate the sum of gradients over ranks in bf16 and in fp32: the relative error of a ring and of a binary tree.

    python -m benchmarks.ring_summation [--ranks 8 64 512 4096] [--elements 4096] [--csv FILE] [--figure FILE]

In a ring (NCCL's reduce-scatter) a partial sum passes every rank and is rounded to the data type of the communication
after every addition; in a binary tree it is rounded log2(ranks) times. Each rank's gradient is a signal, equal on all
ranks, plus noise with standard deviation 1 that differs between ranks: more ranks mean smaller shares of the global
batch, and the signal is what training follows. The reference is the sum in float64 of the gradients as the ranks have
them, rounded to bf16 before they are sent. Errors are norms over the elements, relative to the norm of the exact sum.
No network is involved, and the additions of a real ring are in the same precision but in blocks of other sizes.
"""

import argparse
import csv
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.measurements import ROOT
from simcast_hpc.storage.atomic_files import write_text

SIGNALS = {"noise only": 0.0, "signal 0.1": 0.1, "signal 1": 1.0}
METHODS = ("ring bf16", "tree bf16", "ring fp32")
COLUMNS = ("signal", "ranks", "method", "error")
_SEED = 20261130


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate all cases, print them as a table, write CSV and figure, and return 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--elements", type=int, default=4096, help="elements of the gradient")
    parser.add_argument("--csv", type=Path, default=ROOT / "benchmarks" / "results" / "cpu" / "ring_summation.csv")
    parser.add_argument("--figure", type=Path, help="PNG of the errors (default: none)")
    options = parser.parse_args(arguments)
    if min(options.ranks) < 2 or options.elements < 1:
        parser.error(f"--ranks {min(options.ranks)} --elements {options.elements}: at least 2 ranks and 1 element")
    rows = list(simulate(options.ranks, elements=options.elements))
    print(f"{'signal':<12} {'ranks':>6} " + " ".join(f"{name:>10}" for name in METHODS))
    for signal in SIGNALS:
        for ranks in options.ranks:
            found = {row["method"]: row["error"] for row in rows if (row["signal"], row["ranks"]) == (signal, ranks)}
            print(f"{signal:<12} {ranks:>6} " + " ".join(f"{found[name]:>10.2g}" for name in METHODS))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "error": f"{row['error']:.3g}"} for row in rows)
    options.csv.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.csv, buffer.getvalue())
    if options.figure is not None:
        draw(rows, options.figure)
    return 0


def simulate(ranks: Sequence[int], *, elements: int) -> Iterator[dict]:
    """Yield the relative error of each signal, number of ranks and method of summation."""
    for signal, mean in SIGNALS.items():
        for count in ranks:
            gradients = _gradients(count, elements, mean)
            exact = gradients.double().sum(dim=0)
            sums = {
                "ring bf16": ring(gradients, torch.bfloat16),
                "tree bf16": tree(gradients, torch.bfloat16),
                "ring fp32": ring(gradients, torch.float32),
            }
            for method, total in sums.items():
                error = (total.double() - exact).norm() / exact.norm()
                yield {"signal": signal, "ranks": count, "method": method, "error": float(error)}


def ring(gradients: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the sum of ``[ranks, elements]`` over the ranks, rounded to ``dtype`` after every addition."""
    total = gradients[0].to(dtype)
    for one in gradients[1:]:
        total = total + one.to(dtype)
    return total


def tree(gradients: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the sum of ``[ranks, elements]`` over the ranks in pairs, rounded to ``dtype`` after every addition."""
    level = gradients.to(dtype)
    while len(level) > 1:
        paired = level[0 : len(level) // 2 * 2]
        rest = level[len(paired) :]
        level = torch.cat([paired[0::2] + paired[1::2], rest])
    return level[0]


def _gradients(ranks: int, elements: int, mean: float) -> torch.Tensor:
    """Return bf16 ``[ranks, elements]``: a signal of random sign and size ``mean`` plus noise of each rank."""
    generator = torch.Generator().manual_seed(_SEED)
    signal = mean * torch.randn(elements, generator=generator)
    return (signal + torch.randn(ranks, elements, generator=generator)).to(torch.bfloat16)


def draw(rows: Sequence[dict], path: Path) -> None:
    """Draw the errors by number of ranks, one panel per signal."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    panels = figure.subplots(1, len(SIGNALS), sharey=True)
    styles = {"ring bf16": "o-", "tree bf16": "s--", "ring fp32": "^:"}
    for panel, signal in zip(panels, SIGNALS, strict=True):
        for method in METHODS:
            points = [
                (row["ranks"], row["error"] or float("nan"))  # an exact sum has no place on a logarithmic axis
                for row in rows
                if (row["signal"], row["method"]) == (signal, method)
            ]
            panel.plot(*zip(*points, strict=True), styles[method], label=method)
        panel.set(xscale="log", yscale="log", xlabel="ranks", title=signal)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("relative error of the sum")
    panels[0].legend()
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
