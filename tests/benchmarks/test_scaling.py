"""The arithmetic of the scaling model: bytes of each ZeRO stage, the paper's volumes, and times.

``COUNTED`` are bytes per parameter and rank, counted by the links of two ranks with two micro-batches per step.
"""

import csv

import pytest

from benchmarks import scaling
from benchmarks.measurements import RESULTS
from benchmarks.scaling_model import (
    HEADERS,
    Cluster,
    Prediction,
    predict,
    seconds_of,
    seconds_over_slowed_link,
)
from simcast_hpc.config import EngineConfig
from simcast_hpc.planning.step_traffic import Traffic, sent_bytes_per_rank, traffic

N = 1_000_000
COUNTED = [("fp32", 0, 4.01), ("fp32", 1, 6.01), ("fp32", 2, 10.02), ("fp32", 3, 12.03), ("bf16", 1, 3.01),
           ("bf16", 2, 5.01), ("bf16", 3, 6.02)]  # fmt: skip
COLLECTIVES = RESULTS / "cpu" / "collective_counts.csv"


@pytest.mark.parametrize(("precision", "stage", "counted"), COUNTED)
def test_bytes_equal_those_counted_on_the_wire(precision, stage, counted):
    engine = EngineConfig(precision=precision, zero_stage=stage, gradient_reduction=precision)
    total = traffic(N, engine=engine, accumulation=2)
    assert sent_bytes_per_rank(total, ranks=2, gloo=True) / N == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize("reduction", ["bf16", "fp32"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_collectives_equal_those_counted_in_a_run(stage, reduction):
    """A step of two micro-batches; collectives of a few bytes (norms, flags) are not part of the model."""
    rows = [
        (row["operation"], int(row["calls"]), int(row["bytes"]))
        for row in csv.DictReader(COLLECTIVES.open(encoding="utf-8"))
        if (row["zero_stage"], row["gradient_reduction"], row["phase"], row["deepspeed"])
        == (str(stage), reduction, "step", "{}") and int(row["bytes"]) > 100
    ]  # fmt: skip
    engine = EngineConfig(zero_stage=stage, gradient_reduction=reduction)
    total = traffic(scaling.parameters(), engine=engine, accumulation=2)
    moved = {"all-reduce": total.reduced, "reduce-scatter": total.scattered, "all-gather": total.gathered}
    assert {name: size for name, _, size in rows} == pytest.approx({k: v for k, v in moved.items() if v}, rel=1e-3)
    flags = stage == 2 and reduction == "fp32"  # the norm is an all-reduce in fp32 as well
    assert sum(calls for _, calls, _ in rows) == total.rings + total.reductions + flags


@pytest.mark.parametrize(("stage", "times"), [(0, 2), (1, 2), (2, 2), (3, 3)])
def test_volumes_of_the_paper(stage, times):
    """Rajbhandari et al., section 7: 2 psi for stages 0 to 2, 3 psi for stage 3, many ranks, one micro-batch."""
    engine = EngineConfig(precision="fp32", zero_stage=stage)
    total = traffic(N, engine=engine, accumulation=1, paper=True)
    assert sent_bytes_per_rank(total, ranks=10**6) / (4 * N) == pytest.approx(times, rel=1e-4)


def test_large_model_is_gathered_twice_once_inside_a_partition():
    many, of = 2 * 10**9, {"precision": "bf16", "zero_stage": 3, "gradient_reduction": "bf16"}
    plain = traffic(many, engine=EngineConfig(**of), accumulation=3)
    assert (plain.gathered, plain.scattered) == (3 * 2 * 2 * many, 3 * 2 * many)
    inside = traffic(many, engine=EngineConfig(zero_hpz_partition_size=8, **of), accumulation=3)
    assert (inside.gathered, inside.gathered_inside) == (3 * 2 * many, 3 * 2 * many)
    by_hand = 63 / 64 * (2 + 2) * 3 * many + 7 / 8 * 2 * 3 * many
    assert sent_bytes_per_rank(inside, ranks=64, partition=8) == pytest.approx(by_hand)
    small = traffic(N, engine=EngineConfig(zero_hpz_partition_size=8, **of), accumulation=1)
    assert small.gathered_inside == 0, "weights are kept from forward to backward"


def test_time_of_collectives_in_two_levels():
    cluster = Cluster(gpus_per_node=4, inside=100.0, outside=10.0, latency_inside=0.0, latency_outside=0.0, flops=1.0)
    total = traffic(1000, engine=EngineConfig(precision="fp32", zero_stage=0), accumulation=1)
    assert seconds_of(total, gpus=4, cluster=cluster) == pytest.approx(2 * 4000 * 3 / 4 / 100)
    assert seconds_of(total, gpus=8, cluster=cluster) == pytest.approx(2 * (3000 / 100 + 4000 / 4 / 2 / 10))


def test_latency_of_a_ring_grows_with_the_ranks_and_that_of_a_tree_with_their_logarithm():
    late = Cluster(gpus_per_node=4, inside=1e99, outside=1e99, latency_inside=2.0, latency_outside=10.0, flops=1.0)
    assert seconds_of(Traffic(rings=3), gpus=4, cluster=late) == pytest.approx(3 * 3 * 2.0)
    assert seconds_of(Traffic(rings=3), gpus=16, cluster=late) == pytest.approx(3 * (12 * 2.0 + 3 * 10.0))
    assert seconds_of(Traffic(reductions=1), gpus=16, cluster=late) == pytest.approx(2 * (3 * 2.0 + 2 * 10.0))


def test_overlap_bounds_a_step_and_one_gpu_does_not_communicate():
    step = Prediction(compute=1.0, communication=3.0)
    assert (step.shortest, step.longest) == (3.0, 4.0)
    single = predict(N, 10**12, engine=EngineConfig(), accumulation=2, gpus=1, cluster=Cluster())
    assert single.communication == 0.0 and single.compute == pytest.approx(2e12 / Cluster().flops)


def test_slowed_link_adds_bytes_over_rate():
    assert seconds_over_slowed_link(1.0, 12_500_000, megabits=100) == pytest.approx(1.0 + HEADERS)


def test_writes_predictions_as_estimates(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scaling, "costs", lambda _: (976_274_441, 44_729 * 10**9))
    assert scaling.main(["--predict", "--csv", str(tmp_path / "scaling.csv")]) == 0
    assert "are estimates" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "scaling.csv").open(encoding="utf-8")))
    assert {row["kind"] for row in rows} == {"model", "spatial model"} and {row["ranks"] for row in rows} >= {
        "8",
        "4096",
    }
    assert all(float(row["model_seconds_overlapped"]) <= float(row["model_seconds"]) for row in rows)
    assert all(row["commit"] and not row.get("seconds") for row in rows)


