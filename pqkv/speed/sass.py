"""What a GPU runs in the loops of a kernel, read from its disassembly: blocks, back edges, innermost loops, look-ups.

Takes the text of `nvdisasm -c` (labels) and of `cuobjdump -sass` (branches to addresses). Loops are natural loops of
the control flow graph, so code that the assembler moved elsewhere counts where it runs. A look-up is a load from shared
memory whose address descends from a global load of the same loop: a code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_LABEL = re.compile(r"^\s*(\.L\w+):")
_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
_TARGET = re.compile(r"\((\.L\w+)\)|\b0x([0-9a-f]+)\s*$")
_REGISTER = re.compile(r"\b(U?R)(\d+)\b")
_WORDS = {"64": 2, "128": 4, "WIDE": 2}
_NO_RESULT = ("ST", "BRA", "BAR", "BSYNC", "BSSY", "EXIT", "RED", "WARPSYNC", "CALL", "RET", "ISETP", "FSETP", "PLOP3")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line of SASS: `/*address*/ @predicate OPCODE operands`."""

    address: int
    predicate: str
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.split(".")[0]

    @property
    def words(self) -> int:
        """32-bit registers that the result takes."""
        return max((_WORDS.get(part, 1) for part in self.opcode.split(".")[1:]), default=1)


@dataclass(frozen=True, slots=True)
class Loop:
    """An innermost loop. `lookups` and `other_loads` count 32-bit words read from shared memory, `loads` the
    instructions that read them for other ends than a look-up, `chained` the global loads from loaded addresses.
    """

    head: int
    instructions: tuple[Instruction, ...]
    lookups: int
    other_loads: int
    loads: int
    chained: int

    def count(self, *names: str) -> int:
        """Instructions whose name is one of these."""
        return sum(one.name in names for one in self.instructions)

    @property
    def stores(self) -> int:
        """32-bit words written to shared memory."""
        return sum(one.words for one in self.instructions if one.name in ("STS", "LDGSTS"))


@dataclass(frozen=True, slots=True)
class Phases:
    """The look-up loops of `coded_kernel`, and the loops that build its tables; None where there is none."""

    keys: Loop | None
    values: Loop | None
    key_tables: Loop | None
    value_tables: Loop | None


def parse(text: str) -> tuple[list[Instruction], dict[int, int]]:
    """The instructions of the first function in the text, and where branches go: index -> index."""
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if match := _LABEL.match(line):
            labels.setdefault(match[1], len(found))
        elif match := _LINE.match(line):
            address = int(match[1], 16)
            if found and address <= found[-1].address:
                break  # the next function
            found.append(Instruction(address, match[2] or "", match[3], match[4].strip()))
    at = {one.address: i for i, one in enumerate(found)}
    targets = {}
    for i, one in enumerate(found):
        if one.name == "BRA" and (match := _TARGET.search(one.operands)):
            goal = labels.get(match[1]) if match[1] else at.get(int(match[2], 16))
            if goal is not None and goal < len(found):
                targets[i] = goal
    return found, targets


def loops(text: str) -> list[Loop]:
    """The innermost loops in the order of their heads."""
    code, targets = parse(text)
    if not code:
        return []
    starts = sorted({0, *targets.values(), *(i + 1 for i, one in enumerate(code) if _ends(one))} - {len(code)})
    block_of = {}
    spans = list(zip(starts, [*starts[1:], len(code)], strict=True))
    for number, (first, after) in enumerate(spans):
        block_of.update(dict.fromkeys(range(first, after), number))
    into: dict[int, set[int]] = {number: set() for number in range(len(spans))}
    backward = []
    for number, (_, after) in enumerate(spans):
        last = code[after - 1]
        goals = set()
        if after - 1 in targets:
            goals.add(block_of[targets[after - 1]])
        if after < len(code) and (not _ends(last) or _conditional(last)):
            goals.add(block_of[after])
        for goal in goals:
            into[goal].add(number)
            if goal <= number:
                backward.append((goal, number))
    bodies: dict[int, set[int]] = {}
    for head, tail in backward:
        body = _natural(head, tail, into)
        if head == 0 or 0 not in body:  # else the head can be avoided: a jump back from code that was moved away
            bodies.setdefault(head, {head}).update(body)
    innermost = [head for head, own in bodies.items() if not any(other in own for other in bodies if other != head)]
    return [_loop(head, [code[i] for block in sorted(bodies[head]) for i in range(*spans[block])])
            for head in sorted(innermost)]  # fmt: skip


