"""Rank 0 reads the data and the run directory and decides for all ranks; its error is raised and printed once."""

import pickle
import shutil
import sys
from typing import Any

import pytest

from simcast_hpc import cli
from simcast_hpc.config import ConfigError, DataError, SimcastError
from simcast_hpc.data.synthetic import write_archive
from simcast_hpc.distributed.ranks import Ranks
from simcast_hpc.train import trainer
from tests.archives import tiny_config
from tests.data.shards import prepared
from tests.train.conftest import data_section


class _Rank(Ranks):
    """One of two ranks that run one after the other: rank 0 stores what it broadcasts, rank 1 reads it."""

    size = 2

    def __init__(self, rank: int, sent: list[bytes]):
        self.rank, self._sent = rank, sent

    def gather(self, thing: Any) -> list[Any]:
        return [thing]

    def broadcast(self, thing: Any) -> Any:
        if self.rank == 0:
            self._sent.append(pickle.dumps(thing))
        return pickle.loads(self._sent[0])


@pytest.mark.parametrize("form", ["archive", "shards", "importance sampling"])
def test_other_ranks_open_no_file_of_the_data_or_the_run(tmp_path, form):
    data, raw = tmp_path / "data", tmp_path / "raw"
    write_archive(raw, seed=5, events={"train": 3, "val": 2, "test": 1}, size=16, frames_per_event=12)
    if form == "archive":
        shutil.copytree(raw, data)
    else:
        prepared(raw, data)
    sampling = {"kind": "importance"} if form == "importance sampling" else None
    section = data_section(data, sampling=sampling)
    config = tiny_config(tmp_path / "run", stage="direct", data=section, validation={"every_steps": 2})
    sent: list[bytes] = []
    first, marker = trainer._plan_together(config, _Rank(0, sent))
    shutil.rmtree(data)
    opened: list[str] = []
    active = [True]

    def record(event: str, arguments: tuple[Any, ...]) -> None:
        if active[0] and event in ("open", "os.listdir", "os.scandir"):
            opened.append(str(arguments[0]))

    sys.addaudithook(record)  # cannot be removed
    other, _ = trainer._plan_together(config, _Rank(1, sent))
    active[0] = False
    assert marker is None and not [path for path in opened if str(tmp_path) in path]
    assert other.identity == first.identity and other.sampled_by == first.sampled_by
    assert [other.order.index(place) for place in range(9)] == [first.order.index(place) for place in range(9)]
    assert other.validation is not None and first.validation is not None
    assert other.validation.source.fingerprint == first.validation.source.fingerprint


def test_a_failure_of_rank_0_is_raised_on_all_ranks_and_printed_once(tmp_path, capsys):
    config = tiny_config(tmp_path / "run", stage="direct", data=data_section(tmp_path / "absent"))
    sent: list[bytes] = []
    errors = []
    for rank in range(2):
        with pytest.raises((ConfigError, DataError)) as caught:
            trainer._plan_together(config, _Rank(rank, sent))
        cli._print_error(caught.value)
        errors.append(caught.value)
    assert str(errors[0]) == str(errors[1]) and type(errors[0]) is type(errors[1])
    assert capsys.readouterr().err.count(str(errors[0])) == 1


def test_any_exception_of_rank_0_ends_the_others():
    class Odd(Exception):
        def __init__(self, one: int, two: int):
            super().__init__(f"{one} and {two}")

    def fail() -> None:
        raise Odd(1, 2)

    sent: list[bytes] = []
    with pytest.raises(Odd):
        _Rank(0, sent).on_first(fail)
    with pytest.raises(SimcastError, match="rank 0: 1 and 2"):
        _Rank(1, sent).on_first(fail)
