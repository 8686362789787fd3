"""Checkpoints on several ranks: bitwise identical at any ZeRO stage and number of ranks, and one error on all ranks."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from simcast_hpc.train.checkpoint import latest, visible
from tests.multi_rank.runs import environment

pytestmark = pytest.mark.multi
_ELEMENTS = 7 * 11 + 3 + 1 + 5 * 3 * 9
_LARGEST_SECONDS = 120  # a rank that waits for another one would take four minutes


def _run(folder: Path, jobs: list[tuple[int, list[tuple[str, list[str], dict[str, Any]]]]]) -> dict[int, list[Any]]:
    """Run actions on ranks; return, by number of ranks, the results of an action on every rank."""
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "tests.multi_rank.checkpoint_ranks", str(path)],
        cwd=Path(__file__).resolve().parents[2],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    found = {}
    for size, _ in jobs:
        of_ranks = [
            json.loads((folder / f"result-{size}-{rank}.json").read_text(encoding="utf-8")) for rank in range(size)
        ]
        found[size] = list(zip(*of_ranks, strict=True))
    return found


def _assert_equal(one: Path, other: Path) -> None:
    left, right = latest(one), latest(other)
    assert left is not None and right is not None
    assert left.manifest["parameters"] == right.manifest["parameters"]
    for name in left.manifest["parameters"]:
        expected, actual = left.tensors(name), right.tensors(name)
        assert all(torch.equal(expected[kind], actual[kind]) for kind in expected), name
        assert torch.equal(left.average(name), right.average(name)), name


# Saved by (ranks, stage), restored and saved again by (ranks, stage).
_COVERING = [((3, 0), (2, 3)), ((3, 1), (2, 2)), ((3, 2), (2, 0)), ((3, 3), (2, 1))]
_PRODUCT = list(product(product((1, 2, 4), range(4)), repeat=2))


@pytest.mark.parametrize("cells", [_COVERING, pytest.param(_PRODUCT, marks=pytest.mark.slow)], ids=["some", "product"])
def test_every_layout_restores_the_bits_of_every_other_and_reads_its_share(cells, tmp_path):
    def folder(*layouts: tuple[int, int]) -> Path:
        return tmp_path / "-".join(f"{ranks}x{stage}" for ranks, stage in layouts)

    saved = sorted({cell[0] for cell in cells})
    first = [
        (n, [("save", [str(folder(one))], {"stage": one[1]}) for one in saved if one[0] == n]) for n in (1, 2, 3, 4)
    ]
    _run(tmp_path, [job for job in first if job[1]])
    again = [
        (
            n,
            [
                ("copy", [str(folder(one)), str(folder(one, other))], {"stage": other[1]})
                for one, other in cells
                if other[0] == n
            ],
        )
        for n in (1, 2, 4)
    ]
    results = _run(tmp_path, [job for job in again if job[1]])
    for ranks, actions in again:
        for (_, (source, target), options), of_ranks in zip(actions, results.get(ranks, []), strict=True):
            _assert_equal(Path(source), Path(target))
            total = 0
            for rank, result in enumerate(of_ranks):
                read = result["returned"]
                assert read["loss"] == read["expected"] or abs(read["loss"] - read["expected"]) < 1e-5
                total += read["bytes"]
                if options["stage"]:  # a rank reads what it holds; its range has at most this many elements
                    share = 16 * (-(-_ELEMENTS // ranks) + 32)
                    assert 0 < read["bytes"] <= share, (source, target, rank)
            assert total == 16 * _ELEMENTS, "each element of the four kinds is read by one rank"


@pytest.mark.parametrize(
    "layouts", [[(2, 1)], pytest.param([(2, 0), (2, 2), (3, 1), (3, 3)], marks=pytest.mark.slow)], ids=["one", "some"]
)
def test_one_rank_that_cannot_write_or_read_ends_all_with_its_error(layouts, tmp_path):
    jobs, expected = [], []
    for size, stage in layouts:
        last, whole, empty = size - 1, str(tmp_path / f"{size}-{stage}"), str(tmp_path / f"{size}-{stage}-empty")
        broken = 0 if stage == 0 else last  # without ZeRO rank 0 reads
        actions = [
            ("save", [whole], {"stage": stage}),
            ("fail_to_write", [empty], {"stage": stage, "rank": last}),
            ("fail_to_read", [whole], {"stage": stage, "rank": broken, "kind": "exp_avg"}),
            ("fail_to_read", [whole], {"stage": stage, "rank": last, "kind": "ema"}),
            ("fail_to_verify", [whole], {"rank": last, "error": 1}),
            ("fail_to_verify", [whole], {"rank": last, "error": 2}),
        ]
        messages = [
            None,
            (f"rank {last}: ", f"rank-{last:05d}.safetensors"),
            (f"rank {broken}: ", "safetensors: exp_avg/"),
            (f"rank {last}: ", "safetensors: ema/"),
            (f"rank {last}: ", "safetensors"),
            (f"rank {last}: ", "manifest.json"),
        ]
        jobs.append((size, actions))
        expected.append((empty, messages))
    for job, (empty, messages) in zip(jobs, expected, strict=True):
        for parts, of_ranks in zip(messages, _run(tmp_path, [job])[job[0]], strict=True):
            errors = {result.get("error") for result in of_ranks}
            assert len(errors) == 1, f"one error on all ranks, not {errors}"
            assert max(result["seconds"] for result in of_ranks) < _LARGEST_SECONDS
            (error,) = errors
            assert (error is None) == (parts is None)
            assert parts is None or all(part in error for part in parts), error
        assert not visible(Path(empty)), "what is incomplete is not visible"


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_hierarchical_partition_reads_the_share_of_each_rank(ranks, tmp_path):
    source, target = str(tmp_path / "source"), str(tmp_path / "target")
    options = {"stage": 3, "hpz": 2}
    results = _run(tmp_path, [(ranks, [("save", [source], options), ("copy", [source, target], options)])])
    _assert_equal(Path(source), Path(target))
    for result in results[ranks][1]:
        read = result["returned"]
        assert read["loss"] == pytest.approx(read["expected"], abs=1e-5)
        assert read["bytes"] <= 16 * (-(-_ELEMENTS // ranks) + 8)


def test_parameters_without_elements_are_saved_and_restored(tmp_path):
    source, target = str(tmp_path / "source"), str(tmp_path / "target")
    _run(tmp_path, [(2, [("save", [source], {"stage": 0, "empty": True})])])
    _run(tmp_path, [(1, [("copy", [source, target], {"stage": 0, "empty": True})])])
    _assert_equal(Path(source), Path(target))
