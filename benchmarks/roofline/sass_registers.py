"""Registers and predicates of one warp: reading operands, writing results, carries.

Registers hold a :data:`.Value` per word. A write under a guard changes only its lanes; under an unknown guard the
result is unknown. Registers that were never written are 0: compilers set bits of them one by one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .sass_program import TRUE, ZERO, Instruction, Operand
from .sass_values import LANES, WORD, Value, full


@dataclass(frozen=True, kw_only=True)
class Block:
    """Position of a block in its launch, and the constant bank 0: words by byte offset."""

    program: tuple[int, int, int]
    constants: Mapping[int, int]


class WarpRegisters:
    """Registers and predicates of one warp."""

    def __init__(self, block: Block, warp: int):
        self.block = block
        self.thread = np.arange(LANES, dtype=np.int64) + LANES * warp
        self.registers: dict[tuple[str, int], Value] = {}
        self.predicates: dict[tuple[str, int], np.ndarray | None] = {}
        self.active = np.ones(LANES, dtype=bool)

    def _predicate(self, operand: Operand) -> np.ndarray | None:
        if operand.index == TRUE:
            found = np.ones(LANES, dtype=bool)
        else:
            found = self.predicates.get((operand.kind, operand.index), np.zeros(LANES, dtype=bool))
        return ~found if found is not None and operand.modifier == "!" else found

    def _word(self, operand: Operand, part: int = 0, *, wraps: bool = True) -> Value:
        """Return a word of an operand; ``part`` 1 is the high word of a pair. Without ``wraps``, -x is 2^32 - x."""
        match operand.kind:
            case "number":
                return full(operand.index if part == 0 else (WORD if operand.index >> 31 else 0))
            case "constant":
                found = self._constant(operand, part)
            case "register" | "uniform":
                zero = operand.index == ZERO
                found = full(0) if zero else self.registers.get((operand.kind, operand.index + part), full(0))
            case _:
                return None
        if found is None or not operand.modifier:
            return found
        if operand.modifier == "~":
            return WORD - found
        return 2**32 - found if not wraps else -found & WORD

    def _constant(self, operand: Operand, part: int) -> Value:
        if operand.text != "0":
            return None
        offset = full(operand.index + 4 * part)
        for term in operand.terms:
            if (more := self._word(term)) is None:
                return None
            offset = offset + more
        word = self.block.constants.get(int(offset[0]))
        return None if word is None else full(word)

    def _set(self, operand: Operand, value: Value, guard: np.ndarray | None, part: int = 0) -> None:
        if operand.index == ZERO:
            return
        key = (operand.kind, operand.index + part)
        before = self.registers.get(key, full(0))
        if guard is None or value is None:
            self.registers[key] = None
        elif (guard | ~self.active).all():
            self.registers[key] = value
        else:
            self.registers[key] = None if before is None else np.where(guard, value, before)

    def _set_predicate(self, operand: Operand, value: np.ndarray | None, guard: np.ndarray | None) -> None:
        if operand.index == TRUE:
            return
        key = (operand.kind, operand.index)
        before = self.predicates.get(key, np.zeros(LANES, dtype=bool))
        if guard is None or value is None:
            self.predicates[key] = None
        elif (guard | ~self.active).all():
            self.predicates[key] = value
        else:
            self.predicates[key] = None if before is None else np.where(guard, value, before)

    def _parts(self, instruction: Instruction) -> tuple[list[Operand], list[Operand], list[Operand]]:
        """Return (destinations, sources, predicate sources) of an instruction with optional carries."""
        dests, sources, predicates = list(instruction.operands[:1]), [], []
        for operand in instruction.operands[1:]:
            if not operand.kind.endswith("predicate"):
                sources.append(operand)
            elif sources:
                predicates.append(operand)
            else:
                dests.append(operand)
        return dests, sources, predicates

    def _carry(self, predicates: list[Operand]) -> Value:
        total = full(0)
        for operand in predicates:
            if (found := self._predicate(operand)) is None:
                return None
            total = total + found
        return total

    def _sum(self, terms: list[Value], dests: list[Operand], guard: np.ndarray | None) -> None:
        """Set the low word of a sum, and the carries."""
        known = all(term is not None for term in terms)
        total = sum(terms, full(0)) if known else None  # pyright: ignore[reportArgumentType, reportCallIssue]
        self._set(dests[0], None if total is None else total & WORD, guard)
        for number, operand in enumerate(dests[1:], start=1):
            self._set_predicate(operand, None if total is None else (total >> 32) >= number, guard)

    def _set_pair(self, dest: Operand, value: Value, guard: np.ndarray | None) -> None:
        self._set(dest, None if value is None else value & WORD, guard)
        self._set(dest, None if value is None else (value >> 32) & WORD, guard, 1)
