"""Text of the evidence page on the study: convergence, method, limitations."""

import statistics
import textwrap

from benchmarks.evidence.unit_results import Evidence
from simcast_hpc.config import to_yaml

from .arms import BASELINES, GROUPS, arms_of
from .study import BOX_KM


def wrapped(text: str, *, indent: str = "") -> str:
    """Return a paragraph in lines of at most 120 characters; later lines begin with ``indent``."""
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def describe_seeds(evidence: Evidence) -> str:
    """Return the number of seeds per arm, and the arms with another number."""
    counts = {arm: len(results) for arm, results in evidence.by_arm.items() if arm not in BASELINES}
    usual = statistics.mode(counts.values()) if counts else 0
    few = {arm.name: f"arms with {arm.events} events" for arm in arms_of(evidence.study) if arm.events is not None}
    by_name: dict[str, set[int]] = {}
    for arm, count in counts.items():
        by_name.setdefault(few.get(arm, f"`{arm}`"), set()).add(count)
    others: dict[str, list[str]] = {}
    for name, found in by_name.items():
        if found != {usual}:
            others.setdefault(" to ".join(str(end) for end in sorted({min(found), max(found)})), []).append(name)
    exceptions = "; ".join(f"{count} for {', '.join(names)}" for count, names in sorted(others.items()))
    return f"{usual} seeds per arm" + (f" (except {exceptions})" if exceptions else "")


def describe_cost(evidence: Evidence) -> str:
    """Return the CPU time of training of the direct model and of the most expensive arm; empty without results."""
    study, means = evidence.study, {}
    for arm in arms_of(study):
        if results := evidence.by_arm.get(arm.name):
            means[arm] = _mean([result.record["train_cpu_seconds"] for result in results.values()])
    if not means:
        return ""
    low, high = (min(means.items(), key=lambda item: item[1]), max(means.items(), key=lambda item: item[1]))
    return (
        f"; a network is trained in {low[1]:.0f} CPU seconds ({low[0].steps} steps) to {high[1] / 60:.0f} CPU minutes "
        f"({high[0].steps} steps)"
    )


def convergence(evidence: Evidence) -> str:
    """Return the change of the validation loss by longer training."""
    teacher = f"teacher-{evidence.study.half_horizon}"
    pairs = (
        (teacher, "teacher-4x", 4),
        ("teacher-4x", "teacher-16x", 4),
        ("direct", "direct-2x", 2),
        ("direct", "direct-5x", 5),
        ("direct-4x", "direct-16x", 4),
        ("hybrid-direct", "hybrid-direct-4x", 4),
        ("hybrid-student", "hybrid-student-4x", 4),
    )
    lines = [_longer(evidence, short, long, factor) for short, long, factor in pairs if evidence.seeds(short, long)]
    return "\n".join(lines) or "The long runs have not been trained."


def loss_decrease(evidence: Evidence, short: str, factor: str) -> str:
    """Return by how much ``factor``, for example ``5x``, as many steps lower the final validation loss, in words."""
    long = f"{short}-{factor}"
    seeds = evidence.seeds(short, long)
    if not seeds:
        return f"{factor} steps of the {short} model are not measured yet"
    gains = [100 * (1 - _final_loss(evidence, long, seed) / _final_loss(evidence, short, seed)) for seed in seeds]
    return f"{factor} steps lower the validation loss of the {short} model by {_mean(gains):.0f} %"


def _final_loss(evidence: Evidence, arm: str, seed: int) -> float:
    return evidence.result(arm, seed).record["val_loss"][-1][1]


