"""Execute the integer part of one warp's SASS: which instructions run, how often, and which memory they touch.

Addresses, masks and trip counts of the kernels depend on launch arguments and indices only, which are known. Data and
floating-point results are unknown. A forward branch on unknown data is a rare slow path (division of denormals, range
reduction of large angles): it is not executed. Barriers and data of other warps have no effect on the count.
"""

from typing import NamedTuple

import numpy as np

from . import sass_values as values
from .sass_program import ZERO, Instruction, Operand, SassError
from .sass_registers import Block, WarpRegisters
from .sass_values import LANES, WORD, Value, full

MAX_STEPS = 400_000
SECTOR = 32  # bytes: unit of traffic between L2 and a multiprocessor
SPACE = 1 << 36  # bytes of address space per tensor: the tensor of an address is ``address // SPACE - 1``
GLOBAL = {"LDG", "STG", "LDGSTS", "ATOMG", "RED"}
MEMORY = GLOBAL | {"LDS", "STS", "LDSM", "STSM", "LDL", "STL"}
WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


class Access(NamedTuple):
    """Global memory that one warp instruction touches: sectors of the tensor with this number, -1 if unknown."""

    tensor: int
    sectors: int


class Step(NamedTuple):
    """One executed warp instruction."""

    instruction: Instruction
    access: Access | None = None


def width_of(instruction: Instruction) -> int:
    """Return the bytes per lane of a load or store; LDSM and STSM move one to four words per lane."""
    if instruction.base in ("LDSM", "STSM"):
        return 4 * next((count for count in (4, 2) if str(count) in instruction.modifiers), 1)
    return next((WIDTHS[m] for m in instruction.opcode.split(".")[1:] if m in WIDTHS), 4)


