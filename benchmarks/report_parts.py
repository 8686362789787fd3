"""The measured parts of ``docs/performance.md``: of each table how it was measured, itself, and what made it.

A part takes the rows of one CSV and returns paragraphs; ``PARTS`` says in which order they come and under what title.
"""

from collections.abc import Callable, Mapping

from benchmarks.report_markdown import Row, Rows, first, made, milliseconds, number, same, table, times
from benchmarks.report_ranks import scaling_part, zero_stages_part

_ENSEMBLE = (
    " A row `sampling` is an ensemble, not a step: CasFormer draws as many members of one window as its shape begins "
    "with, under guidance and without gradients, by few steps of DDIM (`--steps`, 4 by default). The public loop takes "
    "one member after the other, ours all together; nothing warms up, and its samples are members."
)


def peers_part(rows: Rows) -> list[str]:
    """Return a table of steps and ensembles, ours over public, and how it was measured."""
    lines = []
    for ours in (row for row in rows if row["provider"] == "ours" and row["part"] in ("step", "ensemble")):
        which = ("case", "part", "precision", "shape")
        public = next((r for r in rows if r["provider"] == "public" and same(r, ours, which)), None)
        if public is None:
            continue
        lines.append(
            (
                ours["case"], ours["precision"], ours["shape"],
                f"{number(public['cpu_p50_s'])} / {number(ours['cpu_p50_s'])}", times(public, ours, "cpu_p50_s"),
                f"{number(public['p50_s'])} / {number(ours['p50_s'])}", times(public, ours, "p50_s"),
                f"{number(public['samples_per_s'])} / {number(ours['samples_per_s'])}",
                f"{number(public['peak_gb'])} / {number(ours['peak_gb'])}", times(public, ours, "peak_gb"),
                f"{public['apart']} / {ours['apart']}", ours["rounds"], ours["load"], ours["public_commit"],
                ours["commit"],
            )
        )  # fmt: skip
    head = (
        "case", "precision", "shape", "processor s, public / ours", "times", "clock s, public / ours", "times",
        "samples/s, public / ours", "peak GB, public / ours", "times", "apart, public / ours", "steps", "load",
        "public commit", "our commit",
    )  # fmt: skip
    return [
        "Forward and backward pass of one sample, without an optimizer, at equal weights and inputs, a process for "
        "each; `times` is how much less ours takes. `apart` is how far a forecast lies off the public one in fp32 at "
        "most, over the largest of that: in bf16 ours may lie off twice as far as the public one. `load` is how many "
        "processes wanted the machine's cores in the mean of the last minute: where it passes the number of cores, "
        "the clock says how crowded the machine was, and the processor's seconds are to be read. `steps` were timed, "
        "over all processes of a contender, after one in each that warms up: of so few, differences of a few per cent"
        " are noise. fp32 is the precision that all three train in by default; bf16 is autocast over fp32 weights."
        + (_ENSEMBLE if first(rows, part="ensemble") else ""),
        table(head, lines),
        made(
            f"python -m benchmarks.peers --earthformer PATH --openstl PATH --cascast PATH --precision "
            f"{_words(rows, 'precision')}",
            rows,
        ),
    ]


def end_to_end_part(rows: Rows) -> list[str]:
    """Return a table of whole steps and one of their kinds of work."""
    head = (
        "case", "input", "precision", "shape", "parameters", "GFLOP", "needs GB", "processor s", "clock s", "samples/s",
        "peak GB", "TFLOP/s of a product", "of it", "load", "commit",
    )  # fmt: skip
    lines = [
        (
            row["case"], row["input"], row["precision"], row["shape"], f"{int(row['parameters']) / 1e6:.1f} M",
            number(row["training_gflop"]), number(row["needs_gb"]), number(row["cpu_p50_s"]), number(row["p50_s"]),
            number(row["samples_per_s"]), number(row["peak_gb"]), number(row["product_tflop_per_s"]),
            f"{100 * float(row['model_flop_utilisation']):.0f} %" if row["model_flop_utilisation"] else "-",
            row["load"] or "-", row["commit"],
        )
        for row in rows
    ]  # fmt: skip
    kinds = [(row["case"], row["input"], row["precision"], dict(_kinds(row))) for row in rows if row["kinds"]]
    names = list(kinds[0][3]) if kinds else []
    kinds_head = ("case", "input", "precision", *names)
    shares = [(*which, *(f"{100 * found[name]:.0f} %" for name in names)) for *which, found in kinds]
    return [
        "Forward, loss, backward and AdamW of one window, a process for each. GFLOP are counted, of matrix products "
        "and convolutions, forward and backward, what is computed again included; `needs` is computed: fp32 weights, "
        "gradients and both moments, and the activations kept for backward. `of it` is the model's GFLOP a second over "
        "those of a large product of the same dtype in the same run. Rows without seconds are counted only.",
        table(head, lines),
        *(("Shares of the calling thread's time by kind of work:", table(kinds_head, shares)) if kinds else ()),
        made(_steps_commands(rows), rows),
    ]  # fmt: skip


