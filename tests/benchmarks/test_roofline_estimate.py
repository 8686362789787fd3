"""Roofline estimates: bytes and instructions of a known kernel, the bounds of hand-made warps, the committed table."""

import dataclasses
from collections import Counter

import pytest
import torch
import triton
import triton.language as tl

from benchmarks.cases import op_cases, op_names
from benchmarks.compile_kernels import TARGETS, Job, compile_job, compile_launch, estimate_rows
from benchmarks.roofline import estimate_table, gpu_rates
from benchmarks.roofline.gpu_rates import A100, GPUS, H100, H200
from benchmarks.roofline.launch_block import Tensors
from benchmarks.roofline.launch_estimate import Estimate, Profile, duration, estimate, profile
from benchmarks.roofline.sass_execution import Access, Step
from simcast_kernels.dispatch import Launch, interpreter_is_on
from tests.benchmarks.test_sass_execution import program

needs_compiler = pytest.mark.skipif(interpreter_is_on(), reason="TRITON_INTERPRET=1 turns kernels into Python")


@triton.jit
def _rounds_kernel(x, out, table, rounds, numel, BLOCK: tl.constexpr):
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = offset < numel
    value = tl.load(x + offset, mask=valid, other=0.0)
    for row in range(rounds):
        value = value * 2.0 + tl.load(table + row)
    tl.store(out + offset, value, mask=valid)


def rounds_launch(*, rounds: int, numel: int = 2**20) -> Launch:
    x, out, table = (torch.empty(size, device="meta") for size in (numel, numel, 64))
    return Launch(
        kernel=_rounds_kernel,
        grid=(triton.cdiv(numel, 1024),),
        arguments=(x, out, table, rounds, numel),
        options={"BLOCK": 1024, "num_warps": 8},
    )