def phases(text: str) -> Phases:
    """The loops of `coded_kernel`: its softmax is the only place that exchanges between lanes, keys come before it and
    values after it. Look-ups store nothing; table building stores to shared memory what it reads from global memory.
    """
    code, _ = parse(text)
    meetings = [one.address for one in code if one.name == "SHFL"]
    if not meetings:
        return Phases(None, None, None, None)
    found = loops(text)
    before = [loop for loop in found if loop.instructions[0].address < meetings[0]]
    after = [loop for loop in found if loop.instructions[0].address > meetings[-1]]
    return Phases(_lookup_loop(before), _lookup_loop(after), _table_loop(before), _table_loop(after))


def streaming_loop(text: str) -> Loop | None:
    """The loop of `exact_kernel` that goes over tokens: it loads most and exchanges between lanes."""
    fitting = [loop for loop in loops(text) if loop.count("LDG") and loop.count("SHFL")]
    return max(fitting, key=lambda loop: loop.count("LDG"), default=None)


def _lookup_loop(found: Iterable[Loop]) -> Loop | None:
    """The one that looks up most."""
    fitting = [loop for loop in found if loop.lookups and not loop.count("STS", "LDGSTS", "STG", "BAR")]
    return max(fitting, key=lambda loop: loop.lookups, default=None)


def _table_loop(found: Iterable[Loop]) -> Loop | None:
    """The one that stores most to shared memory. Loading the query does so too, by addresses that it loads."""
    fitting = [
        one for one in found if one.stores and one.count("LDG", "LDGSTS") and not one.chained + one.count("STG", "BAR")
    ]
    return max(fitting, key=lambda one: one.stores, default=None)


def _ends(one: Instruction) -> bool:
    return one.name in ("BRA", "EXIT", "RET", "BRX")


def _conditional(one: Instruction) -> bool:
    """A branch may also hang on a predicate among its operands (`BRA P0, ...`, `BRA.DIV`)."""
    return bool(one.predicate) or one.operands.startswith(("P", "!P", "UP", "!UP")) or ".DIV" in one.opcode


def _natural(head: int, tail: int, into: dict[int, set[int]]) -> set[int]:
    """All blocks from which `tail` is reached without passing `head`."""
    body, waiting = {head}, [tail]
    while waiting:
        block = waiting.pop()
        if block not in body:
            body.add(block)
            waiting += into[block]
    return body


def _loop(head: int, body: list[Instruction]) -> Loop:
    """Follow what descends from global loads twice round the loop: codes may be loaded one iteration ahead."""
    tainted: set[str] = set()
    lookups = others = loads = chained = 0
    for _ in range(2):
        lookups = others = loads = chained = 0
        for one in body:
            results, sources = _registers(one)
            descends = bool(tainted.intersection(sources))
            if one.name == "LDS":
                lookups += one.words if descends else 0
                others += 0 if descends else one.words
                loads += not descends
                descends = False
            if one.name == "LDG":
                chained += descends
                descends = True
            if descends:
                tainted.update(results)
            elif not one.predicate:
                tainted.difference_update(results)
    return Loop(head, tuple(body), lookups, others, loads, chained)


def _registers(one: Instruction) -> tuple[list[str], list[str]]:
    """(written, read); an address in brackets is always read."""
    plain, *brackets = re.split(r"(?=\[)", one.operands, maxsplit=1)
    parts = [part.strip() for part in plain.split(",")]
    written: list[str] = []
    if not one.name.startswith(_NO_RESULT) and (match := _REGISTER.match(parts[0])):
        written = [f"{match[1]}{int(match[2]) + i}" for i in range(one.words)]
        parts = parts[1:]
    read = []
    for match in _REGISTER.finditer(" ".join(parts) + " ".join(brackets)):
        read += [f"{match[1]}{match[2]}"]
    return written, read
