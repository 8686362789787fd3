"""Execution of SASS: trip counts, carries, masks, sectors of hand-made programs; bytes of a compiled copy kernel."""

import numpy as np
import pytest

from benchmarks.roofline import sass_values as values
from benchmarks.roofline.sass_execution import SPACE, Access, Warp
from benchmarks.roofline.sass_program import SassError, parse
from benchmarks.roofline.sass_registers import Block


def program(*lines: str):
    """Return instructions of lines such as ``@P0 MOV R1, R2``; a line that starts with a dot is a label."""
    text = [
        f"{line}:" if line.startswith(".") else f"        /*{16 * n:04x}*/  {line} ;" for n, line in enumerate(lines)
    ]
    return parse("\n".join(text))


def run(*lines: str, constants: dict[int, int] | None = None, warp: int = 0, block=(3, 2, 1)) -> tuple[Warp, list]:
    machine = Warp(Block(program=block, constants=constants or {}), warp)
    return machine, machine.run(program(*lines, "EXIT"))


def register(machine: Warp, number: int) -> list[int]:
    value = machine.registers["register", number]
    assert value is not None
    return value.tolist()


def test_parses_guards_operands_and_labels():
    store, branch = program(".L_x_7", "@!P3 STG.E.128 desc[UR6][R8.64+-0x10], R20", "@UP0 BRA `(.L_x_7)")
    assert (store.base, store.guard.index, store.guard.modifier) == ("STG", 3, "!")
    address, data = store.operands
    assert (address.kind, address.index, address.terms[0].text) == ("address", -16, "R8.64")
    assert (data.kind, data.index) == ("register", 20)
    assert branch.target == 0


@pytest.mark.parametrize("text", ["", "no code", "        /*0000*/  BRA `(.L_x_1) ;"])
def test_rejects_text_without_instructions_or_labels(text):
    with pytest.raises(SassError, match=r"no instruction|does not exist"):
        parse(text)


@pytest.mark.parametrize("trips", [1, 5, 16])
def test_loop_runs_as_often_as_its_argument_says(trips):
    _, steps = run(
        "LDC R1, c[0x0][0x210]", "MOV R2, RZ",
        ".L_x_1", "IADD3 R2, R2, 0x1, RZ", "FADD R9, R9, R9", "ISETP.LT.AND P0, PT, R2, R1, PT", "@P0 BRA `(.L_x_1)",
        constants={0x210: trips},
    )  # fmt: skip
    assert len(steps) == 2 + 4 * trips + 1


def test_loop_with_a_count_from_memory_is_an_error():
    with pytest.raises(SassError, match="depends on data"):
        run(".L_x_1", "LDG.E R2, desc[UR4][R4.64]", "ISETP.NE.AND P0, PT, R2, RZ, PT", "@P0 BRA `(.L_x_1)")


def test_endless_loop_is_an_error(monkeypatch):
    monkeypatch.setattr("benchmarks.roofline.sass_execution.MAX_STEPS", 1000)
    with pytest.raises(SassError, match="no end after 1000"):
        run(".L_x_1", "BRA `(.L_x_1)")


def test_slow_path_on_unknown_data_is_skipped():
    machine, steps = run("FCHK P4, R3, R26", "@!P4 BRA `(.L_x_1)", "NOP", "NOP", ".L_x_1", "NOP")
    assert (len(steps), machine.slow_paths) == (4, 1)


def test_call_of_a_label_leaves_the_loop():
    _, steps = run(
        "MOV R2, RZ", ".L_x_1", "VIADD R2, R2, 0x1", "ISETP.GE.U32.AND P1, PT, R2, 0x3, PT",
        "@P1 CALL.REL.NOINC `(.L_x_0)", "BRA `(.L_x_1)", ".L_x_0", "NOP",
    )  # fmt: skip
    assert len(steps) == 1 + 3 * 4 - 1 + 2


def test_addresses_carry_into_the_high_word():
    machine, _ = run(
        "LDC.64 R4, c[0x0][0x210]", "IADD3 R6, P0, R4, 0x20, RZ", "IADD3.X R7, RZ, R5, RZ, P0, !PT",
        "IMAD.WIDE R8, R10, 0x4, R4", "LEA R12, P1, R10, R4, 0x4", "LEA.HI.X.SX32 R13, R10, R5, 0x4, P1",
        "IMAD.WIDE.U32 R14, R10, 0x4, R4",
        constants={0x210: 0xFFFFFFF0, 0x214: 7},
    )  # fmt: skip
    assert (register(machine, 6)[0], register(machine, 7)[0]) == (0x10, 8)
    assert (register(machine, 8)[0], register(machine, 9)[0]) == (0xFFFFFFF0, 7)
    assert (register(machine, 12)[0], register(machine, 13)[0]) == (0xFFFFFFF0, 7)


