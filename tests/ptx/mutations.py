"""Single instructions of PTX changed at random: operands swapped, a constant changed, a guard inverted, an instruction
dropped. What the checks let live is as good as before, or is something that nothing looks at.
"""

import re
from dataclasses import dataclass, replace
from random import Random

from ptx import UnknownForm, load
from ptx.program import Program
from ptx.syntax import split_operands

_INTEGER = re.compile(r"(?<![\w%.$])-?\d+(?!\w)")
_FLOAT = re.compile(r"0[fF][0-9A-F]{8}")
_COMMUTES = re.compile(r"(add|mul|fma|mad|and|or|xor|min|max)\b|setp\.(eq|ne)\b")  # in its first two sources
_MOST_DRAWS = 1000  # for each mutation that is wanted


@dataclass(frozen=True, slots=True)
class Mutation:
    """Line `line` (from 1) of the PTX reads `after` in place of `before`."""

    kind: str
    line: int
    before: str
    after: str

    def apply(self, ptx: str) -> str:
        """The PTX with this one line changed. Raises `ValueError` for other PTX than it was drawn from."""
        lines = ptx.split("\n")
        if _said(lines[self.line - 1]) != self.before:
            raise ValueError(f"line {self.line} is not: {self.before}")
        lines[self.line - 1] = self.after
        return "\n".join(lines)


def mutations(ptx: str, count: int, seed: int = 0, reached: set[int] | None = None) -> list[Mutation]:
    """`count` different ones, the same for a seed, in lines that hold one statement; `reached` keeps to these lines.

    An assembler takes each of them: what the executor has no meaning for is none.
    """
    draw, lines, found = Random(seed), ptx.split("\n"), []
    numbers = [
        one.line for one in load(ptx).statements
        if lines[one.line - 1].count(";") == 1 and (reached is None or one.line in reached)
    ]  # fmt: skip
    kinds = [draw.choice(list(_CHANGES)) for _ in range(count)]  # first: most instructions can be dropped, few inverted
    for kind in kinds:
        for _ in range(_MOST_DRAWS):
            line = draw.choice(numbers)
            before = _said(lines[line - 1])
            after = _CHANGES[kind](before, draw)
            one = Mutation(kind, line, before, after)
            if after is not None and after != before and one not in found and _loads(one.apply(ptx)):
                found.append(one)
                break
    return found


def noting(program: Program, lines: set[int]) -> Program:
    """The same program, which adds the lines of the statements that it executes to `lines`."""

    def noted(step, line):
        def run(warp):
            lines.add(line)
            return step(warp)

        return run

    steps = [noted(step, one.line) for step, one in zip(program.steps, program.statements, strict=True)]
    return replace(program, steps=steps)


def _said(line):
    return line.split("//")[0].strip()


def _loads(ptx):
    try:
        load(ptx)
    except UnknownForm:
        return False
    return True


def _swap(text, draw):
    """Two sources change places."""
    opcode, _, operands = text.rstrip(";").replace("\t", " ").partition(" ")
    parts = list(split_operands(operands))
    pairs = [(i, j) for i in range(1, len(parts)) for j in range(i + 1, len(parts))]
    if _COMMUTES.match(opcode):
        pairs = pairs[1:]
    if text.startswith("@") or not pairs:
        return None
    i, j = draw.choice(pairs)
    if parts[i] == parts[j]:
        return None
    parts[i], parts[j] = parts[j], parts[i]
    return f"{opcode} {', '.join(parts)};"


def _constant(text, draw):
    """An integer one more or less, an offset by one access, a float32 doubled or negated."""
    places = [*_INTEGER.finditer(text), *_FLOAT.finditer(text)]
    if not places:
        return None
    place = draw.choice(places)
    if place[0][:2] in ("0f", "0F"):
        bits = int(place[0][2:], 16)
        other = draw.choice([bits ^ 0x80000000, bits + 0x800000]) if bits else 0x3F800000  # of 0, one
        changed = f"0f{other:08X}"
    else:
        step = _bytes_accessed(text) if text[: place.start()].endswith("+") else 1
        number = int(place[0])
        changed = str(number + (draw.choice([-step, step]) if number > -(1 << 63) else step))
    return text[: place.start()] + changed + text[place.end() :]


def _bytes_accessed(text):
    opcode = text.split()[1 if text.startswith("@") else 0]
    size = re.search(r"\.[a-z](\d+)$", opcode)
    several = re.search(r"\.v(\d)\.", opcode)
    return (int(size[1]) // 8 if size else 16) * (int(several[1]) if several else 1)


def _invert(text, draw):
    if not text.startswith("@"):
        return None
    return "@" + text[2:] if text.startswith("@!") else "@!" + text[1:]


def _drop(text, draw):
    return None if text.startswith(("ret", "bra")) else ";"


_CHANGES = {"swapped": _swap, "constant": _constant, "inverted": _invert, "dropped": _drop}