class Warp(WarpRegisters):
    """One warp of a block; :meth:`run` executes a program."""

    def __init__(self, block: Block, warp: int):
        super().__init__(block, warp)
        self.slow_paths = 0
        self.spilled: dict[int, Value] = {}

    def run(self, program: list[Instruction]) -> list[Step]:
        """Return the executed instructions.

        Raises:
            SassError: a loop or an exit depends on data, or the program does not end.
        """
        plain = [Step(instruction) for instruction in program]
        steps, at = [], 0
        while len(steps) < MAX_STEPS:
            if at >= len(program):
                raise SassError("execution continues after the last instruction")
            instruction = program[at]
            guard = self._guard(instruction)
            steps.append(plain[at])
            if instruction.base in ("BRA", "EXIT") or (instruction.base == "CALL" and instruction.target is not None):
                if self._leaves(instruction, guard, program):
                    if instruction.base == "EXIT":
                        return steps
                    assert instruction.target is not None
                    at = instruction.target
                    continue
            elif instruction.base in MEMORY:
                if instruction.base in GLOBAL:
                    steps[-1] = Step(instruction, self._access(instruction, guard))
                self._forget(instruction)
                self._spill(instruction)
            elif guard is None or guard.any():
                self._execute(instruction, guard)
            at += 1
        raise SassError(f"no end after {MAX_STEPS} instructions")

    # Control flow. On sm_80 a loop can end by a CALL to a label of the same function, which never returns.
    def _guard(self, instruction: Instruction) -> np.ndarray | None:
        if instruction.guard is None:
            return self.active
        found = self._predicate(instruction.guard)
        return None if found is None else found & self.active

    def _leaves(self, instruction: Instruction, guard: np.ndarray | None, program: list[Instruction]) -> bool:
        """Return whether a branch or exit is taken by all lanes that remain."""
        for operand in instruction.operands:
            if operand.kind.endswith("predicate"):
                other = self._predicate(operand)
                guard = None if guard is None or other is None else guard & other
        if "DIV" in instruction.modifiers:
            return False  # taken by diverged warps
        if guard is None:
            return self._skips_slow_path(instruction, program)
        if instruction.base == "EXIT":
            self.active = self.active & ~guard
            return not self.active.any()
        return bool(guard.any()) and bool((guard == self.active).all())

    def _skips_slow_path(self, instruction: Instruction, program: list[Instruction]) -> bool:
        target = instruction.target
        if target is None or target <= instruction.number:
            raise SassError(f"{instruction.text} (instruction {instruction.number}) depends on data")
        self.slow_paths += 1
        return True

    # Memory
    def _access(self, instruction: Instruction, guard: np.ndarray | None) -> Access:
        operand = [operand for operand in instruction.operands if operand.kind == "address"][-1]
        address = full(operand.index) if operand.index >= 0 else full(0) + operand.index
        for term in operand.terms:
            low = self._word(term)
            high = self._word(term, 1) if ".64" in term.text else full(0)
            if low is None or high is None:
                return Access(-1, LANES * width_of(instruction) // SECTOR)
            address = address + low + (high << 32)
        if instruction.base == "LDGSTS":  # its last operand masks the load, which then writes zeros
            for predicate in (self._predicate(o) for o in instruction.operands if o.kind == "predicate"):
                guard = None if guard is None or predicate is None else guard & predicate
        lanes = address if guard is None else address[guard]
        if lanes.size == 0:
            return Access(-1, 0)
        first, last = lanes // SECTOR, (lanes + width_of(instruction) - 1) // SECTOR
        return Access(int(lanes[0]) // SPACE - 1, np.unique(np.concatenate([first, last])).size)

    def _spill(self, instruction: Instruction) -> None:
        """Store or load the registers that the compiler spills to fixed offsets of local memory."""
        if instruction.base not in ("LDL", "STL"):
            return
        place = next(operand for operand in instruction.operands if operand.kind == "address")
        data = next(operand for operand in instruction.operands if operand.kind == "register")
        for part in range(width_of(instruction) // 4):
            if instruction.base == "STL":
                self.spilled[place.index + 4 * part] = self._word(data, part)
            else:
                self._set(data, self.spilled.get(place.index + 4 * part), self.active, part)

    def _forget(self, instruction: Instruction) -> None:
        """Make every destination unknown."""
        for operand in instruction.operands[:1]:
            if operand.kind in ("register", "uniform") and operand.index != ZERO and instruction.base[:2] != "ST":
                for part in range(max(1, width_of(instruction) // 4)):
                    self.registers[operand.kind, operand.index + part] = None
        for operand in instruction.operands:
            if not operand.kind.endswith("predicate"):
                break
            self._set_predicate(operand, None, None)

    # Instructions
    def _execute(self, instruction: Instruction, guard: np.ndarray | None) -> None:
        method = getattr(self, f"_{instruction.base.lower().removeprefix('u')}", None)
        if instruction.base in values.SIMPLE:
            dest, *sources = instruction.operands
            words = [self._word(operand) for operand in sources if not operand.kind.endswith("predicate")]
            known = [word for word in words if word is not None]
            result = values.SIMPLE[instruction.base](instruction, known) if len(known) == len(words) else None
            self._set(dest, result, guard)
        elif method is not None:
            method(instruction, guard)
        else:
            self._forget(instruction)

    def _iadd3(self, instruction: Instruction, guard: np.ndarray | None) -> None:
        dests, sources, predicates = self._parts(instruction)
        if "64" in instruction.modifiers:
            low, high = ([self._word(operand, part) for operand in sources] for part in (0, 1))
            known = all(word is not None for word in low + high)
            total = sum((a + (b << 32) for a, b in zip(low, high, strict=True)), full(0)) if known else None  # pyright: ignore
            self._set_pair(dests[0], total, guard)
            return
        self._sum([*(self._word(x, wraps=False) for x in sources), self._carry(predicates)], dests, guard)

    def _imad(self, instruction: Instruction, guard: np.ndarray | None) -> None:
        dests, (a, b, c), predicates = self._parts(instruction)
        x, y, low = self._word(a), self._word(b), self._word(c)
        carry = self._carry(predicates)
        if {"WIDE", "HI"} & instruction.modifiers:
            high = self._word(c, 1)
            wide = "WIDE" in instruction.modifiers
            if x is None or y is None or low is None or high is None or carry is None:
                self._set(dests[0], None, guard)
                if wide:
                    self._set(dests[0], None, guard, 1)
                for operand in dests[1:]:
                    self._set_predicate(operand, None, guard)
            elif wide:
                with np.errstate(over="ignore"):
                    product = values.wide_product(instruction, x, y).astype(np.uint64)
                    total = product + (low | (high << 32)).astype(np.uint64) + carry.astype(np.uint64)
                for operand in dests[1:]:
                    self._set_predicate(operand, total < product, guard)
                self._set_pair(dests[0], total.astype(np.int64), guard)
            else:
                self._set(dests[0], values.high_product(instruction, x, y, low, high), guard)
            return
        product = None if x is None or y is None else (x * y) & WORD
        if any(o.index == ZERO and o.kind in ("register", "uniform") for o in (a, b)):
            product = full(0)
        self._sum([product, low, carry], dests, guard)

    def _lea(self, instruction: Instruction, guard: np.ndarray | None) -> None:
        dests, sources, predicates = self._parts(instruction)
        *sources, amount = sources
        words = [self._word(operand) for operand in sources]
        carry, bits = self._carry(predicates), amount.index
        if carry is None or any(word is None for word in words):
            self._sum([None], dests, guard)
            return
        a, b = words[0], words[1]
        assert a is not None and b is not None
        if "HI" not in instruction.modifiers:
            self._sum([(a << bits) & WORD, b, carry], dests, guard)
            return
        high = full(0) if len(words) < 3 or words[2] is None else words[2]
        if "SX32" in instruction.modifiers:
            high = -(a >> 31) & WORD
        shifted = ((high << bits) | (a >> (32 - bits) if bits else 0)) & WORD
        self._sum([shifted, b, carry], dests, guard)

    def _lop3(self, instruction: Instruction, guard: np.ndarray | None) -> None:
        operands = list(instruction.operands)
        flags = []
        while operands[0].kind.endswith("predicate"):
            flags.append(operands.pop(0))
        dest, a, b, c, table = operands[:5]
        words = [self._word(operand) for operand in (a, b, c)]
        result = None if any(w is None for w in words) else values.lookup(table.index, *words)  # pyright: ignore
        self._set(dest, result, guard)
        for operand in flags:
            self._set_predicate(operand, None if result is None else result != 0, guard)

    def _plop3(self, instruction: Instruction, guard: np.ndarray | None) -> None:
        first, second, *rest = instruction.operands
        inputs = [self._predicate(operand) for operand in rest if operand.kind.endswith("predicate")]
        tables = [operand.index for operand in rest if operand.kind == "number"]
        for dest, table in zip((first, second), tables, strict=False):
            result = None
            if len(inputs) == 3 and all(x is not None for x in inputs):
                bits = [x.astype(np.int64) for x in inputs]  # pyright: ignore[reportOptionalMemberAccess]
                result = values.lookup(table, *bits, mask=1) != 0
            self._set_predicate(dest, result, guard)

    def _isetp(self, instruction: Instruction, guard: np.ndarray | None) -> None:
        first, second, a, b, other, *low = instruction.operands
        x, y, with_ = self._word(a), self._word(b), self._predicate(other)
        lower = self._predicate(low[0]) if low else None
        if x is None or y is None or with_ is None or (low and lower is None):
            result = opposite = None
            if with_ is not None and "AND" in instruction.modifiers and not with_.any():
                result = opposite = with_
        else:
            found = values.compare(instruction, x, y, lower if "EX" in instruction.modifiers else None)
            result = values.combine(instruction, found, with_)
            opposite = values.combine(instruction, ~found, with_)
        self._set_predicate(first, result, guard)
        self._set_predicate(second, opposite, guard)

    def _sel(self, instruction: Instruction, guard: np.ndarray | None) -> None:
        dest, a, b, chooser = instruction.operands
        x, y, first = self._word(a), self._word(b), self._predicate(chooser)
        if x is None or y is None or first is None:
            self._set(dest, None, guard)
        else:
            self._set(dest, np.where(first, x, y), guard)

    _fsel = _sel

    def _imnmx(self, instruction: Instruction, guard: np.ndarray | None) -> None:
        dest, a, *more, b, chooser = instruction.operands
        x, y, least = self._word(a), self._word(b), self._predicate(chooser)
        for operand in more:  # VIADDMNMX compares a sum
            term = self._word(operand)
            x = None if x is None or term is None else x + term & WORD
        if x is None or y is None or least is None:
            self._set(dest, None, guard)
            return
        below = x < y if "U32" in instruction.modifiers else values.signed(x) < values.signed(y)
        self._set(dest, np.where(below == least, x, y), guard)

    _vimnmx = _viaddmnmx = _imnmx

    def _mufu(self, instruction: Instruction, guard: np.ndarray | None) -> None:
        dest, source = instruction.operands[:2]
        word = self._word(source) if instruction.opcode == "MUFU.RCP" else None
        self._set(dest, None if word is None else values.reciprocal(word), guard)

    def _hfma2(self, instruction: Instruction, guard: np.ndarray | None) -> None:
        """Set the pair of float16 constants that the compiler writes by a product of zeros."""
        dest, a, b, *rest = instruction.operands
        halves = [operand for operand in rest if operand.kind == "number"]
        if ZERO in (a.index, b.index) and len(halves) == 2:
            high, low = (int(np.float16(values.as_float(full(x.index))[0]).view(np.uint16)) for x in halves)
            self._set(dest, full(high << 16 | low), guard)
        else:
            self._set(dest, None, guard)

    def _shfl(self, instruction: Instruction, guard: np.ndarray | None) -> None:
        valid, dest, source, lane, *_ = instruction.operands
        value, where = self._word(source), self._word(lane)
        self._set(dest, None if value is None or where is None else values.shuffle(instruction, value, where), guard)
        self._set_predicate(valid, None, guard)

    def _vote(self, instruction: Instruction, guard: np.ndarray | None) -> None:
        dest, flag, source = instruction.operands[:3]
        found = self._predicate(source)
        bits = None if found is None else full(int(sum(1 << i for i in np.flatnonzero(found))))
        self._set(dest, bits, guard)
        every = (
            None if found is None else np.full(LANES, found.all() if "ALL" in instruction.modifiers else found.any())
        )
        self._set_predicate(flag, every, guard)

    _voteu = _vote

    def _s2r(self, instruction: Instruction, guard: np.ndarray | None) -> None:
        dest, source = instruction.operands[:2]
        x, y, z = self.block.program
        known = {
            "SR_TID.X": self.thread, "SR_TID.Y": full(0), "SR_TID.Z": full(0), "SR_LANEID": self.thread % LANES,
            "SR_CTAID.X": full(x), "SR_CTAID.Y": full(y), "SR_CTAID.Z": full(z), "SR_CgaCtaId": full(0),
        }  # fmt: skip
        self._set(dest, known.get(source.text), guard)

    _s2ur = _s2r

    def _cs2r(self, instruction: Instruction, guard: np.ndarray | None) -> None:
        dest, source = instruction.operands[:2]
        value = full(0) if source.text == "SRZ" else None
        self._set(dest, value, guard)
        if "32" not in instruction.modifiers:
            self._set(dest, value, guard, 1)

    def _ldc(self, instruction: Instruction, guard: np.ndarray | None) -> None:
        dest, source = instruction.operands[:2]
        self._set(dest, self._word(source), guard)
        if "64" in instruction.modifiers:
            self._set(dest, self._word(source, 1), guard, 1)

    def _p2r(self, instruction: Instruction, guard: np.ndarray | None) -> None:
        dest, _, source, mask = instruction.operands
        word, shift = self._word(source), _byte(instruction, dest)
        for number in range(7):
            if mask.index >> number & 1 and word is not None:
                found = self.predicates.get(("predicate", number))
                bit = 1 << (number + shift)
                word = None if found is None else np.where(found, word | bit, word & ~bit & WORD)
        self._set(dest, word, guard)

    def _r2p(self, instruction: Instruction, guard: np.ndarray | None) -> None:
        _, source, mask = instruction.operands
        word, shift = self._word(source), _byte(instruction, source)
        for number in range(7):
            if mask.index >> number & 1:
                value = None if word is None else (word >> (number + shift) & 1) != 0
                self._set_predicate(Operand("predicate", number), value, guard)


def _byte(instruction: Instruction, operand: Operand) -> int:
    """Return the first bit of the byte that P2R or R2P names, such as 8 for ``R0.B1``."""
    found = [f"B{n}" in instruction.modifiers or f".B{n}" in operand.text for n in range(4)]
    return 8 * found.index(True) if True in found else 0
