"""The parts of ``docs/performance.md`` that several ranks made: ZeRO stages, and steps over links between them."""

from collections.abc import Sequence
from statistics import median

from benchmarks.report_markdown import Row, Rows, first, made, number, same, table, times

# What one case of ``scaling.csv`` has in common over its turns.
CASE = ("kind", "ranks", "zero_stage", "precision", "zero_hpz_partition_size", "accumulation", "megabits")


def zero_stages_part(rows: Rows) -> list[str]:
    """Return a table of training on each ZeRO stage, speed over stage 0's and memory beside what is computed."""
    lines = []
    for row in rows:
        which = {name: row[name] for name in ("size", "precision", "ranks", "micro_batch")}
        plain = first(rows, zero_stage="0", **which)
        lines.append(
            (
                row["zero_stage"], f"{int(row['parameters']) / 1e6:.1f} M", row["precision"], row["ranks"],
                row["micro_batch"], number(row["samples_per_s"]), times(row, plain, "samples_per_s"),
                number(row["step_s_p50"]), number(row["step_cpu_s_p50"]),
                f"{number(row['state_mib'])} / {number(row['computed_state_mib'])}",
                f"{number(row['peak_mib'])} / {number(row['computed_peak_mib'])}",
                row["steps"], row["load"], row["commit"],
            )
        )  # fmt: skip
    head = (
        "stage", "parameters", "precision", "ranks", "samples of a rank", "samples/s", "/ stage 0", "clock s of a step",
        "processor s", "state MiB, measured / computed", "peak MiB, measured / computed", "steps", "load", "commit",
    )  # fmt: skip
    return [
        "Training CasFormer on random latents through the engine of a run, every rank a process of the number of "
        "threads below: forward, backward and update, medians of the slowest rank. `/ stage 0` is the samples a second "
        "over those without sharing. `state` is what all live tensors of the fullest rank hold after a step, beside "
        "the computed weights, gradients and optimizer: gradients are gone by then on stages 0 to 2, and stage 3 keeps "
        "its share of them and a bucket for reductions, of a whole model's gradients but no more than 5e8 elements. "
        "`peak` is the largest resident memory over that before the engine was built, beside the computed state "
        "and activations: it has buckets, gathered weights and what the allocator keeps, so that at a small size it "
        "hides what stages save. Here the ranks share one machine's cores, so the ratio is what a stage costs.",
        table(head, lines),
        made(_zero_commands(rows), rows),
    ]


def _zero_commands(rows: Rows) -> list[str]:
    names = ("size", "ranks", "precision", "micro_batch", "steps")
    return [
        f"python -m benchmarks.zero_stages --size {row['size']} --ranks {row['ranks']} --stages "
        f"{' '.join(other['zero_stage'] for other in rows if same(row, other, names))} --precision {row['precision']} "
        f"--micro {row['micro_batch']} --steps {row['steps']}"
        for row in rows
    ]


def scaling_part(rows: Rows) -> list[str]:
    """Return a table of steps between network namespaces; nothing where there are predictions alone."""
    cases: dict[tuple[str, ...], Rows] = {}
    for row in rows:
        if row["seconds"]:
            cases.setdefault(tuple(row[name] for name in CASE), []).append(row)
    if not cases:
        return []
    head = (
        "ranks", "ZeRO", "precision", "micro batches", "link Mbit/s", "clock s of a step", "processor s", "MB sent",
        "/ computed", "model s", "/ clock", "turns", "load", "commit",
    )  # fmt: skip
    measured = [row for turns in cases.values() for row in turns]
    turns = 1 + max(int(row["turn"]) for row in measured)
    slowed = sorted({float(row["megabits"]) for row in measured if row["megabits"]})
    command = f"python -m benchmarks.scaling --turns {turns} --steps {measured[0]['steps']}"
    return [
        "Training steps of a small SimVP through the engine of a run. Every rank has one thread and a network "
        "namespace of its own, as if it were a node, and a link to a bridge, which is free or slowed to so many "
        "megabits a second; all speeds take turns. Seconds are medians over the turns, of the slowest rank. `MB sent` "
        "was counted by the link of the rank that sent most, in a step, headers and all; `/ computed` is that over "
        "the bytes that the model of docs/scaling.md computes. `model s` is the step over the free link and the "
        "computed bytes at the slowed link's speed, `/ clock` that over the measured step: 1 where the model is "
        "right. All ranks share the cores of one machine, so the clock does not say how steps scale over real nodes; "
        "what the model says of GPUs is no measurement and stands in docs/scaling.md.",
        table(head, [_scaling_line(group) for group in cases.values()]),
        made(command + (f" --megabits {' '.join(f'{speed:g}' for speed in slowed)}" if slowed else ""), measured),
    ]


def _scaling_line(turns: Sequence[Row]) -> tuple[str, ...]:
    row = turns[0]
    partition = row["zero_hpz_partition_size"]
    seconds, processor, sent = (
        median(float(turn[name]) for turn in turns) for name in ("seconds", "processor_seconds", "sent_bytes")
    )
    computed, model = float(row["computed_bytes"]), row["model_seconds"]
    return (
        row["ranks"],
        row["zero_stage"] + (f", hpZ {partition}" if partition else ""),
        row["precision"],
        row["accumulation"],
        number(row["megabits"]) if row["megabits"] else "free",
        number(str(seconds)),
        number(str(processor)),
        number(str(sent / 1e6)),
        f"{sent / computed:.3f}" if computed else "-",
        number(model),
        f"{float(model) / seconds:.2f}x" if model else "-",
        str(len(turns)),
        max((turn["load"] for turn in turns), key=float),
        row["commit"],
    )