def _steps_commands(rows: Rows) -> list[str]:
    """Return a command for the rows of as many rounds; those that were counted have none."""
    found = []
    for rounds in dict.fromkeys(row["rounds"] for row in rows):
        alike = [row for row in rows if row["rounds"] == rounds]
        how = f"--rounds {rounds}" if rounds != "0" else "--most-gb 0"
        found.append(f"python -m benchmarks.end_to_end --case {_words(alike, 'case')} {how}")
    return found


def _kinds(row: Row) -> list[tuple[str, float]]:
    return [(name, float(share)) for name, share in (kind.split(":") for kind in row["kinds"].split())]


def sampling_part(rows: Rows) -> list[str]:
    """Return a table of the parts of drawing an ensemble, each way over one member after the other."""
    lines = []
    for row in rows:
        which = {name: row[name] for name in ("part", "networks", "shape")}
        apart = first(rows, way="member by member", **which)
        each = str(float(row["p50_s"]) / int(row["members"]))
        lines.append(
            (
                row["part"], row["way"], row["networks"], row["shape"], row["dtype"], number(row["p50_s"]),
                f"{number(row['p20_s'])} to {number(row['p80_s'])}", number(each), times(apart, row, "p50_s"),
                row["repeats"], row["load"], row["commit"],
            )
        )  # fmt: skip
    head = (
        "part", "way", "networks", "latents", "dtype", "clock s", "p20 to p80", "s a member", "times", "repeats",
        "load", "commit",
    )  # fmt: skip
    return [
        "The parts of drawing the members of one window, with random weights, on the threads of the machine below: "
        "sampling by each sampler under guidance, which asks the network twice a step, and decoding the latents to "
        "pixels. `latents` are members, frames, channels, rows and columns, 8 pixels a side each. `SEVIR` networks "
        "have the size of CasCast's; the time of `small` ones says nothing of theirs. `times` is how much less a way "
        "takes than one member after the other in fp32, as the released evaluation draws. What the "
        "public loop takes stands, where it was measured, in the row `sampling` of the table beside the public code.",
        table(head, lines),
        made([_sampling_command(row) for row in rows], rows),
    ]


def _sampling_command(row: Row) -> str:
    device = "cpu" if " CPU" in row["device"] else "cuda"
    size = 8 * int(row["shape"].rsplit("x", 1)[1])
    small = " --small" if row["networks"] == "small" else ""
    return (
        f"python -m benchmarks.sampling --device {device} --members {row['members']} --repeats {row['repeats']} "
        f"--size {size}{small}"
    )


def inference_part(rows: Rows) -> list[str]:
    """Return a table of one forecast, each way over the network called as it is."""
    lines = []
    for row in rows:
        plain = first(rows, way="eager", **{name: row[name] for name in ("case", "precision", "shape")})
        lines.append(
            (
                row["case"], row["way"], row["precision"], row["shape"], milliseconds(row["p50_s"]),
                f"{milliseconds(row['p20_s'])} to {milliseconds(row['p80_s'])}", times(plain, row, "p50_s"),
                row["apart"], row["repeats"], row["threads"], row["load"], row["commit"],
            )
        )  # fmt: skip
    head = (
        "case", "way", "precision", "shape", "clock ms", "p20 to p80", "times", "apart", "repeats", "threads", "load",
        "commit",
    )  # fmt: skip
    return [
        "One forecast of a whole grid without gradients, random weights, in one process. `compiled` is `torch.compile` "
        "of the network, `graph`, on CUDA alone, the replay of a CUDA graph; `times` is how much less a way takes than "
        "the network called as it is, `apart` how far its forecast lies off that one's at most, over the largest.",
        table(head, lines),
        made(
            f"python -m benchmarks.inference --precision {_words(rows, 'precision')} --way {_words(rows, 'way')} "
            f"--repeats {_most(rows, 'repeats')}",
            rows,
        ),
    ]