def test_compares_measured_turns_with_the_model(tmp_path, capsys, monkeypatch):
    def turns(ranks, engines, megabits, batch, options, *, kind):
        sent = {0: 4.01, 1: 5.01, 2: 5.01, 3: 5.01}
        about = {"kind": kind, "ranks": ranks, "model": "test", "steps": options.steps, "load": 1.0}
        about["accumulation"] = batch["global_size"] // (batch["micro_size"] * ranks)
        return [
            {**about, **engine, "megabits": speed, "turn": turn, "seconds": 1.0 if speed is None else 5.0,
             "processor_seconds": 0.5, "sent_bytes": sent[engine["zero_stage"]] * scaling.parameters()}
            for engine in engines for turn in range(options.turns) for speed in megabits
        ]  # fmt: skip

    monkeypatch.setattr(scaling, "run", turns)
    monkeypatch.setattr(scaling, "costs", lambda _: (976_274_441, 44_729 * 10**9))
    path = tmp_path / "scaling.csv"
    assert scaling.main(["--turns", "2", "--steps", "3", "--megabits", "50", "--csv", str(path)]) == 0
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    slowed = [row for row in rows if row["megabits"]]
    assert len(slowed) == 4 * 2 and all(row["model_seconds"] and row["model_error"] for row in slowed)
    assert all(float(row["sent_bytes"]) == pytest.approx(float(row["computed_bytes"]), rel=0.01) for row in slowed)
    measured = [row for row in rows if "model" not in row["kind"]]
    assert {(row["steps"], row["load"]) for row in measured} == {("3", "1.0")}
    assert all(row["device"].endswith("CPU, 1 threads") and row["python"] for row in rows), "threads per rank"
    assert "model compared with 8 turns" in capsys.readouterr().out
