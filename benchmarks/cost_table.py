"""Estimate the cost of every shipped configuration of the paper, and fill the tables of ``docs/results/costs.md``.

    python -m benchmarks.cost_table            # computes benchmarks/costs.csv (minutes), then fills the page
    python -m benchmarks.cost_table --fill     # fills the page from the CSV
    python -m benchmarks.cost_table --check    # fails if the page differs from the CSV

Nothing is measured and nothing is allocated: parameters, FLOPs and activations are counted on torch's meta device. A
table of the page is between ``<!-- costs NAME DATASET -->`` and ``<!-- end -->``.
"""

import argparse
import csv
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simcast_hpc.commands.model_cost import forecast_work, training_cost
from simcast_hpc.commands.model_read import ModelTarget, auxiliary_bytes, dtype_of, read_run, subject_of
from simcast_hpc.config.shipped_configs import list_configs
from simcast_hpc.planning.flops import training_flops
from simcast_hpc.planning.memory_plan import Machine, ModelMemory, Plan, estimate_memory, micro_batches
from simcast_hpc.planning.peak_memory import peak_bytes
from simcast_hpc.planning.recompute import RecomputeOption
from simcast_hpc.planning.training_cost import DATASET_SIZES, GPUS, latent_bytes, rollout_bytes

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results" / "costs.md"
RESULTS = ROOT / "benchmarks" / "costs.csv"
TABLE = re.compile(r"(<!-- costs (\w+)(?: ([\w-]+))? -->\n).*?(<!-- end -->)", flags=re.DOTALL)
GPUS_PER_RUN = 8
UTILIZATION = 0.3
SHARD_RATIO = 94.6e6 / (36 * 49 * 384 * 384)
"""LZ4 shards per uncompressed byte: 36 synthetic events, ``benchmarks/results/cpu/data_preparation.csv``."""
Row = dict[str, str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compute, fill or check the tables; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--fill", action="store_true", help="fill the page from the CSV, without computing it")
    parser.add_argument("--check", action="store_true", help="fail if a table of the page differs from the CSV")
    options = parser.parse_args(arguments)
    if not (options.fill or options.check):
        rows = [cost_row(name) for name in paper_configs()]
        with RESULTS.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    text = PAGE.read_text(encoding="utf-8")
    filled = fill(text, read_rows())
    if options.check:
        print(
            "docs/results/costs.md is out of date: python -m benchmarks.cost_table" if filled != text else "up to date"
        )
        return int(filled != text)
    PAGE.write_text(filled, encoding="utf-8")
    return 0


def paper_configs() -> list[str]:
    """Return the names of the shipped training configurations on the paper's data sets."""
    others = ("synthetic", "/own", "/domain")
    return [
        name
        for name in list_configs()
        if not name.startswith("pipeline/") and not any(other in name for other in others)
    ]


def read_rows() -> list[Row]:
    """Return the rows of the CSV."""
    return list(csv.DictReader(io.StringIO(RESULTS.read_text(encoding="utf-8"))))


def cost_row(name: str) -> Row:
    """Return the estimated cost of a shipped configuration; ``name`` is for example ``teacher/sevir``."""
    # 1. FLOPs and GPU-hours
    target = read_run(Path(name), (), None)
    run = target.run
    network = subject_of(run, target.grid, target.autoencoder)
    model = network.on_meta(None, dtype_of(run))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    flops = training_flops(model, *network.inputs(1))
    costs = {
        gpu: training_cost(target, parameters=parameters, training_flops=flops, gpu_name=gpu, utilization=UTILIZATION)
        for gpu in ("h100", "a100")
    }
    cost = costs["h100"]
    shares = cost["gpu_hours_by_utilization"]
    # 2. Memory on 8 GPUs, as configured
    micro, memory = _memory(target)
    storage = cost["storage_bytes"]
    # 3. Verification: every test window once
    windows = DATASET_SIZES[run.data.dataset].test_windows
    forecast = sum(part.gpu_hours(GPUS["h100"], UTILIZATION) for part in forecast_work(target))
    return {
        "config": name,
        "dataset": run.data.dataset,
        "parameters": str(parameters),
        "samples": str(cost["samples"]),
        "tflop_per_sample": _digits(flops / 1e12),
        "exaflop": _digits(cost["flops"] / 1e18),
        "h100_hours": _digits(cost["gpu_hours"]),
        "h100_hours_40": _digits(shares["0.4"]),
        "h100_hours_10": _digits(shares["0.1"]),
        "a100_hours": _digits(costs["a100"]["gpu_hours"]),
        "extra": "; ".join(f"{part['part']} {_digits(part['gpu_hours'])}" for part in cost["parts"][1:]),
        "global_batch": str(run.batch.global_size),
        "micro_batch": str(micro),
        "zero_stage": str(run.engine.zero_stage),
        "memory_gib": _digits(memory / 2**30),
        "checkpoints_gb": _digits(storage["checkpoints"] / 1e9),
        "weights_gb": _digits(storage["weights"] / 1e9),
        "logs_gb": _digits(storage["logs"] / 1e9),
        "latents_gb": _digits(storage["latents"] / 1e9) if "latents" in storage else "",
        "test_h100_hours": _digits(forecast * windows) if forecast else "",
    }


def _memory(target: ModelTarget) -> tuple[int, int]:
    """Return micro-batch and bytes per GPU with the settings of the configuration on ``GPUS_PER_RUN`` GPUs."""
    run = target.run
    network = subject_of(run, target.grid, target.autoencoder)
    machine = Machine(gpus=GPUS_PER_RUN, memory=80 * 2**30)
    micro = max(size for size in micro_batches(run.batch, machine) if size <= run.batch.micro_size)
    auxiliary, more = auxiliary_bytes(run, target.grid, target.autoencoder)
    model = network.on_meta(None, dtype_of(run))
    sizes = tuple(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    one, two = (peak_bytes(model, *network.inputs(size)) + size * more for size in (1, 2))
    option = RecomputeOption(levels=(), activations=(one, two), cost=0.0)
    facts = ModelMemory(sizes=sizes, ema=run.ema.decay is not None, auxiliary=auxiliary, recompute_options=(option,))
    return micro, estimate_memory(facts, Plan(engine=run.engine, recompute=option, micro_batch=micro), machine).total


def fill(text: str, rows: list[Row]) -> str:
    """Return the page with every marked table filled."""

    def replace(found: re.Match[str]) -> str:
        chosen = [row for row in rows if found[3] is None or row["dataset"].startswith(found[3])]
        return f"{found[1]}{_markdown(*_TABLES[found[2]](chosen))}\n{found[4]}"

    return TABLE.sub(replace, text)


def _hours(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    header = [
        "Configuration", "Parameters, M", "Samples, M", "TFLOP per sample", "H100 hours, 30 %",
        "H100 hours, 40 % to 10 %", "A100 hours, 30 %",
    ]  # fmt: skip
    lines = [
        [
            f"`{row['config']}`",
            _shown(float(row["parameters"]) / 1e6),
            _shown(float(row["samples"]) / 1e6),
            _shown(row["tflop_per_sample"]),
            f"**{_shown(row['h100_hours'])}**",
            f"{_shown(row['h100_hours_40'])} to {_shown(row['h100_hours_10'])}",
            _shown(row["a100_hours"]),
        ]
        for row in _by_stage(rows)
    ]
    return header, lines


def _extra(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    header = ["Configuration", "Part of the hours above (H100 hours at 30 %)"]
    return header, [[f"`{row['config']}`", row["extra"]] for row in _by_stage(rows) if row["extra"]]


def _memory_table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    header = [
        "Configuration", "Global batch", "Micro-batch", "ZeRO stage", "GiB per GPU", "Checkpoints, GB",
        "Exported weights, GB", "Logs, GB",
    ]  # fmt: skip
    names = ("global_batch", "micro_batch", "zero_stage", "memory_gib", "checkpoints_gb", "weights_gb", "logs_gb")
    return header, [[f"`{row['config']}`", *(_shown(row[name]) for name in names)] for row in _by_stage(rows)]


def _test(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    header = ["Configuration", "Test windows", "H100 hours at 30 %"]
    lines = [
        [f"`{row['config']}`", f"{DATASET_SIZES[row['dataset']].test_windows:,}", _shown(row["test_h100_hours"])]
        for row in _by_stage(rows)
        if row["test_h100_hours"]
    ]
    return header, lines


def _storage(_rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    header = [
        "Data set", "Events", "Frames, uncompressed", "Shards, LZ4", "Training windows", "Rollouts, uint8",
        "Rollouts, fp16", "Latents",
    ]  # fmt: skip
    lines = []
    for name, size in DATASET_SIZES.items():
        target = read_run(Path(f"student/{name.removesuffix('-cascast')}"), (), None)
        frames, latent = target.run.sequence.frames_out, (size.grid[0] // 8, size.grid[1] // 8)
        rollouts = [
            rollout_bytes(size.training_windows, frames_out=frames, grid=size.grid, pseudo_dtype=dtype)
            for dtype in ("uint8", "fp16")
        ]
        latents = latent_bytes(size.training_windows, frames=3 * frames, channels=4, grid=latent)
        amounts = [f"{number / 1e9:,.0f} GB" for number in (size.frame_bytes, SHARD_RATIO * size.frame_bytes)]
        caches = [f"{number / 1e9:,.1f} GB" for number in (*rollouts, latents)]
        lines.append([f"`{name}`", f"{size.events:,}", *amounts, f"{size.training_windows:,}", *caches])
    return header, lines


_TABLES: dict[str, Any] = {
    "hours": _hours,
    "extra": _extra,
    "memory": _memory_table,
    "test": _test,
    "storage": _storage,
}
_STAGES = ("teacher", "student", "direct", "autoencoder", "diffusion")


def _by_stage(rows: list[Row]) -> list[Row]:
    """Return rows by data set, then in the order of training, SimVP before Earthformer."""

    def order(row: Row) -> tuple[Any, ...]:
        stage, name = row["config"].split("/")
        size = int(row["parameters"])
        return list(DATASET_SIZES).index(row["dataset"]), _STAGES.index(stage), "earthformer" in name, size

    return sorted(rows, key=order)


def _markdown(header: list[str], lines: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))


def _digits(number: float) -> str:
    """Return a number with four significant digits, as it is stored."""
    return f"{number:.4g}"


def _shown(number: float | str) -> str:
    """Return a number with three significant digits and no exponent."""
    value = float(number)
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
