"""Sample order and random integers: pure functions of seed and position, independent of layout and resuming."""

from itertools import islice

import numpy as np
import pytest

from simcast_hpc.data.sample_order import random_integer, rank_positions, sample_index

LAYOUTS = [
    (1, 12),
    (1, 4),
    (1, 1),
    (2, 3),
    (3, 4),
    (4, 3),
    (6, 2),
    (12, 1),
]  # world size, micro-batch size; 12 samples per step


def _step(step: int, *, world_size: int, micro_size: int, global_size: int = 12) -> list[list[int]]:
    """Return the positions of each rank in one optimizer step."""
    micro_steps = global_size // (world_size * micro_size)
    return [
        [
            position
            for micro in islice(
                rank_positions(
                    first_step=step, global_size=global_size, micro_size=micro_size, rank=rank, world_size=world_size
                ),
                micro_steps,
            )
            for position in micro
        ]
        for rank in range(world_size)
    ]


@pytest.mark.parametrize(("world_size", "micro_size"), LAYOUTS)
@pytest.mark.parametrize("step", [0, 1, 7])
def test_step_has_the_same_samples_in_each_layout(world_size, micro_size, step):
    ranks = _step(step, world_size=world_size, micro_size=micro_size)
    assert {len(own) for own in ranks} == {12 // world_size}
    assert sorted(position for own in ranks for position in own) == list(range(12 * step, 12 * step + 12))


@pytest.mark.parametrize(("world_size", "micro_size"), LAYOUTS)
def test_resuming_continues_the_order(world_size, micro_size):
    micro_steps = 12 // (world_size * micro_size)
    for rank in range(world_size):
        layout = {"global_size": 12, "micro_size": micro_size, "rank": rank, "world_size": world_size}
        uninterrupted = list(islice(rank_positions(first_step=0, **layout), 5 * micro_steps))
        resumed = list(islice(rank_positions(first_step=3, **layout), 2 * micro_steps))
        assert uninterrupted[3 * micro_steps :] == resumed
        assert {len(micro) for micro in uninterrupted} == {micro_size}


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_each_epoch_is_a_permutation(size):
    for epoch in range(4):
        places = range(epoch * size, (epoch + 1) * size)
        assert sorted(sample_index(place, seed=3, size=size) for place in places) == list(range(size))


def test_epochs_and_seeds_are_shuffled_differently():
    def epoch(number: int, seed: int) -> tuple[int, ...]:
        return tuple(sample_index(100 * number + place, seed=seed, size=100) for place in range(100))

    orders = [epoch(number, seed) for number in range(4) for seed in range(4)]
    assert len(set(orders)) == len(orders)
    assert tuple(range(100)) not in orders
    assert epoch(2, 1) == orders[9]


def test_sample_index_at_a_far_position():
    far = 10**9 + 7
    assert sample_index(far, seed=1, size=1000) == sample_index(far, seed=1, size=1000)
    assert 0 <= sample_index(far, seed=1, size=1000) < 1000


@pytest.mark.parametrize("choices", [2, 7, 8])
@pytest.mark.parametrize("purpose", ["student-start", "symmetry"])
def test_random_integers_are_uniform(choices, purpose):
    count = 4000
    numbers = [random_integer(position, seed=11, purpose=purpose, choices=choices) for position in range(count)]
    seen = np.bincount(numbers, minlength=choices)
    assert len(seen) == choices
    expected = count / choices
    chi_square = ((seen - expected) ** 2 / expected).sum()
    assert chi_square < choices - 1 + 5 * np.sqrt(2 * (choices - 1))


@pytest.mark.parametrize("other", [{"purpose": "symmetry"}, {"seed": 12}, {"shift": 1}], ids=str)
def test_random_integers_of_other_purpose_seed_or_sample_are_independent(other):
    count, choices = 4000, 4
    shift, other = other.get("shift", 0), {key: value for key, value in other.items() if key != "shift"}
    arguments = {"seed": 11, "purpose": "teacher-start", "choices": choices}
    table = np.zeros((choices, choices))
    for position in range(count):
        table[random_integer(position, **arguments), random_integer(position + shift, **(arguments | other))] += 1
    expected = count / choices**2
    freedom = (choices - 1) ** 2
    assert ((table - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)


def test_random_integer_is_repeatable_and_in_range():
    for position in (0, 1, 10**6, 2**40):
        assert random_integer(position, seed=0, purpose="x", choices=1) == 0
        first = random_integer(position, seed=0, purpose="x", choices=1000)
        assert first == random_integer(position, seed=0, purpose="x", choices=1000)
        assert 0 <= first < 1000
