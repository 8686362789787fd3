"""The committed compile table: what counts as worse, notes, and that no launch is missing."""

import dataclasses

import pytest

from benchmarks import compile_baseline, compile_kernels
from benchmarks.cases import op_cases, op_names
from benchmarks.compile_baseline import Entry, compare, entry_of, merged, read, resident_warps, worse, write
from benchmarks.compile_kernels import TARGETS, Row

ENTRY = Entry(
    op="op", kernel="kernel", case="case", direction="forward", target="sm_90", real=True, dispatched=True,
    options="BLOCK=64 num_warps=4", registers=128, warps=16, spill_bytes=0, shared_bytes=1024, unit="wgmma", products=8,
    wide=6, accesses=8, asynchronous=2, triton="3.6.0",
)  # fmt: skip


def changed(**change) -> Entry:
    return dataclasses.replace(ENTRY, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spill_bytes": 4}, "spill_bytes 0 -> 4"),
        ({"shared_bytes": 1040}, "shared_bytes 1024 -> 1040"),
        ({"registers": 136, "warps": 12}, "registers 128 -> 136, warps 16 -> 12"),
        ({"unit": "mma", "products": 64}, "unit wgmma -> mma"),
        ({"unit": ""}, "unit wgmma -> none"),
        ({"wide": 5}, "16-byte accesses 6 of 8 -> 5 of 8"),
        ({"accesses": 10}, "16-byte accesses 6 of 8 -> 6 of 10"),
    ],
)
def test_reports_row_and_column_that_got_worse(change, message):
    found = compare([ENTRY], [changed(**change)])
    assert found.worse == [f"op kernel case forward sm_90: {message}"]
    assert compare([changed(**change)], [ENTRY]).worse == [], "the other way round it is better"


@pytest.mark.parametrize(
    "change",
    [
        {"registers": 130},
        {"registers": 96, "warps": 12},
        {"products": 4},
        {"wide": 12, "accesses": 16},
        {"options": "BLOCK=128 num_warps=4"},
    ],
)
def test_changes_without_cost_are_not_worse(change):
    assert worse(ENTRY, changed(**change)) == []


def test_missing_rows_are_worse_and_new_rows_are_noted():
    found = compare([ENTRY, changed(case="other")], [ENTRY, changed(case="third")])
    assert found.worse == ["op kernel other forward sm_90: missing"]
    assert found.notes == ["op kernel third forward sm_90: new"]


def test_ignores_operators_and_targets_that_were_not_compiled():
    others = [changed(op="another"), changed(target="sm_80")]
    assert compare([ENTRY, *others], [ENTRY]) == ([], [])
    renewed = changed(registers=64)
    assert sorted(map(str, merged([ENTRY, *others], [renewed]))) == sorted(map(str, [renewed, *others]))
    assert ENTRY not in merged([ENTRY, *others], [renewed])


@pytest.mark.parametrize(
    ("target", "registers", "shared", "warps", "standing"),
    [
        ("sm_90", 32, 0, 4, 64),
        ("sm_90", 128, 0, 4, 16),
        ("sm_90", 129, 0, 4, 12),
        ("sm_90", 255, 0, 8, 8),
        ("sm_90", 32, 100_000, 8, 16),
        ("sm_80", 16, 0, 1, 32),
        ("gfx942", 128, 0, 4, 16),
        ("gfx942", 32, 40_000, 4, 4),
    ],
)
def test_resident_warps_match_the_vendor_tables(target, registers, shared, warps, standing):
    assert resident_warps(target, registers, shared, warps=warps) == standing


def test_entry_of_a_row_survives_the_file(tmp_path):
    row = Row(
        op="op", kernel="kernel", case="case", direction="forward", target="sm_90",
        options="THRESHOLDS=(1.0, 2.0) num_warps=8", real=True, dispatched=False, registers=64, spill_bytes=0,
        shared_bytes=32, marks="mma:3 wgmma:2 ld16:4 ld:5 st:1 cp16:2 cp:3 bar:2", seconds=1.0, spills_expected="",
    )  # fmt: skip
    entry = entry_of(row, triton="3.6.0")
    assert (entry.unit, entry.products, entry.wide, entry.accesses, entry.warps) == ("wgmma", 2, 6, 9, 32)
    assert entry.asynchronous == 3
    assert "THRESHOLDS" in str(entry), "candidates are distinguished by their options"
    write([entry, ENTRY], tmp_path / "table.csv")
    assert set(read(tmp_path / "table.csv")) == {entry, ENTRY}


def test_committed_table_has_every_launch():
    committed = read()
    keys = [entry.key for entry in committed]
    assert len(keys) == len(set(keys))
    assert keys == sorted(keys), "sorted by --update, so that a diff shows the changed rows"
    launched = {
        (op, case.name, direction)
        for op in op_names()
        for case in op_cases(op).CASES
        for direction, launches in op_cases(op).launches(case).items()
        if launches
    }
    expected = {(*launch, target) for launch in launched for target in TARGETS}
    assert {(e.op, e.case, e.direction, e.target) for e in committed} == expected, "compile_kernels --update"
    edges = {(op, case.name) for op in op_names() for case in op_cases(op).CASES if case.edge}
    assert {(e.op, e.case) for e in committed if not e.real} == edges


def test_command_compares_and_updates(tmp_path, monkeypatch, capsys):
    row = Row(
        op="weighted_mse", kernel="kernel", case="case", direction="forward", target="sm_90", options="",
        real=True, dispatched=True, registers=40, spill_bytes=0, shared_bytes=0, marks="", seconds=1.0,
        spills_expected="",
    )  # fmt: skip
    monkeypatch.setattr(compile_baseline, "COMMITTED", tmp_path / "compiled.csv")
    monkeypatch.setattr(compile_kernels, "interpreter_is_on", lambda: False)
    rows = [row]
    monkeypatch.setattr(compile_kernels, "compile_all", lambda work, workers: rows)
    words = ["--csv", str(tmp_path / "out.csv")]
    assert compile_kernels.main([*words, "--update"]) == 0
    assert compile_kernels.main(words) == 0
    rows[0] = dataclasses.replace(row, shared_bytes=512)
    capsys.readouterr()
    assert compile_kernels.main(words) == 1
    output = capsys.readouterr()
    assert "worse: weighted_mse kernel case forward sm_90: shared_bytes 0 -> 512" in output.err
    table = (tmp_path / "compiled.csv").read_text()
    (tmp_path / "compiled.csv").write_text(table.replace(read(tmp_path / "compiled.csv")[0].triton, "1.0"))
    assert compile_kernels.main(words) == 0
    assert "was not compiled by triton" in capsys.readouterr().out
