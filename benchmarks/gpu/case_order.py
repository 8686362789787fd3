"""Order of the cases of a benchmark run: by what a result decides, not by size.

A limited run on a GPU starts with the cases that the goals of ``benchmarks/goals.csv`` name and that a training step
launches most. Cases that test the edges of the tiling are never timed.
"""

from collections.abc import Sequence

from benchmarks.cases import Case, op_cases, op_names

# (op, case) in order of worth; cases that are not listed follow, largest first.
RANKED: tuple[tuple[str, str], ...] = (
    ("cuboid_attention", "sevir-axial-t"),
    ("cuboid_attention", "sevir-axial-h"),
    ("group_norm_activation", "inception"),
    ("adaln_norm", "pixel-size"),
    ("layer_norm_linear", "sevir-attention"),
    ("weighted_mse", "sevir-student"),
    ("sampler_step", "pixels-ddim"),
    ("cuboid_attention", "sevir-axial-t-dropout"),
    ("cuboid_attention", "sevir-axial-h-dropout"),
    ("cuboid_attention", "sevir-axial-w-dropout"),
    ("group_norm_activation", "spatial"),
    ("bias_activation", "sevir-hidden"),
    ("bias_activation", "sevir-output"),
    ("bias_activation", "casformer"),
    ("adaln_norm", "decoder"),
    ("adaln_norm", "encoder"),
    ("layer_norm_linear", "sevir-feed-forward"),
    ("layer_norm_linear", "wide-feed-forward"),
    ("cuboid_attention", "sevir-top-t"),
    ("cuboid_attention", "sevir-top-h"),
    ("cuboid_attention", "sevir-axial-w"),
    ("cuboid_attention", "sevir-cross-1x1-dropout"),
    ("cuboid_attention", "large-axial-h"),
    ("layer_norm_linear", "sevir-attention-misaligned"),
    ("cuboid_attention", "100m-axial-h-dropout"),
    ("cuboid_attention", "video-swin-2x4-dropout"),
    ("cuboid_attention", "video-swin-2x8-dropout"),
    ("layer_norm_linear", "100m-attention"),
    ("weighted_mse", "sevir-student-bf16"),
    ("weighted_mse", "sevir-student-online"),
    ("sampler_step", "members-ddim"),
    ("sampler_step", "pixels-ancestral"),
)
# Compiled and tested, not timed: each differs from a timed case only in size, dtype or dropout, or a call does not run
# its kernel.
UNTIMED: frozenset[tuple[str, str]] = frozenset(
    {
        ("cuboid_attention", "1b-top-t-dropout"),
        ("cuboid_attention", "1b-axial-t-dropout"),
        ("cuboid_attention", "100m-top-h-dropout"),
        ("cuboid_attention", "sevir-axial-h-plain"),
        ("cuboid_attention", "sevir-axial-h-fp32"),
        ("cuboid_attention", "sevir-cross-1x1"),
        ("cuboid_attention", "video-swin-2x4"),
        ("cuboid_attention", "video-swin-2x8"),
        ("layer_norm_linear", "1b-attention"),
        ("layer_norm_linear", "100m-feed-forward"),
        ("layer_norm_linear", "widest-attention"),
        ("layer_norm_linear", "sevir-attention-no-vectors"),
        ("layer_norm_linear", "sevir-top-attention"),
        ("layer_norm_linear", "sevir-top-feed-forward"),
        ("layer_norm_linear", "sevir-cross-query"),
        ("bias_activation", "100m-hidden"),
        ("bias_activation", "sevir-hidden-16"),
        ("bias_activation", "sevir-hidden-fp32"),
        ("bias_activation", "sevir-hidden-no-dropout"),
        ("weighted_mse", "sevir-teacher"),
        ("weighted_mse", "quickstart"),
        ("sampler_step", "members-dpm-solver"),
        ("sampler_step", "many-pixels-ddim"),
        ("group_norm_activation", "stem-16"),
        ("adaln_norm", "decoder-first"),
        ("adaln_norm", "decoder-fp32"),
    }
)
# The first cases of this many ranks also get torch.compile, SDPA and FlexAttention.
BEST = 7
_RANK: dict[tuple[str, str], int] = {key: rank for rank, key in enumerate(RANKED)}


def rank(op: str, case: Case) -> int:
    """Return the position of a case in ``RANKED``, or the number of ranked cases if it is not listed."""
    return _RANK.get((op, case.name), len(RANKED))


def by_worth(op: str) -> list[Case]:
    """Return the cases of an op, those that decide most first; unranked ones by size, edge cases last."""
    return sorted(op_cases(op).CASES, key=lambda c: (c.edge, rank(op, c), -c.bytes_moved("forward")))


def timed_cases(op: str) -> list[Case]:
    """Return the cases of an op that a run on a GPU times, in order."""
    return [case for case in by_worth(op) if not case.edge and (op, case.name) not in UNTIMED]


def best_cases(op: str) -> list[Case]:
    """Return the cases of an op for which all baselines are compiled and timed; of each op at least its first."""
    cases = timed_cases(op)
    return [case for i, case in enumerate(cases) if i == 0 or rank(op, case) < BEST]


def ops_by_worth(ops: Sequence[str] | None = None) -> list[str]:
    """Return ops by the rank of their first case."""
    return sorted(op_names() if ops is None else ops, key=lambda op: rank(op, by_worth(op)[0]))