def _longer(evidence: Evidence, short: str, long: str, factor: int) -> str:
    gains, last = [], []
    for seed in evidence.seeds(short, long):
        brief, lengthy = (evidence.result(arm, seed).record["val_loss"] for arm in (short, long))
        gains.append(100 * (1 - lengthy[-1][1] / brief[-1][1]))
        last.append(100 * (1 - lengthy[-1][1] / lengthy[-2][1]))
    return (
        f"- `{long}` has {factor} times the steps of `{short}`: its final validation loss is {_mean(gains):.1f} % "
        f"lower ({min(gains):.1f} to {max(gains):.1f} over {len(gains)} seeds); over its last fifth of "
        f"steps the loss decreased by {_mean(last):.1f} %."
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def method(evidence: Evidence) -> str:
    """Return commands, machine, method and the configuration."""
    study = evidence.study
    records = [result.record for results in evidence.by_arm.values() for result in results.values()]
    minutes = sum(record["cpu_seconds"] for record in records) / 60
    blocks = study.archive.events["test"] // study.scoring.events_per_block

    def all_of(key: str) -> str:
        return ", ".join(sorted({str(record[key]) for record in records}))

    return f"""- Training uses the project's stages, sample order, augmentation (the eight symmetries), weighted loss,
  learning rate and loop, in one process with fp32 AdamW instead of DeepSpeed's engine.
  `tests/benchmarks/test_evidence_engine.py` compares losses and forecasts with `simcast train`.
- The archive is that of `simcast data synth` (seed {study.archive.seed}): train, val and test events come from
  disjoint generator indices. The weights of the last step are scored, without selection, except for the arms with
  few events: the weights with the highest CSI-M on the val events, of 24 equally spaced steps.
- All arms of a seed start from the same weights (a student with warm start from those of its teacher), and arms with
  the same windows read them in the same order.
- A student samples `k` uniformly from 0 to `T'`, the long horizon. Its teacher starts from the last T real frames; the
  pseudo-frames are clipped and stored as fp16.
- Intervals: seeds and {blocks} blocks of {study.scoring.events_per_block} test events are sampled with replacement, \
with the same samples for every arm,
  so that differences are paired over seeds and over events. The interval is estimate ± t(n - 1) sd sqrt(n / (n - 1)),
  where sd is taken over the samples and n is the number of seeds. `tests/benchmarks/test_evidence_intervals.py` tests
  the coverage on studies with a known truth. A baseline has no seeds; it is paired over events.
- `extrapolation` is the project's optical flow and semi-Lagrangian advection in torch, `pysteps-lk` that of pysteps. A
  hybrid network has `model.base: extrapolation`: the extrapolated frames are a second input channel and are added to
  its output, which is zero before training. The optical flow was improved while the study ran; hybrid arms that had
  been trained with the earlier one (seeds 0 to 2 in part) were discarded and trained again.
- The stored sums (hits, forecast and observed pixels by block, threshold and lead time; FSS; absolute and squared
  error) allow other scores to be computed without training.

### Reproduction

```bash
python -m benchmarks.evidence.run_study       # trains each missing arm and seed; any number of processes
python -m benchmarks.evidence.collect         # adds the sums to benchmarks/evidence/results/
python -m benchmarks.evidence.evidence_page   # writes this page and its figures
```

`run_study` writes the result of each unit (an arm with a seed) when it is finished, so that a killed study loses only
the unit in training. Units in `benchmarks/evidence/results/` are not trained again, except teachers whose weights a
missing student needs; `--results EMPTY_DIRECTORY` trains everything. `--groups` and `--arms`
select arms.

As a Slurm array, each task trains the next unit that is neither finished nor locked:

```bash
sbatch --array=1-20 --cpus-per-task=1 --time=01:00:00 --export=ALL,OMP_NUM_THREADS=1,PYTHONPATH=kernels \\
    --wrap=".venv/bin/python -m benchmarks.evidence.run_study"
```

Provenance: {len(records)} units, {minutes:.0f} CPU minutes ({_by_group(evidence)}); commits {all_of("commit")};
{all_of("processor")}, {all_of("threads")} thread per unit, device {all_of("device")};
torch {all_of("torch")}, Python {all_of("python")}.

### Configuration

```yaml
{to_yaml(study).rstrip()}
```"""


def _by_group(evidence: Evidence) -> str:
    """Return the units and the CPU minutes of each group of arms."""
    minutes: dict[str, list[float]] = {group: [] for group in GROUPS}
    for arm in arms_of(evidence.study):
        units = evidence.by_arm.get(arm.name, {}).values()
        minutes[arm.group] += [unit.record["cpu_seconds"] / 60 for unit in units]
    return ", ".join(f"{group}: {len(units)} units, {sum(units):.0f}" for group, units in minutes.items())


def limitations(evidence: Evidence, *, oracle_undecided: bool) -> str:
    """Return the limitations of the study; ``oracle_undecided``: a perfect teacher makes no significant difference."""
    study = evidence.study
    size, model, long = study.archive.size, study.model, study.sequence.frames_out
    sums = next(iter(next(iter(evidence.by_arm.values())).values())).sums
    share = 100 * float(sums.observed[:, -1].sum() / sums.pixels.sum())
    return f"""- **Synthetic storms.** They move, grow and decay by simple rules; radar data have errors and orographic
  effects. The highest threshold is {share:.3f} % of the test pixels.
- **Small networks.** {size} x {size} pixels of {BOX_KM / size:g} km, SimVP with `hidden_spatial` \
{model.hidden_spatial}, `hidden_temporal` {model.hidden_temporal}
  and `temporal_blocks` {model.temporal_blocks}; SimCast has 384 x 384 pixels, `temporal_blocks` 4 and probably
  `hidden_spatial` 64 and `hidden_temporal` 256. The results may not scale.
- **A short horizon.** {long} frames, in the paper 12: the teacher of {min(study.horizons)} frame is called {long} \
times, not 12.
- **Far from convergence.** More steps lower the validation loss of the arms that were trained longer (see Convergence).
  A student inherits the errors of an undertrained teacher.
{_data_regime(evidence, oracle_undecided=oracle_undecided)}
- **One configuration.** Learning rate, batch size and schedule are equal for all arms and were not tuned.
- **No GPU.** `benchmarks/evidence/study-96.yaml` is this study at 96 x 96 pixels and 12 frames for a GPU; it has not
  been run."""


def _data_regime(evidence: Evidence, *, oracle_undecided: bool) -> str:
    """Return the limitation that training windows are not scarce, with the losses of the direct model."""
    study = evidence.study
    frames = study.sequence.frames_in + study.sequence.frames_out
    starts = (study.archive.frames_per_event - frames) // study.window_stride + 1
    windows = study.archive.events["train"] * starts
    text = (
        f"- **Training windows are not scarce with all events.** {study.steps} steps read "
        f"{study.steps * study.batch_size} windows; there are {windows} distinct ones, each in eight symmetries."
    )
    if records := [result.record for result in evidence.by_arm.get("direct", {}).values()]:
        training = _mean([_last_fifth(record["train_loss"]) for record in records])
        validation = _mean([record["val_loss"][-1][1] for record in records])
        text += (
            f" The direct model's training loss (last fifth of the steps) is {training:.5f}, its final validation loss "
            f"{validation:.5f}: there is no overfitting."
        )
    text += " Scarce windows are tested only by the arms with few training events, with fewer seeds."
    if oracle_undecided:
        text += " Even real frames in place of pseudo-frames do not significantly change CSI-M here (claim `oracle`)."
    return wrapped(text, indent="  ")


def _last_fifth(curve: list[list[float]]) -> float:
    """Return the mean loss over the last fifth of the steps; a curve is a list of (step, loss)."""
    return _mean([loss for step, loss in curve if step > 0.8 * curve[-1][0]])
