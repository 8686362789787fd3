"""The learning rate as a function of the step: ends, peak, monotonicity, and runs of very few steps."""

from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError

from simcast_hpc.config import BatchRuleConfig, OptimizerConfig
from simcast_hpc.train.learning_rate import adam_betas, learning_rate

PEAK = 4e-3


def _rates(schedule: str, *, steps: int, warmup: float = 0.3) -> list[float]:
    config = OptimizerConfig(learning_rate=PEAK, schedule=schedule, warmup_fraction=warmup)  # pyright: ignore[reportArgumentType]
    return [learning_rate(step, max_steps=steps, config=config) for step in range(steps)]


def _assert_rises_then_falls(rates: list[float], top: int) -> None:
    assert all(one < other for one, other in pairwise(rates[: top + 1]))
    assert all(one > other for one, other in pairwise(rates[top:]))


def test_one_cycle_rises_from_peak_over_25_and_falls_to_almost_zero():
    rates = _rates("one_cycle", steps=1000)
    assert rates[0] == pytest.approx(PEAK / 25)
    assert rates[300] == pytest.approx(PEAK)
    assert rates[150] == pytest.approx((PEAK + PEAK / 25) / 2)
    assert rates[-1] == pytest.approx(PEAK / 25 / 1e4)
    assert (rates[649] + rates[650]) / 2 == pytest.approx((PEAK + PEAK / 25e4) / 2, rel=1e-3)
    _assert_rises_then_falls(rates, 300)


def test_cosine_rises_linearly_and_falls_to_a_thousandth_of_the_peak():
    rates = _rates("cosine", steps=1000, warmup=0.1)
    assert rates[0] == pytest.approx(PEAK / 100) and rates[49] == pytest.approx(PEAK / 2)
    assert rates[99] == pytest.approx(PEAK) and rates[100] == pytest.approx(PEAK)
    assert rates[-1] == pytest.approx(PEAK / 1000)
    _assert_rises_then_falls(rates[:100], 99)
    _assert_rises_then_falls(rates[100:], 0)


def test_constant_rises_linearly_and_stays():
    rates = _rates("constant", steps=100, warmup=0.2)
    assert rates[:20] == pytest.approx([PEAK * (step + 1) / 20 for step in range(20)])
    assert rates[20:] == [PEAK] * 80


@pytest.mark.parametrize(("rule", "factor"), [("sqrt", 2.0), ("linear", 4.0)])
@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant"])
def test_batch_rule_scales_the_whole_schedule(schedule, rule, factor):
    section = BatchRuleConfig(reference_size=32, rule=rule, warmup_steps=10)
    config = OptimizerConfig(learning_rate=PEAK, schedule=schedule, batch_rule=section)
    plain = OptimizerConfig(learning_rate=PEAK, schedule=schedule, warmup_fraction=0.1)
    for size, expected in ((32, 1.0), (128, factor), (8, 1 / factor)):
        rates = [learning_rate(step, max_steps=100, config=config, global_size=size) for step in range(100)]
        others = [learning_rate(step, max_steps=100, config=plain, global_size=size) for step in range(100)]
        assert rates == pytest.approx([expected * rate for rate in others])


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
def test_final_fraction_sets_the_end_and_changes_nothing_before_the_peak(schedule):
    default = OptimizerConfig(learning_rate=PEAK, schedule=schedule)
    changed = default.model_copy(update={"final_fraction": 0.1})
    rates, others = (
        [learning_rate(step, max_steps=100, config=one) for step in range(100)] for one in (default, changed)
    )
    top = rates.index(max(rates))
    assert others[: top + 1] == rates[: top + 1]
    assert others[-1] == pytest.approx(PEAK / 10)
    assert all(one >= other for one, other in pairwise(others[top:]))
    assert all(one <= other for one, other in zip(rates[top:], others[top:], strict=True))


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant"])
def test_starts_at_the_peak_without_warm_up(schedule):
    rates = _rates(schedule, steps=50, warmup=0.0)
    assert rates[0] == pytest.approx(PEAK)
    assert rates[-1] == pytest.approx({"one_cycle": PEAK / 25e4, "cosine": PEAK / 1000, "constant": PEAK}[schedule])


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 0.5, 0.999])
def test_runs_of_few_steps_have_valid_rates(schedule, steps, warmup):
    rates = _rates(schedule, steps=steps, warmup=warmup)
    assert all(0 < rate <= PEAK * (1 + 1e-12) for rate in rates)
    top = rates.index(max(rates))
    assert all(one <= other for one, other in pairwise(rates[: top + 1]))
    assert all(one >= other for one, other in pairwise(rates[top:]))


def test_rate_depends_on_the_step_only():
    config = OptimizerConfig(learning_rate=PEAK)
    assert learning_rate(70, max_steps=100, config=config) == _rates("one_cycle", steps=100)[70]


def test_one_cycle_and_its_momentum_equal_those_of_torch():
    # For the same warm-up fraction torch reaches the peak one step earlier, so its fraction is one step longer here.
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], betas=(0.9, 0.99))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=PEAK, total_steps=1002, pct_start=301 / 1002)
    expected = []
    for _ in range(1002):
        expected.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]))
        optimizer.step()
        scheduler.step()
    config = OptimizerConfig(learning_rate=PEAK, betas=(0.9, 0.99), cycle_momentum=True, warmup_fraction=300 / 1002)
    for step in range(1002):
        rate, betas = expected[step]
        assert learning_rate(step, max_steps=1002, config=config) == pytest.approx(rate, rel=1e-9)
        assert adam_betas(step, max_steps=1002, config=config) == pytest.approx(betas, rel=1e-9)
    assert min(betas[0] for _, betas in expected) == 0.85 and expected[300][1][0] == 0.85


def test_betas_are_constant_without_cycling():
    config = OptimizerConfig(betas=(0.8, 0.95))
    assert {adam_betas(step, max_steps=20, config=config) for step in range(20)} == {(0.8, 0.95)}
    with pytest.raises(ValidationError, match="cycle_momentum=true requires"):
        OptimizerConfig(cycle_momentum=True, schedule="cosine")
