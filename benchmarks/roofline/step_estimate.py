"""Estimate the time of a training step by part: bytes and FLOPs of every operator, on the meta device, no measurement.

    python -m benchmarks.roofline.step_estimate          # computes benchmarks/step_estimates.csv, then fills the page
    python -m benchmarks.roofline.step_estimate --fill   # fills docs/results/step-estimates.md from the CSV
    python -m benchmarks.roofline.step_estimate --config direct/meteonet [--batch 8]   # prints one configuration

Each operator of the forward and backward pass reads its inputs from and writes its outputs to memory once, at the copy
bandwidth of the GPU, or computes its FLOPs at ``MATMUL_SHARE`` of the data sheet's dense bf16 rate, whichever takes
longer. The operators are those of CUDA (``simcast_hpc/planning/cuda_operators.py``): "before" without the kernels that
only CUDA tensors use, such as group norm with activation, "after" with them. An operator of this project counts as one
operator. Optimizer, launches and host are not included. Grouped convolutions reach a smaller share of the rate than
assumed.
"""

import argparse
import csv
import io
import re
import sys
from collections import Counter
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.measurements import print_table
from benchmarks.providers import use_implementation
from benchmarks.roofline.gpu_rates import H200
from benchmarks.work_kinds import kind_of
from simcast_hpc.config import TrainConfig, read_config, resolve
from simcast_hpc.models import build_model
from simcast_hpc.planning.cuda_operators import cuda_operators

MATMUL_RATE = 989e12
"""Dense bf16 FLOPs per second of an H200's tensor cores (data sheet)."""
MATMUL_SHARE = 0.6
"""Share of it that matmuls and convolutions reach (assumption)."""
ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "results" / "step-estimates.md"
RESULTS = ROOT / "benchmarks" / "step_estimates.csv"
TABLE = re.compile(r"(<!-- step estimates -->\n).*?(<!-- end -->)", flags=re.DOTALL)
BATCH = 8
CONFIGS = {"direct/sevir": "SimVP", "direct/sevir-earthformer": "Earthformer"}
VARIANTS = {"before": "reference", "after": ""}
"""Value of ``SIMCAST_KERNELS`` by variant."""
TITLES = {"pointwise": "elementwise", "product": "matmul"}
Row = dict[str, str]
_ALLOCATIONS = ("empty", "set_", "new_empty", "detach", "lift_fresh", "alias")


def operations(func: Any, args: Any, kwargs: Any, output: Any) -> int:
    """Return the FLOPs of an operator, a multiply-add as two."""
    if func.overloadpacket is torch.ops.aten.convolution_backward:  # PyTorch's count is too large for groups
        gradient, _, weight, *_, mask = args
        return 2 * gradient.numel() * prod(weight.shape[1:]) * (mask[0] + mask[1])
    counted = flop_registry.get(func.overloadpacket)
    return counted(*args, **kwargs, out_val=output) if counted else 0


class OperatorCosts(TorchDispatchMode):
    """Sums bytes, FLOPs, seconds and number of operators by kind of work."""

    def __init__(self) -> None:
        """Start at 0."""
        super().__init__()
        self.bytes, self.flops, self.calls = Counter[str](), Counter[str](), Counter[str]()
        self.seconds: dict[str, float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operator and add its cost; views and allocations cost nothing."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        is_view = any(one.alias_info and not one.alias_info.is_write for one in func._schema.returns)
        name = func._schema.name
        if is_view or name.rpartition("::")[2].startswith(_ALLOCATIONS):
            return output
        kind = "attention" if name.startswith("simcast_kernels::cuboid") else kind_of(name)
        tensors = [leaf for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, torch.Tensor)]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        flops = operations(func, args, kwargs, output)
        self.bytes[kind] += size
        self.flops[kind] += flops
        self.calls[kind] += 1
        longest = max(size / H200.copy, flops / (MATMUL_SHARE * MATMUL_RATE))
        self.seconds[kind] = self.seconds.get(kind, 0.0) + longest
        return output


