"""Semantics of the integer, predicate and move instructions of SASS on the 32 lanes of a warp.

A value is an int64 array of 32 words in [0, 2^32), or None where it is unknown: data loaded from memory and results of
floating-point instructions. Unknown values are never needed for addresses and trip counts.
"""

from collections.abc import Callable, Sequence

import numpy as np

from .sass_program import Instruction

Value = np.ndarray | None
WORD = 0xFFFFFFFF
LANES = 32


def full(number: int) -> np.ndarray:
    """Return ``number`` in every lane, wrapped to 32 bits."""
    return np.full(LANES, number & WORD, dtype=np.int64)


def signed(value: np.ndarray) -> np.ndarray:
    """Return words as signed integers."""
    return value - ((value >> 31) << 32)


def as_float(value: np.ndarray) -> np.ndarray:
    """Return words as float32 numbers."""
    return value.astype(np.uint32).view(np.float32)


def as_words(value: np.ndarray) -> np.ndarray:
    """Return float32 numbers as words."""
    return value.astype(np.float32).view(np.uint32).astype(np.int64)


def lookup(table: int, a: np.ndarray, b: np.ndarray, c: np.ndarray, *, mask: int = WORD) -> np.ndarray:
    """Return the bitwise function of three operands whose truth table is ``table`` (LOP3, PLOP3)."""
    result = np.zeros(LANES, dtype=np.int64)
    for row in range(8):
        if table >> row & 1:
            term = np.full(LANES, mask, dtype=np.int64)
            for bit, operand in ((4, a), (2, b), (1, c)):
                term &= operand if row & bit else ~operand & mask
            result |= term
    return result


def compare(instruction: Instruction, a: np.ndarray, b: np.ndarray, low: np.ndarray | None) -> np.ndarray:
    """Return the integer comparison of ISETP; ``low`` is the result for the low words of 64-bit operands (.EX)."""
    if "U32" not in instruction.modifiers:
        a, b = signed(a), signed(b)
    name = instruction.opcode.split(".")[1]
    strict = {"GE": a > b, "GT": a > b, "LT": a < b, "LE": a < b, "EQ": a != a, "NE": a != b}
    if low is not None:
        return strict[name] | ((a == b) & low)
    weak = {"GE": a >= b, "GT": a > b, "LT": a < b, "LE": a <= b, "EQ": a == b, "NE": a != b}
    return weak[name]


