"""Ranks that differ are named with their host, the report stays short, and limits follow the number of ranks."""

import pytest

from simcast_hpc.distributed.health.comparison_checks import (
    Place,
    check_cores,
    check_matmul_times,
    check_open_files,
    check_versions,
)
from simcast_hpc.distributed.ranks import find_rank
from tests.distributed.test_ranks import IDS, LAUNCHERS


def places(count: int, **of_last: object) -> list[Place]:
    all_places = [
        Place(n, f"n{n // 4}", {"torch": "2.9", "GPU": "A100"}, 0.01, (2 * n, 2 * n + 1)) for n in range(count)
    ]
    return [*all_places[:-1], all_places[-1]._replace(**of_last)]


def test_equal_ranks_have_no_warning():
    same = places(8)
    for findings in (check_versions(same), check_matmul_times(same), check_cores(same)):
        assert [one.severity for one in findings] == ["ok"]


@pytest.mark.parametrize(("name", "severity"), [("torch", "error"), ("GPU", "warning"), ("NCCL", "error")])
def test_another_version_names_its_host(name, severity):
    (finding,) = check_versions(places(8, versions={"torch": "2.9", "GPU": "A100", name: "other"}))
    assert finding.severity == severity and f"{name} differs" in finding.message and "n1 has other" in finding.message


def test_a_slow_rank_is_named_and_many_are_counted():
    (finding,) = check_matmul_times(places(8, matmul_seconds=0.02))
    assert finding.severity == "warning" and "rank 7 on n1 20 ms" in finding.message
    many = [place._replace(matmul_seconds=0.01 if place.rank % 5 else 1.0) for place in places(4096)]
    assert "and 812 more" in check_matmul_times(many)[0].message and len(check_matmul_times(many)[0].message) < 500
    assert check_matmul_times(places(2, matmul_seconds=None)) == []


@pytest.mark.parametrize(
    ("cores", "says"), [((14,), "one CPU core for rank 7 on n1"), ((12, 13, 14), "n1: the CPU bind")]
)
def test_cores_that_are_few_or_shared(cores, says):
    assert says in check_cores(places(8, cores=cores))[0].message


def test_ranks_without_binding_share_all_cores():
    assert check_cores([place._replace(cores=(0, 1, 2)) for place in places(4)])[0].severity == "ok"


def test_open_files_by_number_of_ranks():
    assert check_open_files(2, limit=2048) == [] and check_open_files(4096, limit=-1) == []
    (finding,) = check_open_files(4096, limit=4096)
    assert finding.severity == "error" and "4096 ranks need 13312" in finding.message


@pytest.mark.parametrize(("launcher", "environ"), LAUNCHERS, ids=IDS)
def test_doctor_names_the_launcher(launcher, environ):
    from simcast_hpc.distributed.health.environment_checks import check_environment

    (finding,) = (one for one in check_environment(environ, find_rank(environ)) if one.check == "launcher")
    assert finding.severity == "ok" and finding.message == f"{launcher}, world size 8"
