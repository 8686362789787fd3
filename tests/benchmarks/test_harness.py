"""The benchmark harness: rejects wrong providers, counts bytes, restores the environment."""

import csv
import dataclasses
import os

import pytest
import torch

from benchmarks import harness, weighted_mse
from benchmarks.cases.cuboid_attention_cases import CASES as ATTENTIONS
from benchmarks.cases.layer_norm_linear_cases import CASES as LAYERS
from benchmarks.cases.weighted_mse_cases import CASES
from benchmarks.harness import run_case
from benchmarks.providers import INTERPRETER, Benchmark, Provider, grouped
from benchmarks.timing import Roofline, cache_bytes, measured_roofline, quantile, set_count, stored_roofline

COLUMNS = (
    "op", "provider", "mode", "case", "p20", "p50", "p80", "gb_per_s", "fraction_of_copy", "limit", "fraction_of_limit",
)  # fmt: skip
SLOW = Roofline(copy=1e9, matmuls={torch.float32: 1e10})
ODD = next(case for case in CASES if case.name == "odd")


def providers_with(*extra: Provider):
    def providers(case, device):
        def expression(prediction, target, mask):
            return weighted_mse.exact(case, prediction, target, mask)

        return [Provider(name="pytorch", function=expression), *extra]

    return Benchmark(op="weighted_mse", tensors=weighted_mse.tensors, providers=providers, exact=weighted_mse.exact)


def rows_of(benchmark, **more):
    return list(run_case(benchmark, ODD, device="cpu", modes=["forward"], roofline=SLOW, **more))


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (lambda loss, prediction: loss * (1 + 1e-5), "result"),
        (lambda loss, prediction: loss + 1e-5 * (prediction.sum() - prediction.detach().sum()), "gradient"),
        (lambda loss, prediction: loss * float("nan"), "result nan"),
    ],
    ids=["result", "gradient", "nan"],
)
def test_wrong_provider_is_not_timed(wrong, what):
    def function(prediction, target, mask):
        return wrong(weighted_mse.exact(ODD, prediction, target, mask), prediction)

    after = Provider(name="after", function=providers_with().providers(ODD, "cpu")[0].function)
    rows = rows_of(providers_with(Provider(name="fast", function=function), after))
    assert [(row["provider"], row["p50"] is None) for row in rows] == [
        ("pytorch", False),
        ("fast", True),
        ("after", False),
    ]
    assert f"wrong: weighted_mse, fast, odd: RMS error ratio of the {what}" in rows[1]["status"]
    assert [harness.is_failure(row) for row in rows] == [False, True, False]


@pytest.mark.parametrize(
    "error", [RuntimeError("no kernel\nmore"), torch.cuda.OutOfMemoryError("2 GiB"), KeyError("x")]
)
def test_failing_provider_is_a_row_with_the_reason(error):
    def function(*_):
        raise error

    rows = rows_of(providers_with(Provider(name="flex", function=function), Provider(name="triton", function=function)))
    assert [row["provider"] for row in rows] == ["triton", "pytorch", "flex"], "the op itself is first"
    assert [row["status"] for row in rows if row["provider"] == "flex"] == [harness.reason(error)]
    assert harness.reason(error).startswith(type(error).__name__) and "more" not in harness.reason(error)
    assert [harness.is_failure(row) for row in rows] == [True, False, False], "a baseline that fails is no failure"


def test_groups_divide_the_providers():
    many = [Provider(name=name, function=torch.sum) for name in ("pytorch", "eager", "compiled", "flex", "triton")]
    names = {group: [p.name for p in grouped(many, group)] for group in ("all", "first", "rest")}
    assert names["first"] == ["triton", "eager"] and names["rest"] == ["pytorch", "compiled", "flex"]
    assert names["all"][0] == "triton" and sorted(names["all"]) == sorted(names["first"] + names["rest"])