def estimate(config: TrainConfig, *, batch: int) -> OperatorCosts:
    """Return the costs of the network's forward and backward pass in bf16, for inputs of 384 x 384 pixels."""
    sequence = config.sequence
    with torch.device("meta"):
        model_config = config.model
        if getattr(model_config, "grid", "") is None:
            model_config = model_config.model_copy(update={"grid": (384, 384)})
        network = build_model(model_config, frames_in=sequence.frames_in, frames_out=sequence.frames_out).bfloat16()
        frames = torch.empty(batch, sequence.frames_in, 1, 384, 384)
    with cuda_operators(), OperatorCosts() as costs:
        network(frames).sum().backward()
    return costs


def estimated(name: str, variant: str, *, batch: int) -> list[Row]:
    """Return a row per part of a shipped configuration's step, the longest first; ``variant`` is of ``VARIANTS``."""
    with use_implementation(VARIANTS[variant]):
        costs = estimate(read_config(TrainConfig, resolve(name)), batch=batch)
    return [
        {
            "config": name, "variant": variant, "part": part, "operators": str(costs.calls[part]),
            "bytes": str(costs.bytes[part]), "flops": str(costs.flops[part]), "seconds": f"{seconds:.6g}",
        }
        for part, seconds in sorted(costs.seconds.items(), key=lambda item: -item[1])
    ]  # fmt: skip


def totals(rows: Sequence[Row]) -> dict[str, float]:
    """Return the sum of every number of rows."""
    return {name: sum(float(row[name]) for row in rows) for name in ("operators", "bytes", "flops", "seconds")}


def fill(text: str, rows: Sequence[Row]) -> str:
    """Return the page with its table, and the numbers of its summary, from the rows of the CSV."""
    groups = {(name, variant): [row for row in rows if (row["config"], row["variant"]) == (name, variant)]
              for name in CONFIGS for variant in VARIANTS}  # fmt: skip
    # 1. Table: milliseconds of every part, longest first
    longest: dict[str, float] = {}
    for row in rows:
        longest[row["part"]] = max(longest.get(row["part"], 0.0), float(row["seconds"]))
    lines = ["| part |" + "".join(f" {CONFIGS[name]} {variant}, ms |" for name, variant in groups)]
    lines.append("|---|" + "---|" * len(groups))
    for part in sorted(longest, key=lambda part: -longest[part]):
        seconds = [
            next((float(row["seconds"]) for row in group if row["part"] == part), None) for group in groups.values()
        ]
        lines.append(
            f"| {TITLES.get(part, part)} |" + "".join(" |" if one is None else f" {1e3 * one:.1f} |" for one in seconds)
        )
    sums = [totals(group) for group in groups.values()]
    for title, name, factor, digits in (
        ("all", "seconds", 1e3, 1), ("bytes, GB", "bytes", 1e-9, 1), ("TFLOP", "flops", 1e-12, 2),
        ("operators", "operators", 1, 0),
    ):  # fmt: skip
        lines.append(f"| {title} |" + "".join(f" {factor * one[name]:.{digits}f} |" for one in sums))
    text = TABLE.sub(lambda found: f"{found[1]}\n" + "\n".join(lines) + f"\n\n{found[2]}", text)
    # 2. Numbers of the summary
    for name, title in CONFIGS.items():
        before, after = (totals(groups[name, variant]) for variant in VARIANTS)
        sentence = (
            f"{title}: {1e-9 * before['bytes']:.0f} GB before and {1e-9 * after['bytes']:.0f} GB after, an estimated "
            f"{1e3 * before['seconds']:.0f} and {1e3 * after['seconds']:.0f} ms"
        )
        text = re.sub(rf"(?m)^- {title}: .*?(?=\.$)", lambda _, line=sentence: f"- {line}", text)
    return text


def read_rows() -> list[Row]:
    """Return the rows of the CSV."""
    return list(csv.DictReader(io.StringIO(RESULTS.read_text(encoding="utf-8"))))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one configuration, or compute and fill the tables; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--config", help="print this shipped configuration instead of filling the page")
    parser.add_argument("--batch", type=int, default=BATCH, help="samples, with --config")
    parser.add_argument("--fill", action="store_true", help="fill the page from the CSV, without computing it")
    options = parser.parse_args(arguments)
    if options.config:
        for variant in VARIANTS:
            rows = estimated(options.config, variant, batch=options.batch)
            print_table([list(rows[0]), *([*row.values()] for row in rows)])
        return 0
    if not options.fill:
        rows = [row for name in CONFIGS for variant in VARIANTS for row in estimated(name, variant, batch=BATCH)]
        with RESULTS.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), read_rows()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
