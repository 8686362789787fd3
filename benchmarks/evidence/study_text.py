"""What the evidence page says about the study itself: convergence, how it was made, what is missing."""

import statistics

from benchmarks.evidence.unit_results import Evidence
from simcast_hpc.config import to_yaml

from .study import BOX_KM, PERSISTENCE


def seeds_in_words(evidence: Evidence) -> str:
    """Return how many seeds an arm has, and which arms have another number."""
    counts = {arm: len(results) for arm, results in evidence.by_arm.items() if arm != PERSISTENCE}
    usual = statistics.mode(counts.values()) if counts else 0
    others = [f"{arm} {count}" for arm, count in counts.items() if count != usual]
    return f"{usual} seeds an arm" + (f" (but {', '.join(others)})" if others else "")


def convergence(evidence: Evidence) -> str:
    """Return what longer training brought in validation loss."""
    teacher = f"teacher-{evidence.study.half_horizon}"
    pairs = (
        (teacher, "teacher-4x", 4),
        ("teacher-4x", "teacher-16x", 4),
        ("direct", "direct-2x", 2),
        ("direct", "direct-5x", 5),
    )
    lines = [_longer(evidence, short, long, factor) for short, long, factor in pairs if evidence.seeds(short, long)]
    return "\n".join(lines) or "The long runs are not there yet."


def _longer(evidence: Evidence, short: str, long: str, factor: int) -> str:
    gains, last = [], []
    for seed in evidence.seeds(short, long):
        brief, lengthy = (evidence.result(arm, seed).record["val_loss"] for arm in (short, long))
        gains.append(100 * (1 - lengthy[-1][1] / brief[-1][1]))
        last.append(100 * (1 - lengthy[-1][1] / lengthy[-2][1]))
    return (
        f"- `{long}`, {factor} times the steps of `{short}`, ends {_mean(gains):.1f} % below it in validation loss "
        f"({min(gains):.1f} to {max(gains):.1f} over {len(gains)} seed(s)); its last fifth of steps brought "
        f"{_mean(last):.1f} %."
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def making(evidence: Evidence) -> str:
    """Return commands, machine, rules and the whole configuration."""
    study = evidence.study
    records = [result.record for results in evidence.by_arm.values() for result in results.values()]
    minutes = sum(record["cpu_seconds"] for record in records) / 60
    blocks = study.archive.events["test"] // study.scoring.events_per_block

    def all_of(key: str) -> str:
        return ", ".join(sorted({str(record[key]) for record in records}))

    return f"""```
python -m benchmarks.evidence.run_study        # trains what is missing; start it as often as you like
python -m benchmarks.evidence.collect    # packs the sums into benchmarks/evidence/results/
python -m benchmarks.evidence.evidence_page       # this page
```
As a Slurm array, every task taking the next unit that nobody has:
```
sbatch --array=1-20 --cpus-per-task=1 --time=01:00:00 --export=ALL,OMP_NUM_THREADS=1,PYTHONPATH=kernels \\
    --wrap=".venv/bin/python -m benchmarks.evidence.run_study"
```
- {len(records)} units, {minutes:.0f} CPU minutes; commit {all_of("commit")}; {all_of("processor")}, \
{all_of("threads")} thread a unit,
  device {all_of("device")}; torch {all_of("torch")}, Python {all_of("python")}.
- Training is the project's own: stages, sample order, augmentation (the eight symmetries), weighted loss, learning
  rate and loop, in one process around plain fp32 AdamW in place of DeepSpeed's engine.
  `tests/benchmarks/test_evidence_engine.py` holds losses and forecasts against `simcast train`.
- The archive is that of `simcast data synth` (seed {study.archive.seed}): train, val and test events come from \
generator indices that the
  others never use. The last step's weights are scored; nothing is selected.
- All arms of a seed begin from the same weights, and meet the same windows in the same order where they have the same
  windows. Student: k uniform in 0 .. T'l; pseudo-frames from the last T real frames, clipped, kept as fp16.
- Intervals: seeds and {blocks} blocks of {study.scoring.events_per_block} test events are drawn with replacement, the \
same draws for every arm, so that
  differences are paired in both. The estimate ± t(n - 1) sd sqrt(n / (n - 1)), sd over the draws, n the seeds.
  `tests/benchmarks/test_evidence_intervals.py` puts them to studies whose truth is known.
- The stored sums (hits, forecast and observed pixels by block, threshold and lead; FSS; absolute and squared error)
  answer what this page does not.

```yaml
{to_yaml(study).rstrip()}
```"""


def missing(evidence: Evidence) -> str:
    """Return why this is not the last word."""
    study = evidence.study
    size, model, long = study.archive.size, study.model, study.sequence.frames_out
    sums = next(iter(next(iter(evidence.by_arm.values())).values())).sums
    share = 100 * float(sums.observed[:, -1].sum() / sums.pixels.sum())
    return f"""- **Synthetic storms.** They move, grow and decay by a recipe; radar has errors, orography, surprises.
  The highest threshold is {share:.3f} % of the test pixels.
- **Small nets.** {size} x {size} pixels of {BOX_KM / size:g} km, hid_S {model.hidden_spatial}, hid_T \
{model.hidden_temporal}, N_T {model.temporal_blocks}; SimCast has 384 x 384, N_T 4 and, as far as is known,
  64 and 256. What is seen here may not scale.
- **A short horizon.** {long} frames, where the paper has 12: the teacher of {min(study.horizons)} frame is called \
{long} times, not 12.
- **Converged** is only what the section above says so of; an undertrained teacher hands its errors on.
- **One recipe.** Learning rate, batch and schedule are one choice for all arms, tuned for none.
- **No GPU.** `benchmarks/evidence/study-96.yaml` is this study at 96 x 96 and 12 frames for a machine that has one.
  It has not been run."""
