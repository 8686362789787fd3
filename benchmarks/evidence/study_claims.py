"""All claims of the study, and which of them were formulated after its first results."""

import re
from dataclasses import replace

from .arms import BASELINES, arms_of
from .claims import Claim
from .control_claims import control_claims
from .hybrid_claims import few_data_claims, hybrid_claims
from .paper_claims import paper_claims
from .study import Study

STATED_LATER = (
    "short-horizon", "robustness", "saw-tooth", "own-steps", "own-steps-future", "own-steps-4x", "long", "longest",
    "long-student", "long-distillation", "best-case", "longer-teacher", "longer-teacher-students", "warm-distillation",
    "warm-false-alarms", "warm-long", "skill-long", "first-lead",
)  # fmt: skip
"""Claims that were formulated, or changed, after the first results of ``study.yaml``."""
LATER_ORIGINS = ("hybrid", "few data")
"""Origins of which all claims were formulated after the first results."""


def claims_of(study: Study) -> tuple[Claim, ...]:
    """Return all claims: the paper's, the controls, those on hybrid networks and on few data."""
    every = (*paper_claims(study), *control_claims(study), *hybrid_claims(study), *few_data_claims(study))
    return tuple(_with_steps(claim, study.steps) for claim in every)


def _with_steps(claim: Claim, steps: int) -> Claim:
    """Return a claim whose text has numbers of steps instead of multiples of ``steps`` such as ``4x``."""
    comparisons = tuple(one._replace(label=in_steps(one.label, steps)) for one in claim.comparisons)
    return replace(claim, statement=in_steps(claim.statement, steps), comparisons=comparisons)


def in_steps(text: str, steps: int) -> str:
    """Return a text with ``4x steps`` replaced by ``2400 steps`` and ``4x student`` by ``2400-step student``."""
    text = re.sub(r"\b(\d+)x steps", lambda match: f"{int(match[1]) * steps} steps", text)
    return re.sub(r"\b(\d+)x (?=[a-z])", lambda match: f"{int(match[1]) * steps}-step ", text)


def arms_in_claims(study: Study) -> set[str]:
    """Return the arms of all claims, and their teachers."""
    named = {arm for claim in claims_of(study) for comparison in claim.comparisons for arm, _ in comparison.terms}
    arms = [arm for arm in arms_of(study) if arm.name in named - set(BASELINES)]
    return {arm.name for arm in arms} | {arm.teacher for arm in arms if arm.teacher is not None}