def combine(instruction: Instruction, result: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the boolean combination of a comparison with its last predicate operand."""
    if "OR" in instruction.modifiers:
        return result | other
    return result ^ other if "XOR" in instruction.modifiers else result & other


def permute(selector: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return PRMT: each nibble of the selector names one of the 8 bytes of (low, high); bit 3 replicates its sign."""
    both = low | (high << 32)
    result = np.zeros(LANES, dtype=np.int64)
    for byte in range(4):
        nibble = selector >> (4 * byte) & 15
        value = both >> (8 * (nibble & 7)) & 255
        value = np.where(nibble & 8 != 0, np.where(value & 128 != 0, 255, 0), value)
        result |= value << (8 * byte)
    return result


def shift(instruction: Instruction, low: np.ndarray, amount: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return SHF: one word of the shifted 64-bit operand (low, high)."""
    modifiers = instruction.modifiers
    amount = amount & 63 if "W" not in modifiers else amount & 31
    if "L" in modifiers:
        if "HI" in modifiers:
            carried = np.where(amount == 0, 0, low >> np.clip(32 - amount, 0, 63))
            wide = np.where(amount >= 32, low << np.clip(amount - 32, 0, 31), high << amount | carried)
            return wide & WORD
        return np.where(amount >= 32, 0, low << np.clip(amount, 0, 31)) & WORD
    is_signed = "S32" in modifiers or "S64" in modifiers
    top = signed(high) if is_signed else high
    if "HI" in modifiers:
        return top >> np.clip(amount, 0, 62) & WORD
    wide = low | (top << 32)
    shifted = wide >> amount if is_signed else (wide.astype(np.uint64) >> amount.astype(np.uint64)).astype(np.int64)
    return shifted & WORD


def extend(instruction: Instruction, value: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Return SGXT: the low ``bits`` of a value, sign-extended unless .U32."""
    kept = value & ((1 << bits) - 1)
    if "U32" in instruction.modifiers:
        return kept
    return np.where(kept >> (bits - 1) & 1 != 0, kept - (1 << bits), kept) & WORD


def wide_product(instruction: Instruction, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the 64-bit product of two words, wrapped to int64."""
    return a * b if "U32" in instruction.modifiers else signed(a) * signed(b)


def high_product(instruction: Instruction, a: np.ndarray, b: np.ndarray, c_low: np.ndarray, c_high: np.ndarray):
    """Return IMAD.HI: the high word of ``a * b + c``."""
    with np.errstate(over="ignore"):
        product = wide_product(instruction, a, b).astype(np.uint64)
        total = product + (c_low | (c_high << 32)).astype(np.uint64)
    return (total >> np.uint64(32)).astype(np.int64) & WORD


def shuffle(instruction: Instruction, value: np.ndarray, lane: np.ndarray) -> np.ndarray:
    """Return SHFL: the value of another lane."""
    own = np.arange(LANES)
    kind = instruction.opcode.split(".")[1]
    source = {"IDX": lane & 31, "BFLY": own ^ (lane & 31), "UP": own - lane, "DOWN": own + lane}[kind]
    return value[np.where((source >= 0) & (source < LANES), source, own)]


def reciprocal(value: np.ndarray) -> np.ndarray:
    """Return MUFU.RCP; integer division corrects its rounding."""
    with np.errstate(divide="ignore"):
        return as_words(np.float32(1) / as_float(value))


def to_float(instruction: Instruction, value: np.ndarray) -> np.ndarray:
    """Return I2F or I2FP; .RP rounds up."""
    number = value if "U32" in instruction.modifiers else signed(value)
    result = number.astype(np.float32)
    if "RP" in instruction.modifiers:
        result = np.where(result.astype(np.float64) < number, np.nextafter(result, np.float32(np.inf)), result)
    return as_words(result)


def to_integer(value: np.ndarray) -> np.ndarray:
    """Return F2I.TRUNC of non-negative numbers."""
    return np.clip(np.nan_to_num(as_float(value).astype(np.float64)), 0, WORD).astype(np.int64)


# Instructions that map words to one word, without a carry.
SIMPLE: dict[str, Callable[[Instruction, Sequence[np.ndarray]], np.ndarray]] = {
    "MOV": lambda _, x: x[0],
    "UMOV": lambda _, x: x[0],
    "R2UR": lambda _, x: full(int(x[0][0])),
    "VIADD": lambda _, x: x[0] + x[1] & WORD,
    "IABS": lambda _, x: np.abs(signed(x[0])) & WORD,
    "PRMT": lambda _, x: permute(x[1], x[0], x[2]),
    "UPRMT": lambda _, x: permute(x[1], x[0], x[2]),
    "SHF": lambda i, x: shift(i, *x),
    "USHF": lambda i, x: shift(i, *x),
    "SGXT": lambda i, x: extend(i, *x[:2]),
    "USGXT": lambda i, x: extend(i, *x[:2]),
    "POPC": lambda _, x: np.array([int(v).bit_count() for v in x[0]], dtype=np.int64),
    "UPOPC": lambda _, x: np.array([int(v).bit_count() for v in x[0]], dtype=np.int64),
    "FLO": lambda _, x: np.array([(int(v).bit_length() - 1) & WORD for v in x[0]], dtype=np.int64),
    "UFLO": lambda _, x: np.array([(int(v).bit_length() - 1) & WORD for v in x[0]], dtype=np.int64),
    "I2F": lambda i, x: to_float(i, x[0]),
    "I2FP": lambda i, x: to_float(i, x[0]),
    "F2I": lambda _, x: to_integer(x[0]),
}