@pytest.mark.parametrize(("dividend", "divisor"), [(0, 7), (6143, 768), (98303, 12288), (2**31 - 1, 3), (5, 9)])
def test_division_by_an_argument_is_exact(dividend, divisor):
    """The compiler divides by a reciprocal in float32 that it corrects; as in ``program // tiles``."""
    machine, _ = run(
        "LDC R7, c[0x0][0x210]", "LDC R4, c[0x0][0x214]", "IABS R5, R7", "I2F.RP R0, R5", "MUFU.RCP R0, R0",
        "VIADD R2, R0, 0xffffffe", "F2I.FTZ.U32.TRUNC.NTZ R3, R2", "IMAD.MOV.U32 R2, RZ, RZ, RZ",
        "IMAD.MOV R6, RZ, RZ, -R3", "IMAD R9, R6, R5, RZ", "IABS R6, R4", "IMAD.HI.U32 R3, R3, R9, R2",
        "IMAD.HI.U32 R3, R3, R6, RZ", "IMAD.MOV R0, RZ, RZ, -R3", "IMAD R0, R5, R0, R6",
        "ISETP.GT.U32.AND P1, PT, R5, R0, PT", "@!P1 IMAD.IADD R0, R0, 0x1, -R5", "@!P1 VIADD R3, R3, 0x1",
        "ISETP.GE.U32.AND P0, PT, R0, R5, PT", "@P0 VIADD R3, R3, 0x1",
        constants={0x210: divisor, 0x214: dividend},
    )  # fmt: skip
    assert register(machine, 3) == [dividend // divisor] * 32


def test_predicates_survive_in_a_register():
    machine, steps = run(
        "S2R R0, SR_TID.X", "ISETP.LT.U32.AND P1, PT, R0, 0x4, PT", "P2R R5, PR, RZ, 0x2",
        "ISETP.GE.AND P1, PT, R0, 0x40, PT", "R2P PR, R5, 0x2", "@P1 MOV R6, 0x9", "ISETP.NE.AND P1, PT, R5, RZ, PT",
    )  # fmt: skip
    assert register(machine, 6) == [9] * 4 + [0] * 28
    assert len(steps) == 8


def test_sectors_of_a_masked_wide_load():
    lines = [
        "S2R R0, SR_TID.X", "LDC.64 R4, c[0x0][0x210]", "IMAD.WIDE R6, R0, 0x10, R4",
        "ISETP.LT.AND P0, PT, R0, 0x28, PT", "@P0 LDG.E.128 R8, desc[UR4][R6.64]",
    ]  # fmt: skip
    base = 2 * SPACE
    for warp, sectors in ((0, 16), (1, 4), (2, 0)):
        _, steps = run(*lines, constants={0x210: base & 0xFFFFFFFF, 0x214: base >> 32}, warp=warp)
        assert steps[4].access == Access(1 if sectors else -1, sectors)


def test_strided_loads_touch_one_sector_per_lane():
    _, steps = run(
        "S2R R0, SR_TID.X", "LDC.64 R4, c[0x0][0x210]", "IMAD.WIDE R6, R0, 0x100, R4",
        "LDG.E.U16 R8, desc[UR4][R6.64]",
        constants={0x210: SPACE & 0xFFFFFFFF, 0x214: SPACE >> 32},
    )  # fmt: skip
    assert steps[3].access == Access(0, 32)


def test_masked_asynchronous_copy_moves_nothing():
    _, steps = run(
        "LDC.64 R4, c[0x0][0x210]", "ISETP.NE.AND P0, PT, RZ, RZ, PT",
        "LDGSTS.E.BYPASS.128 [R9], desc[UR4][R4.64], P0", "LDGSTS.E.BYPASS.128 [R9], desc[UR4][R4.64], !P0",
        constants={0x210: SPACE & 0xFFFFFFFF, 0x214: SPACE >> 32},
    )  # fmt: skip
    assert [step.access.sectors for step in steps[2:4]] == [0, 1]


WORDS = np.array([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x12345678, 255, 65536] * 4, dtype=np.int64)


@pytest.mark.parametrize("table", [0xC0, 0xFC, 0x3C, 0x33, 0x96, 0xF8, 0x78])
def test_bitwise_tables_equal_their_definition(table):
    """``table`` is the function of the constants 0xF0, 0xCC, 0xAA, the definition in PTX (lop3)."""
    a, b, c = WORDS, np.roll(WORDS, 1), np.roll(WORDS, 3)
    got = values.lookup(table, a, b, c)
    for lane in range(32):
        bits = 0
        for bit in range(32):
            row = (int(a[lane]) >> bit & 1) << 2 | (int(b[lane]) >> bit & 1) << 1 | int(c[lane]) >> bit & 1
            bits |= (table >> row & 1) << bit
        assert got[lane] == bits


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("SHF.R.S32.HI R2, RZ, 0x1f, R1", lambda w: 0xFFFFFFFF if w >> 31 else 0),
        ("SHF.R.U32.HI R2, RZ, 0x4, R1", lambda w: w >> 4),
        ("SHF.L.U32 R2, R1, 0x5, RZ", lambda w: w << 5 & 0xFFFFFFFF),
        ("SHF.L.U64.HI R2, R1, 0x2, RZ", lambda w: w >> 30),
        ("SGXT.U32 R2, R1, 0x5", lambda w: w & 31),
        ("SGXT R2, R1, 0x8", lambda w: (w & 255) - (256 if w & 128 else 0) & 0xFFFFFFFF),
        ("PRMT R2, R1, 0x7732, RZ", lambda w: w >> 16),
        ("VIADDMNMX.U32 R2, R1, 0xfffffff3, R1, PT", lambda w: min(w - 13 & 0xFFFFFFFF, w)),
        ("IADD3 R2, -R1, RZ, RZ", lambda w: -w & 0xFFFFFFFF),
        ("LOP3.LUT R2, RZ, R1, RZ, 0x33, !PT", lambda w: ~w & 0xFFFFFFFF),
        ("HFMA2.MMA R2, -RZ, RZ, 1.875, 0", lambda w: 0x3F800000),
    ],
)
def test_integer_instruction(line, expected):
    machine = Warp(Block(program=(0, 0, 0), constants={}), 0)
    machine.registers["register", 1] = WORDS
    machine.run(program(line, "EXIT"))
    assert register(machine, 2) == [expected(int(word)) for word in WORDS]
