"""Numbers of the evidence study that README, method and recipes quote are those of the generated evidence page."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_NUMBER = r"([+-]\d+\.\d+)(?:e-3)?"
_INTERVAL = re.compile(rf"{_NUMBER}\s+\[{_NUMBER},\s+{_NUMBER}\]")

# A quoted comparison is a claim and the number of the comparison in the claim; None is not a comparison of the page.
Quoted = tuple[tuple[str, int] | None, ...]
README: Quoted = (
    ("weighting", 0), ("weighting", 1), ("skill-long", 1), ("skill-long", 0), ("hybrid", 0), ("hybrid-4x", 0),
    ("hybrid-skill-warm", 1), ("autoregression", 0), ("own-steps", 0), ("oracle", 1), ("distillation", 0),
    ("warm-distillation", 0), ("warm", 1), ("first-lead", 0),
)  # fmt: skip
METHOD: Quoted = (
    ("weighting", 0), ("autoregression", 0), ("own-steps", 0), ("oracle", 1), ("warm-distillation", 0), ("hybrid", 0),
)  # fmt: skip
RECIPES: Quoted = (
    ("warm-distillation", 0), ("warm-false-alarms", 0), ("warm-false-alarms", 1), ("warm-false-alarms", 2),
    ("distillation", 0), ("false-alarms", 0), ("false-alarms", 1), None, ("warm", 1),
)  # fmt: skip


def comparisons_of_page() -> dict[tuple[str, int], tuple[str, ...]]:
    """Return value and bounds of every comparison by claim and number."""
    found: dict[tuple[str, int], tuple[str, ...]] = {}
    key, number = "", 0
    for line in (ROOT / "docs/results/evidence.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split(" | ")]
        if not re.search(r"\([<>] 0\)$", cells[1] if len(cells) > 1 else ""):
            continue
        name = cells[0].strip("|* ")
        key, number = (name, 0) if name else (key, number + 1)
        found[key, number] = (cells[2], *cells[3].strip("[]").split(", "))
    return found


def agrees(quoted: str, exact: str) -> bool:
    """Return whether a number is rounded correctly from one with four decimals."""
    decimals = len(quoted.partition(".")[2])
    return abs(float(quoted) - float(exact)) <= 0.5 * 10**-decimals + 0.5e-4 * (decimals < 4) + 1e-9


@pytest.mark.parametrize(
    ("page", "begin", "end", "keys"),
    [
        ("README.md", "We tested SimCast's claims", "[Evidence](docs/results/evidence.md)", README),
        ("docs/concepts/method.md", "**What we found.**", "[Evidence](../results/evidence.md)", METHOD),
        ("docs/concepts/recipes.md", "## Initial weights of a student", "The default of the field", RECIPES),
    ],
)
def test_quoted_differences_are_those_of_the_evidence_page(page, begin, end, keys):
    text = (ROOT / page).read_text(encoding="utf-8")
    quoted = _INTERVAL.findall(text[text.index(begin) : text.index(end, text.index(begin))])
    assert len(quoted) == len(keys), "each number with an interval needs the comparison that it quotes"
    exact = comparisons_of_page()
    for numbers, key in zip(quoted, keys, strict=True):
        if key is not None:
            assert [agrees(*pair) for pair in zip(numbers, exact[key], strict=True)] == [True] * 3, (key, exact[key])


def test_quoted_gain_of_the_student_by_lead_time_is_that_of_the_evidence_page():
    """The range of the significant differences at single lead times has no row of its own in the claims."""
    made = (ROOT / "docs/results/evidence.md").read_text(encoding="utf-8")
    times, ends = re.search(r"at\s+([\d,\s]+and\s+\d+)\s+minutes it has a higher CSI-M \(([^)]+)\)", made).groups()
    quoted = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"{ends} at {' '.join(times.split())} minutes" in quoted


def test_agrees_with_correct_rounding_only():
    assert agrees("+0.024", "+0.0237") and agrees("+0.0237", "+0.0237") and agrees("-0.55", "-0.5462")
    assert not agrees("+0.023", "+0.0237") and not agrees("-0.024", "+0.0237") and not agrees("+0.0238", "+0.0237")