@needs_compiler
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_bytes_and_instructions_of_a_known_kernel(target, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = {}
    for rounds in (4, 24):
        launch = rounds_launch(rounds=rounds)
        found[rounds] = profile(launch, compile_launch(launch, TARGETS[target]), target=target, registers=32)
    first = found[4]
    assert (first.blocks, len(first.warps)) == (1024, 8)
    assert first.tensors.names == ("x", "out", "table")
    # Each of 1024 programs moves 1024 floats in and out; the table is read by all of them.
    assert first.sectors(stores=False)[0] == first.sectors(stores=True)[1] == 1024 * 4 // 32
    assert first.unique_bytes(stores=False) == {0: 2**22, 2: 256}
    assert first.unique_bytes(stores=True) == {1: 2**22}
    few, many = (Counter(step.instruction.base for step in found[rounds].warps[3]) for rounds in (4, 24))
    assert many["FFMA"] - few["FFMA"] == 20 * 4, "four elements per thread, whatever the compiler unrolls"
    assert many["LDG"] - few["LDG"] == 20
    assert first.instructions == 8 * few.total()
    gpu = next(gpu for gpu in GPUS if gpu.target == target)
    assert estimate(first, gpu).dram == pytest.approx((2 * 2**22 + 256) / gpu.copy)
    assert estimate(found[24], gpu).block_cycles > estimate(first, gpu).block_cycles


@needs_compiler
def test_last_block_of_a_ragged_grid_and_arguments_of_one(tmp_path, monkeypatch):
    """An argument of 1 becomes a constant and is no parameter, so later parameters move."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    launch = rounds_launch(rounds=1, numel=1000)
    found = profile(launch, compile_launch(launch, TARGETS["sm_90"]), target="sm_90", registers=32)
    assert found.unique_bytes(stores=True) == {1: 4000}


def steps(*lines: str, access: dict[int, Access] | None = None) -> tuple[Step, ...]:
    """Return executed instructions; ``access`` gives the memory of some."""
    return tuple(Step(i, (access or {}).get(n)) for n, i in enumerate(program(*lines)))


LOADS = ("LDG.E R4, desc[UR4][R2.64]", "LDG.E R5, desc[UR4][R2.64+0x80]")
BOTH = {0: Access(0, 4), 1: Access(0, 4)}


def test_independent_loads_wait_once_and_dependent_loads_twice():
    dram = H200.dram_latency * H200.clock
    together, waits = duration(steps(*LOADS, "FADD R6, R4, R5", access=BOTH), H200, caches={})
    assert waits == 1 and dram < together < dram + 20
    chained = ("LDG.E R4, desc[UR4][R2.64]", "FADD R6, R4, R4", "LDG.E R5, desc[UR4][R2.64]", "FADD R7, R5, R5")
    apart, waits = duration(steps(*chained, access={0: Access(0, 4), 2: Access(0, 4)}), H200, caches={})
    assert waits == 2 and 2 * dram < apart < 2 * dram + 20
    cached, _ = duration(steps(*LOADS, "FADD R6, R4, R5", access=BOTH), H200, caches={0: "l2"})
    assert cached == pytest.approx(H200.l2_latency * H200.clock, abs=20)


def test_masked_load_does_not_wait():
    cycles, waits = duration(
        steps(*LOADS, "FADD R6, R4, R5", access={0: Access(-1, 0), 1: Access(-1, 0)}), H200, caches={}
    )
    assert (waits, cycles < 50) == (0, True)


def test_asynchronous_copies_wait_at_the_barrier_of_their_group():
    lines = (
        "LDGSTS.E.128 [R9], desc[UR4][R2.64]", "LDGDEPBAR", "LDGSTS.E.128 [R9+0x80], desc[UR4][R2.64]", "LDGDEPBAR",
        "FADD R6, R4, R5", "DEPBAR.LE SB0, 0x1", "LDS R4, [R9]",
    )  # fmt: skip
    dram = H200.dram_latency * H200.clock
    access = {0: Access(1, 4), 2: Access(0, 4)}
    one, waits = duration(steps(*lines, access=access), H200, caches={0: "dram", 1: "l2"})
    assert waits == 1 and one < dram / 2, "the second group may still be in flight"
    every = (*lines[:5], "DEPBAR.LE SB0, 0x0", *lines[6:])
    assert duration(steps(*every, access=access), H200, caches={0: "dram", 1: "l2"})[0] > dram


def hand_made(*lines: str, access: dict[int, Access] | None = None, **change) -> Profile:
    fields = dict(
        warps=(steps(*lines, access=access),) * 4, blocks=13_200, registers=32,
        tensors=Tensors(sizes=(2**30, 4096), names=("x", "w")), shared_bytes=0, target="sm_90",
    )  # fmt: skip
    return Profile(**(fields | change))


def test_units_and_issue_slots():
    fma = estimate(hand_made(*["FFMA R1, R2, R3, R4"] * 1000), H200)
    assert fma.pipe == "issue"
    assert fma.issue == pytest.approx(100 * 4 * 1000 / gpu_rates.SUSTAINED_ISSUE / 4 / 1.98e9)
    assert estimate(hand_made(*["MUFU.EX2 R1, R2"] * 1000), H200).pipe == "xu"
    wide = estimate(hand_made(*["IMAD.WIDE.U32 R2, R4, R6, RZ"] * 1000), H200)
    assert wide.pipe == "fma"
    assert wide.issue == pytest.approx(100 * 4 * 1000 * 4 / gpu_rates.SUSTAINED_PIPE / 4 / 1.98e9)
    products = estimate(hand_made(*["HGMMA.64x64x16.F32.BF16 R24, R56, gdesc[UR8], RZ, !UPT"] * 100), H200)
    assert products.pipe == "tensor"
    on_a100 = estimate(hand_made(*["FFMA R1, R2, R3, R4"] * 1000, target="sm_80"), A100)
    assert on_a100.pipe == "fma", "64 lanes per multiprocessor, half of H100"


def test_copy_kernel_runs_at_the_copy_bandwidth():
    """A copy of 16 bytes per thread is, by definition, at 100 %; the model must not lose more than 2 %."""
    access = {0: Access(0, 16), 1: Access(0, 16)}
    lines = ("LDG.E.128 R4, desc[UR4][R2.64]", "STG.E.128 desc[UR4][R8.64], R4")
    blocks = 2**30 // (4 * 512)
    found = estimate(hand_made(*lines, access=access, blocks=blocks), H100)
    assert found.bytes == 2 * 2**30
    assert found.seconds == pytest.approx(2 * 2**30 / H100.copy, rel=0.02)
    assert found.limit == "dram"


def test_tensor_that_all_blocks_read_comes_from_a_cache():
    access = {0: Access(1, 16)}
    loaded = estimate(hand_made("LDG.E.128 R4, desc[UR4][R2.64]", access=access), H200)
    copied = estimate(hand_made("LDGSTS.E.BYPASS.128 [R9], desc[UR4][R2.64]", access=access), H200)
    assert loaded.bytes == copied.bytes == 4096
    assert (loaded.l2_bytes, copied.l2_bytes) == (0, 13_200 * 4 * 512)


def test_partial_sums_are_read_again():
    names = Tensors(sizes=(2**30, 4096), names=("d_bias", "w"))
    found = hand_made("STG.E.128 desc[UR4][R8.64], R4", access={0: Access(0, 16)}, tensors=names)
    assert found.partial_bytes == 13_200 * 4 * 512
    assert estimate(found, H200).partial_sums == pytest.approx(found.partial_bytes / H200.copy)


def test_few_resident_warps_are_bound_by_latency():
    few = estimate(hand_made(*LOADS, "FADD R6, R4, R5", access=BOTH, registers=255), H200)
    many = estimate(hand_made(*LOADS, "FADD R6, R4, R5", access=BOTH, registers=32), H200)
    assert (few.resident_warps, many.resident_warps) == (8, 64)
    assert few.latency == pytest.approx(8 * many.latency)
    assert few.limit == "latency"


def test_estimate_refuses_the_code_of_another_gpu():
    with pytest.raises(ValueError, match="A100 is sm_80; the profile is of sm_90"):
        estimate(hand_made("NOP"), A100)


ROW = estimate_table.EstimateRow(
    op="op", case="case", direction="forward", gpu="H200", real=True, time_us=10.0, floor_us=9.0, share=0.8,
    limit="dram", dram_us=9.0, l2_us=5.0, issue_us=4.0, latency_us=3.0, sums_us=0.0, instructions=100, waits=2,
    warps=64, triton="3.6.0",
)  # fmt: skip


@pytest.mark.parametrize(("time", "count"), [(10.1, 0), (10.3, 1), (9.0, 0)])
def test_slower_estimate_is_worse(time, count):
    lost, notes = estimate_table.worse([ROW], [dataclasses.replace(ROW, time_us=time)])
    assert len(lost) == count
    assert all("estimate 10.0 -> 10.3 us, limited by dram" in text for text in lost)
    assert len(notes) == (time == 9.0)


def test_missing_estimate_is_worse_and_other_operators_are_ignored():
    other = dataclasses.replace(ROW, case="other")
    elsewhere = [dataclasses.replace(ROW, op="another"), dataclasses.replace(ROW, gpu="A100")]
    assert estimate_table.worse([ROW, *elsewhere], [other]) == (
        ["op case forward H200: no estimate"], ["op other forward H200: new estimate"],
    )  # fmt: skip
    assert estimate_table.merged([ROW, *elsewhere], [other]) == [*elsewhere, other]


def test_rows_survive_the_file(tmp_path):
    estimate_table.write([dataclasses.replace(ROW, case="z"), ROW], tmp_path / "table.csv")
    assert estimate_table.read(tmp_path / "table.csv") == [ROW, dataclasses.replace(ROW, case="z")]
    assert estimate_table.read(tmp_path / "none.csv") == []


def test_launches_of_a_direction_are_added():
    fields = dict(
        gpu="H200", dram=3e-6, l2=2e-6, issue=1e-6, latency=1e-6, partial_sums=0.0, bytes=1, l2_bytes=1, instructions=7,
        pipe="issue", block_cycles=1.0, waits=1, resident_warps=8,
    )  # fmt: skip
    case = op_cases("weighted_mse").CASES[0]
    first, second = Estimate(**fields), Estimate(**fields | {"issue": 9e-6, "instructions": 9})
    row = estimate_table.row_of("weighted_mse", case, "forward", [first, second], triton="3.6.0")
    assert (row.dram_us, row.floor_us, row.limit, row.instructions) == (6.0, 12.0, "issue", 9)
    alone = estimate_table.row_of("weighted_mse", case, "forward", [Estimate(**fields | {"dram": 1.0})], triton="3.6.0")
    assert alone.share == 1.0
    assert row.share == pytest.approx(case.bytes_moved("forward") / H200.copy / (row.time_us * 1e-6), rel=0.01)


@needs_compiler
def test_committed_estimate_is_that_of_the_code(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    rows = estimate_rows(
        compile_job(Job("weighted_mse", "sevir-student", "forward", "sm_90")), triton=triton.__version__
    )
    committed = {row.key: row for row in estimate_table.read()}
    before = [committed[row.key] for row in rows]
    assert [row.gpu for row in rows] == ["H200", "H100"]
    if {row.triton for row in before} != {triton.__version__}:
        pytest.skip(f"benchmarks/estimates.csv holds rows of triton {before[0].triton}")
    assert estimate_table.worse(before, rows)[0] == []


def test_committed_estimates_cover_every_dispatched_case():
    covered = {(row.op, row.case, row.direction, row.gpu) for row in estimate_table.read()}
    for op in op_names():
        for case in op_cases(op).CASES:
            for direction, launches in op_cases(op).launches(case).items():
                if any(launch.dispatched for launch in launches):
                    assert all((op, case.name, direction, gpu.name) in covered for gpu in GPUS), "--update"