def scoring_part(rows: Rows) -> list[str]:
    """Return a table of counting a forecast, beside CasCast's evaluator."""
    theirs = first(rows, provider="cascast")
    lines = [
        (
            row["provider"], row["shape"], row["thresholds"], milliseconds(row["p50_s"]),
            f"{milliseconds(row['p20_s'])} to {milliseconds(row['p80_s'])}", times(theirs, row, "p50_s"),
            milliseconds(row["cpu_least_s"]), times(theirs, row, "cpu_least_s"), row["repetitions"], row["load"],
            row["public_commit"], row["commit"],
        )
        for row in rows
    ]  # fmt: skip
    head = (
        "provider", "forecast", "thresholds", "clock ms", "p20 to p80", "times", "least processor ms", "times",
        "repetitions", "load", "public commit", "our commit",
    )  # fmt: skip
    return [
        "Counting one forecast into the tables that scores are made of, on the threads of the machine below, each way "
        "in turn. `cascast` is the `update` of CasCast's evaluator: pixels, maxima and averages over 4 and 16. `ours, "
        "same tables` counts the same, and squared and absolute errors besides; its integers equal theirs, or nothing "
        "would have been timed. `ours, maxima` leaves the averages out, as SimCast's tables do. `times` is how much "
        "less ours takes than CasCast's.",
        table(head, lines),
        made([f"python -m benchmarks.scoring --cascast PATH --repetitions {row['repetitions']}" for row in rows], rows),
    ]


def reading_part(rows: Rows) -> list[str]:
    """Return a table of windows a second by reader, layout and order, from a warm page cache and a dropped one."""
    caches = list(dict.fromkeys(row["cache"] for row in rows))
    lines = []
    for provider, layout, order in dict.fromkeys((row["provider"], row["layout"], row["order"]) for row in rows):
        cells = []
        for cache in caches:
            here = {"order": order, "cache": cache}
            row = first(rows, provider=provider, layout=layout, **here)
            public = [first(rows, provider="public loader", layout=other, **here) for other in (layout, "gzip")]
            cells.append(number(row["windows_per_core_s"]) if row else "-")
            cells += [times(row, other, "windows_per_core_s") for other in public]
        lines.append((provider, layout, order, *cells))
    head = ("provider", "layout", "order", *(
        text for cache in caches for text in (f"{cache}: windows/s of a core", "/ public", "/ public on gzip")
    ))  # fmt: skip
    about = rows[0]
    public = " --public PATH" if first(rows, provider="public loader") else ""
    command = f"python -m benchmarks.sevir_data{public} --parts reading {_events(rows)}"
    return [
        f"Reading batches of windows of 25 frames from {about['events']} synthetic events of {about['frames']} frames "
        f"of {about['size']} x {about['size']} pixels, in one process of one thread, medians of {about['repetitions']} "
        "repetitions; windows are counted by the second of processor time, those by the clock stand in the CSV. The "
        "same events lie in every layout: `gzip` is SEVIR's own, `shards` what `simcast data prepare` writes. Files "
        "are in the page cache (`warm`) or were dropped from it. The public loader is Earthformer's, whose windows "
        "equalled ours before anything was timed; it hands out floats in [0, 1], ours the radar's bytes, or, `and to "
        "[0, 1]`, the same floats. `/ public` is how many times its windows ours reads from the same layout, `/ public "
        f"on gzip` from its own kind of file. Load {_most(rows, 'load')}, commit {_each(rows, 'commit')}"
        + (f", public commit {_each(rows, 'public_commit')}." if public else "."),
        table(head, lines),
        made(command, rows),
    ]