def test_inputs_that_cannot_be_made_are_a_row():
    def tensors(case, device, seed):
        raise torch.cuda.OutOfMemoryError("80 GiB")

    benchmark = dataclasses.replace(providers_with(), tensors=tensors)
    assert [(row["provider"], row["status"]) for row in rows_of(benchmark)] == [("inputs", "OutOfMemoryError: 80 GiB")]


def test_only_checked_providers_have_no_rows():
    calls = []

    def function(*tensors):
        calls.append(1)
        return weighted_mse.exact(ODD, *tensors)

    benchmark = providers_with(Provider(name="compiled", function=function))
    assert list(run_case(benchmark, ODD, device="cpu", modes=[], roofline=SLOW, group="rest")) == []
    assert calls == [1]


def test_resume_keeps_rows_and_runs_only_missing_providers(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.timing.measured_roofline", lambda device, dtypes: SLOW)
    path, calls = tmp_path / "out.csv", []

    def function(*tensors):
        calls.append(1)
        return weighted_mse.exact(ODD, *tensors)

    arguments = ["--case", "odd", "--mode", "forward", "--device", "cpu", "--csv", str(path), "--mode-seconds", "0.01"]
    assert harness.main(providers_with(), arguments) == 0
    (first,) = harness.read_rows(path)
    harness.write_rows([first, first | {"provider": "hung", "status": "stopped after 9 s"}], path)
    same = providers_with().providers(ODD, "cpu")[0].function
    more = [Provider(name="hung", function=function), Provider(name="compiled", function=same)]
    assert harness.main(providers_with(*more), [*arguments, "--resume"]) == 0
    rows = harness.read_rows(path)
    assert [row["provider"] for row in rows] == ["pytorch", "hung", "compiled"] and rows[0] == first and not calls


def test_stored_ceilings_are_not_measured_again(tmp_path, monkeypatch):
    seen = []

    def measured(device, dtypes):
        seen.append(list(dtypes))
        return Roofline(copy=1e9, matmuls=dict.fromkeys(dtypes, 2e12))

    monkeypatch.setattr("benchmarks.timing.measured_roofline", measured)
    path = tmp_path / "roofline.json"
    assert stored_roofline("cpu", [torch.float32], path).matmuls == {torch.float32: 2e12}
    assert stored_roofline("cpu", [torch.float32, torch.bfloat16], path).copy == 1e9
    assert stored_roofline("cpu", [torch.bfloat16], path).matmuls == {torch.bfloat16: 2e12}
    assert seen == [[torch.float32], [torch.bfloat16]]


def test_rows_contain_bytes_and_bandwidth():
    rows = list(run_case(providers_with(), ODD, device="cpu", modes=harness.MODES, roofline=Roofline(copy=2e9)))
    assert [row["mode"] for row in rows] == ["forward", "backward", "full"]
    assert [row["bytes"] for row in rows] == [5187 * (4 + 4 + 1 + 4), 5187 * 8, 5187 * 21]
    for row in rows:
        assert row["gb_per_s"] is not None
        assert 0 < row["p20"] <= row["p50"] <= row["p80"]
        assert row["gb_per_s"] == pytest.approx(row["bytes"] / row["p50"] / 1e3, rel=0.01, abs=1e-3)
        assert row["fraction_of_copy"] == pytest.approx(row["gb_per_s"] / 2, rel=0.01, abs=1e-3)
        assert (row["operations"], row["limit"], row["fraction_of_limit"]) == (0, "memory", row["fraction_of_copy"])


def test_the_lower_ceiling_is_the_limit():
    roofline = Roofline(copy=1e9, matmuls={torch.float32: 1e10})
    assert roofline.floor(10**9, 0, torch.bfloat16) == (1.0, "memory")
    assert roofline.floor(10**9, 10**10 - 10, torch.float32) == (1.0, "memory")
    assert roofline.floor(10**9, 3 * 10**10, torch.float32) == (3.0, "matmul")


def test_operations_are_the_flops_of_the_matmuls():
    layers = next(case for case in LAYERS if case.name == "tiny")
    assert layers.operations("forward") == layers.operations("backward") == 2 * 30 * 24 * 47
    attention = next(case for case in ATTENTIONS if case.name == "sevir-axial-h")
    # 8 x 13 x 32 x 32 queries of 128 features, 32 keys and 8 vectors each, two matmuls
    assert attention.operations("forward") == 2 * 2 * 8 * 13 * 32 * 32 * 40 * 128
    assert attention.operations("backward") == attention.operations("forward") * 5 // 2
    cross = next(case for case in ATTENTIONS if case.name == "tiny-cross")
    assert cross.operations("forward") == 2 * 2 * (2 * 4 * 5) * (3 * 2 * 2) * 24, "the cuboid is cut to 3 frames"


def test_both_ceilings_of_this_machine_are_measured(monkeypatch):
    monkeypatch.setattr("benchmarks.timing.cache_bytes", lambda device: 2**22)
    roofline = measured_roofline("cpu", [torch.float32])
    assert roofline.copy > 1e8 and roofline.matmuls[torch.float32] > 1e8


def test_inputs_rotate_beyond_the_cache_size():
    assert cache_bytes("cpu") >= 2**20
    assert set_count(cache_bytes("cpu"), "cpu") >= 2
    assert set_count(2**12, "cpu") == 16, "tiny sets are bounded by number, large ones by memory"
    assert set_count(2**30, "cpu") == 2


def test_quantiles_are_measured_times():
    assert [quantile([3.0, 1.0, 2.0, 5.0, 4.0], q) for q in (0.0, 0.2, 0.5, 0.8, 1.0)] == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_interpreter_has_no_bandwidth():
    def expression(prediction, target, mask):
        return weighted_mse.exact(ODD, prediction, target, mask)

    benchmark = providers_with(Provider(name=INTERPRETER, function=expression))
    row = rows_of(benchmark)[0]
    assert row["provider"] == "interpreter" and row["gb_per_s"] is None and row["fraction_of_copy"] is None


def test_implementation_is_set_only_for_the_provider(monkeypatch):
    monkeypatch.setenv("SIMCAST_KERNELS", "triton")
    seen = []

    def function(prediction, target, mask):
        seen.append(os.environ.get("SIMCAST_KERNELS"))
        return weighted_mse.exact(ODD, prediction, target, mask)

    benchmark = providers_with(Provider(name="op", function=function, implementation="reference"))
    list(run_case(benchmark, ODD, device="cpu", modes=["forward"], roofline=SLOW))
    assert set(seen) == {"reference"}
    assert os.environ["SIMCAST_KERNELS"] == "triton"


def test_main_writes_the_columns_and_prints_ratios(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.timing.measured_roofline", lambda device, dtypes: SLOW)
    path = tmp_path / "out.csv"
    arguments = ["--case", "odd", "--mode", "forward", "--device", "cpu", "--csv", str(path)]
    assert harness.main(providers_with(), arguments) == 0
    with path.open() as file:
        (row,) = csv.DictReader(file)
    assert set(row) >= {*COLUMNS, "status"}
    assert row["case"] == "odd" and row["shape"] == "3x7x1x13x19" and row["dtype"] == "float32"
    assert row["commit"] and row["torch"] == torch.__version__
    assert "1.00x" in capsys.readouterr().out


def test_main_starts_no_case_after_the_time_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.timing.measured_roofline", lambda device, dtypes: SLOW)
    path = tmp_path / "out.csv"
    assert harness.main(providers_with(), ["--seconds", "0", "--device", "cpu", "--csv", str(path)]) == 0
    assert {row["status"] for row in harness.read_rows(path)} == {"not timed, the limit of 0 s is reached"}
    assert len(harness.read_rows(path)) == len(CASES)
