"""The benchmark harness: rejects wrong providers, counts bytes, restores the environment."""

import csv
import os

import pytest
import torch

from benchmarks import harness, run_gpu, weighted_mse
from benchmarks.cases.cuboid_attention_cases import CASES as ATTENTIONS
from benchmarks.cases.layer_norm_linear_cases import CASES as LAYERS
from benchmarks.cases.weighted_mse_cases import CASES
from benchmarks.harness import Benchmark, Provider, WrongResultError, run_case
from benchmarks.timing import Roofline, cache_bytes, measured_roofline, quantile, set_count

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


def rows_until_rejected(benchmark):
    rows = []
    with pytest.raises(WrongResultError) as refused:
        for row in run_case(benchmark, ODD, device="cpu", modes=["forward"], roofline=SLOW):
            rows.append(row)
    return rows, str(refused.value)


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

    rows, message = rows_until_rejected(providers_with(Provider(name="fast", function=function)))
    assert [row["provider"] for row in rows] == ["pytorch"]
    assert f"fast, odd: RMS error ratio of the {what}" in message and "not timed" in message


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

    benchmark = providers_with(Provider(name=harness.INTERPRETER, function=expression))
    row = list(run_case(benchmark, ODD, device="cpu", modes=["forward"], roofline=SLOW))[-1]
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
    monkeypatch.setattr(harness, "measured_roofline", lambda device, dtypes: SLOW)
    path = tmp_path / "out.csv"
    arguments = ["--case", "odd", "--mode", "forward", "--device", "cpu", "--csv", str(path)]
    assert harness.main(providers_with(), arguments) == 0
    with path.open() as file:
        (row,) = csv.DictReader(file)
    assert set(row) >= set(COLUMNS)
    assert row["case"] == "odd" and row["shape"] == "3x7x1x13x19" and row["dtype"] == "float32"
    assert row["commit"] and row["torch"] == torch.__version__
    assert "1.00x" in capsys.readouterr().out


def test_main_starts_no_case_after_the_time_limit(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(harness, "measured_roofline", lambda device, dtypes: SLOW)
    assert harness.main(providers_with(), ["--seconds", "0", "--device", "cpu", "--csv", str(tmp_path / "o.csv")]) == 0
    assert capsys.readouterr().out.count("not timed, the limit of 0 s is reached") == len(CASES)


@pytest.mark.parametrize(
    ("failed", "expected"),
    [
        ([], set()),
        (["tests.kernels.test_ddim_step"], {"ddim"}),
        (["tests.kernels.test_weighted_mse_operator"], {"weighted_mse"}),
        (["tests.kernels.test_dispatch"], {"ddim", "weighted_mse"}),
    ],
)
def test_ops_with_failed_tests_are_not_timed(failed, expected, tmp_path):
    report = tmp_path / "tests.xml"
    cases = "".join(f'<testcase classname="{name}"><failure/></testcase>' for name in failed)
    passed = '<testcase classname="tests.kernels.test_ddim"/>'
    report.write_text(f"<testsuites><testsuite>{passed}{cases}</testsuite></testsuites>")
    assert run_gpu.failed_ops(report, ["ddim", "weighted_mse"]) == expected


def test_no_op_is_timed_without_a_report(tmp_path):
    assert run_gpu.failed_ops(tmp_path / "none.xml", ["ddim"]) == {"ddim"}


def test_run_gpu_requires_a_gpu_and_clears_the_switches(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_gpu.main() == 2
    assert "no CUDA device" in capsys.readouterr().err
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("SIMCAST_KERNELS", "reference")
    assert not {"TRITON_INTERPRET", "SIMCAST_KERNELS"} & set(run_gpu.child_environment())


def test_results_are_written_to_the_named_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RESULTS", str(tmp_path / "new"))
    path = run_gpu.write([dict.fromkeys(COLUMNS, "1")], {"commit": "abc1234", "device": "NVIDIA H200"})
    assert path == tmp_path / "new" / "gpu-abc1234-NVIDIA-H200.csv"
    assert harness.read_rows(path)[0]["op"] == "1"


@pytest.mark.parametrize("has_failure", [False, True])
def test_run_gpu_times_ops_whose_tests_pass(has_failure, tmp_path, monkeypatch, capsys):
    """Without a GPU: the child processes are replaced by their output files."""
    began = []

    def child(module, seconds, environment):
        began.append(module[0])
        if module[0] == "pytest":
            report = module[-1].removeprefix("--junitxml=")
            failure = (
                '<testcase classname="tests.kernels.test_weighted_mse"><failure/></testcase>' if has_failure else ""
            )
            with open(report, "w") as file:
                file.write(f"<testsuite>{failure}</testsuite>")
            return not has_failure
        with open(module[-1], "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=COLUMNS)
            writer.writeheader()
            writer.writerow(dict.fromkeys(COLUMNS, "1") | {"op": module[0], "provider": "triton"})
        return True

    about = {"device": "NVIDIA H200", "torch": "2", "triton": "3", "commit": "abc1234", "python": "3"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(run_gpu, "machine", lambda device: about)
    monkeypatch.setattr(run_gpu, "_run", child)
    monkeypatch.setenv("RESULTS", str(tmp_path))
    assert run_gpu.main() == int(has_failure)
    (path,) = tmp_path.glob("*.csv")
    timed = [row["op"] for row in harness.read_rows(path)]
    assert began[0] == "pytest" and began[1:] == timed
    assert ("benchmarks.weighted_mse" in timed) is not has_failure
    out = capsys.readouterr()
    assert out.out.splitlines()[-1].startswith(f"{len(timed)} rows in")
    assert ("not timed, because tests failed: weighted_mse" in out.err) is has_failure