def preparation_part(rows: Rows) -> list[str]:
    """Return a table of preparing an event, beside a bare loop, and on two ranks beside one."""
    lines = []
    for row in rows:
        alone = first(rows, way=row["way"], layout=row["layout"], codec=row["codec"], ranks="1")
        over = times(row, alone, "ours_ms") if row["way"] == "command" else "-"
        bare = times({"ms": row["bare_ms"]}, {"ms": row["ours_ms"]}, "ms")
        lines.append(
            (
                row["way"], row["layout"], row["codec"], row["ranks"], number(row["bare_ms"]), number(row["ours_ms"]),
                bare, over, number(row["megabytes"]), row["repetitions"], row["load"], row["commit"],
            )
        )  # fmt: skip
    head = (
        "way", "from", "codec", "ranks", "bare ms", "ours ms", "bare / ours", "/ one rank", "MB written",
        "repetitions", "load", "commit",
    )  # fmt: skip
    about = rows[0]
    return [
        f"Preparing {about['events']} synthetic events of {about['frames']} frames of {about['size']} x "
        f"{about['size']} pixels as shards: milliseconds of processor time an event, medians over the repetitions, one "
        "thread a process. `bare` is the least that anybody could do: read, transpose, checksum, compress and write; "
        "`bare / ours` is the share of its speed that preparation has, with its checks and its index. The rows "
        "`command` are `simcast data prepare` as processes, start-up taken off; `/ one rank` is what the ranks take "
        "together over what one takes, 1 where a second rank costs nothing.",
        table(head, lines),
        made(f"python -m benchmarks.sevir_data --parts preparing {_events(rows)}", rows),
    ]


def opening_part(rows: Rows) -> list[str]:
    """Return a table of opening an index."""
    lines = [
        (
            f"{int(row['events']):,}", f"{int(row['windows']):,}", number(row["seconds"]), number(row["mib"]),
            row["load"], row["commit"],
        )
        for row in rows
    ]  # fmt: skip
    return [
        "Opening prepared data of as many events as SEVIR has, and ten times as many, in a process of its own, once: "
        "its index, the fingerprint, one window and the keys of every thousandth. The shards are sparse files, the "
        "index is whole. `MiB added` is the highest memory over that before.",
        table(("events", "windows", "clock s", "MiB added", "load", "commit"), lines),
        made("python -m benchmarks.sevir_data --parts opening", rows),
    ]


def _words(rows: Rows, name: str) -> str:
    return " ".join(dict.fromkeys(row[name] for row in rows))


def _events(rows: Rows) -> str:
    # Rows of the command have half the repetitions.
    return f"--events {rows[0]['events']} --size {rows[0]['size']} --repetitions {_most(rows, 'repetitions')}"


def _most(rows: Rows, name: str) -> str:
    return max((row[name] for row in rows), key=float)


def _each(rows: Rows, name: str) -> str:
    return ", ".join(dict.fromkeys(row[name] for row in rows if row[name]))


# Titles in the page's order, and the part of each table below them.
PARTS: Mapping[str, Mapping[str, Callable[[Rows], list[str]]]] = {
    "Beside the public code": {"peers": peers_part},
    "Whole training steps": {"end_to_end": end_to_end_part},
    "One forecast": {"inference": inference_part},
    "Drawing ensembles": {"sampling": sampling_part},
    "Scoring": {"scoring": scoring_part},
    "Reading and preparing data": {
        "data_reading": reading_part,
        "data_preparation": preparation_part,
        "data_opening": opening_part,
    },
    "ZeRO stages": {"zero_stages": zero_stages_part},
    "Several nodes on one host": {"scaling": scaling_part},
}


def measured(tables: Mapping[str, Rows]) -> list[str]:
    """Return the titles and parts of those tables that one machine has, and that hold rows."""
    paragraphs = []
    for title, parts in PARTS.items():
        found = [text for name, part in parts.items() if tables.get(name) for text in part(tables[name])]
        paragraphs += [f"### {title}", *found] if found else []
    return paragraphs
