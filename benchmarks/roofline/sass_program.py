"""Parse the SASS that ``nvdisasm -c`` prints into instructions with decoded operands.

SASS is NVIDIA's machine code. A line is ``/*0180*/ @!P0 LDG.E.128 R16, desc[UR6][R10.64+0x10] ;``: address, optional
guard (a predicate, here negated), opcode with modifiers, operands. ``R`` are registers of a thread, ``UR`` of a warp,
``P`` and ``UP`` predicates; ``RZ``, ``URZ`` are 0 and ``PT``, ``UPT`` true.
"""

import re
import struct
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P(?:\d|T))\s+)?([A-Z][A-Za-z0-9_.]*)\s*([^;]*?)\s*;")
_LABEL = re.compile(r"^(\.L_x_\w+):")
_REGISTER = re.compile(r"^(U?)R(\d+|Z)")
_PREDICATE = re.compile(r"^(U?)P(\d|T)$")
_CONSTANT = re.compile(r"^c\[0x([0-9a-f]+)\]\[(.*)\]$")
_ADDRESS = re.compile(r"^(?:desc\[\w+\])?\[(.*)\](?:\.\w+)?$")
_TARGET = re.compile(r"`\((\.L_x_\w+)\)")
ZERO, TRUE = -1, -1


@dataclass(frozen=True)
class Operand:
    """One operand: ``kind`` is register, uniform, predicate, uniform_predicate, number, constant, address, other.

    ``index`` is the register number (``ZERO`` for RZ, ``TRUE`` for PT), the value of a number, or the offset of an
    address or constant. ``terms`` are the registers added in an address. ``modifier`` is ``-``, ``~``, ``!`` or empty.
    """

    kind: str
    index: int = 0
    modifier: str = ""
    magnitude: bool = False
    terms: tuple["Operand", ...] = ()
    text: str = ""


class SassError(ValueError):
    """SASS, or its execution, that this package does not understand."""


@dataclass(frozen=True, eq=False)
class Instruction:
    """One instruction; ``target`` is the number of the instruction that a branch jumps to."""

    number: int
    opcode: str
    guard: Operand | None
    operands: tuple[Operand, ...]
    target: int | None
    text: str
    base: str = field(init=False)
    modifiers: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        base, *modifiers = self.opcode.split(".")
        object.__setattr__(self, "base", base)
        object.__setattr__(self, "modifiers", frozenset(modifiers))


def disassemble(cubin: bytes) -> str:
    """Return the SASS of a cubin, by the ``nvdisasm`` of the Triton wheel.

    Raises:
        FileNotFoundError: Triton has no ``nvdisasm``.
    """
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True).stdout


def parse(sass: str) -> list[Instruction]:
    """Return the instructions of the first function in ``sass``, in the order of their addresses.

    Raises:
        SassError: there is no instruction, or a branch to a label that does not exist.
    """
    labels: dict[str, int] = {}
    found: list[tuple[str | None, str, str]] = []
    for line in sass.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(found)
        elif match := _LINE.match(line):
            found.append((match[2], match[3], match[4]))
    if not found:
        raise SassError(f"no instruction in SASS of {len(sass)} characters; expected the output of nvdisasm -c")
    return [_instruction(number, *parts, labels) for number, parts in enumerate(found)]


def _instruction(number: int, guard: str | None, opcode: str, rest: str, labels: dict[str, int]) -> Instruction:
    target = None
    if label := _TARGET.search(rest):
        if label[1] not in labels:
            raise SassError(f"{opcode} jumps to {label[1]}, which does not exist")
        target, rest = labels[label[1]], _TARGET.sub("", rest)
    operands = tuple(_operand(text.strip()) for text in _split(rest) if text.strip())
    text = f"{opcode} {rest}".strip()
    return Instruction(number, opcode, None if guard is None else _operand(guard), operands, target, text)


def _split(text: str) -> list[str]:
    """Split at the commas that are not inside brackets."""
    return re.split(r",(?![^\[]*\])", text)


def _operand(text: str) -> Operand:
    modifier = ""
    while text[:1] in ("-", "~", "!") and not re.match(r"^-(0x|\d|INF|QNAN)", text):
        modifier, text = text[0], text[1:]
    magnitude = text.startswith("|")
    text = text.strip("|")
    if found := _REGISTER.match(text):
        kind = "uniform" if found[1] else "register"
        return Operand(kind, ZERO if found[2] == "Z" else int(found[2]), modifier, magnitude, text=text)
    if found := _PREDICATE.match(text):
        kind = "uniform_predicate" if found[1] else "predicate"
        return Operand(kind, TRUE if found[2] == "T" else int(found[2]), modifier)
    if found := _CONSTANT.match(text):
        offset, terms = _address(found[2])
        return Operand("constant", offset, modifier, magnitude, terms, text=found[1])
    if found := _ADDRESS.match(text):
        offset, terms = _address(found[1])
        return Operand("address", offset, modifier, terms=terms)
    number = _number(text)
    return Operand("other", text=text) if number is None else Operand("number", number, modifier, text=text)


def _address(text: str) -> tuple[int, tuple[Operand, ...]]:
    offset, terms = 0, []
    for part in text.replace("+-", "+~").split("+"):
        if _REGISTER.match(part):
            terms.append(_operand(part))
        elif part:
            offset += -int(part[1:], 16) if part[0] == "~" else int(part, 16)
    return offset, tuple(terms)


def _number(text: str) -> int | None:
    """Return the 32 bits of an integer or a float32; None for anything else."""
    if found := re.match(r"^(-?)0x([0-9a-f]+)$", text):
        return int(found[1] + found[2], 16) & 0xFFFFFFFF
    try:
        value = float(text.replace("INF", "inf").replace("+QNAN", "nan").replace("-QNAN", "nan"))
    except ValueError:
        return None
    # Integer instructions print numbers in hexadecimal, so decimal numbers are floats.
    try:
        return struct.unpack("<I", struct.pack("<f", value))[0]
    except OverflowError:
        return None
