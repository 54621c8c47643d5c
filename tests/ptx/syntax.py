"""PTX text -> what it declares and, of each kernel, its statements: operands apart, nothing of what they mean."""

import re
from dataclasses import dataclass, field

from ptx.faults import UnknownForm

_NAME = r"[A-Za-z_$%][\w$]*"
_LABEL = re.compile(rf"({_NAME}):(?!:)")
_VARIABLE = re.compile(
    rf"(?:\.(?:visible|extern|common|weak)\s+)*\.(shared|global|local)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+({_NAME})"
    r"(?:\[(\d*)\])?"
)
_ENTRY = re.compile(rf"(?:\.(?:visible|weak)\s+)*\.entry\s+({_NAME})\s*\(([^)]*)\)((?:\s*\.\w+\s+[\d, ]+)*)\s*\{{")
_FUNCTION = re.compile(r"(?:\.(?:visible|extern|weak)\s+)*\.func\b")
_PARAMETER = re.compile(rf"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+({_NAME})")
_DIRECTIVE = re.compile(r"\.(version|target|address_size)\s+([\w., ]+)")
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.DOTALL)
_RANGE = re.compile(rf"({_NAME})<(\d+)>")
_GUARD = re.compile(r"@(!?)(%?[\w$]+)\s+")


@dataclass(frozen=True, slots=True)
class Variable:
    """Room in a state space: shared, global or local."""

    space: str
    name: str
    align: int
    scalar: str
    count: int


@dataclass(frozen=True, slots=True)
class Statement:
    """One instruction. `scope` tells registers of the same name apart: the braces it stands in, outermost first."""

    opcode: str
    operands: tuple[str, ...]
    guard: tuple[str, bool] | None  # the predicate and whether it is negated
    scope: tuple[int, ...]
    line: int
    text: str


@dataclass(slots=True)
class Entry:
    """A kernel. `registers` are by (scope, name), ranges written out; `labels` name the statement that follows."""

    name: str
    parameters: list[tuple[str, str]]  # (type, name)
    statements: list[Statement] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    registers: dict[tuple[tuple[int, ...], str], str] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)


@dataclass(slots=True)
class Module:
    """All that a file has."""

    directives: dict[str, str]
    variables: list[Variable]
    entries: dict[str, Entry]


def parse(text):
    """Raises `UnknownForm` with the line that has no place in the grammar."""
    text = _without_comments(text)
    module, at = Module({}, [], {}), 0
    while (at := _skip(text, at)) < len(text):
        if found := _ENTRY.match(text, at):
            entry = Entry(found[1], _PARAMETER.findall(found[2]))
            at = _body(text, found.end(), entry)
            module.entries[entry.name] = entry
        elif found := _VARIABLE.match(text, at):
            module.variables.append(_variable(found))
            at = _past_semicolon(text, found.end())
        elif found := _DIRECTIVE.match(text, at):
            module.directives[found[1]] = found[2].strip()
            at = found.end()
        elif _FUNCTION.match(text, at):
            raise UnknownForm(f"functions that are called are not known, kernels write theirs out: {_line(text, at)}")
        else:
            raise UnknownForm(f"no directive of PTX that is known: {_line(text, at)}")
    return module


def split_operands(text):
    """At commas that stand outside brackets and braces."""
    parts = re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+", text)
    return tuple(part.strip() for part in parts if part.strip())


def _without_comments(text):
    """Lines stay where they are."""
    text = re.sub(r"/\*.*?\*/", lambda found: "\n" * found[0].count("\n"), text, flags=re.DOTALL)
    return re.sub(r"//[^\n]*", "", text)


def _skip(text, at):
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _line(text, at):
    return text[at:].split("\n", 1)[0].strip()


def _past_semicolon(text, at):
    at = _skip(text, at)
    if text[at : at + 1] != ";":
        raise UnknownForm(f"a declaration goes on: {_line(text, at)}")
    return at + 1


def _variable(found):
    space, align, scalar, name, count = found.groups()
    size = int(re.sub(r"\D", "", scalar)) // 8
    return Variable(space, name, int(align or size), scalar, int(count or 1))


def _body(text, at, entry):
    """Up to the brace that closes the kernel; returns where the text goes on."""
    scope, scopes = [0], 0
    line, counted = text.count("\n", 0, at) + 1, at
    while True:
        at = _skip(text, at)
        line, counted = line + text.count("\n", counted, at), at
        if at >= len(text):
            raise UnknownForm(f"kernel {entry.name} has no end")
        if text[at] == "{":
            scopes += 1
            scope.append(scopes)
            at += 1
        elif text[at] == "}":
            scope.pop()
            at += 1
            if not scope:
                return at
        elif found := _LABEL.match(text, at):
            if found[1] in entry.labels:
                raise UnknownForm(f"label {found[1]} stands twice")
            entry.labels[found[1]] = len(entry.statements)
            at = found.end()
        else:
            end = text.find(";", at)
            if end < 0:
                raise UnknownForm(f"no semicolon after: {_line(text, at)}")
            _statement(text[at:end].strip(), tuple(scope), line, entry)
            at = end + 1


def _statement(text, scope, line, entry):
    if found := _REGISTERS.fullmatch(text):
        for name in map(str.strip, found[2].split(",")):
            several = _RANGE.fullmatch(name)
            names = [f"{several[1]}{i}" for i in range(int(several[2]))] if several else [name]
            entry.registers.update({(scope, one): found[1] for one in names})
    elif found := _VARIABLE.fullmatch(text):
        entry.variables.append(_variable(found))
    elif not text or text.startswith(".pragma"):
        return  # nothing, or hints to the assembler
    elif text.startswith("."):
        raise UnknownForm(f"line {line}: no directive of PTX that is known: {text}")
    else:
        guard, rest = None, text
        if found := _GUARD.match(text):
            guard, rest = (found[2], found[1] == "!"), text[found.end() :]
        opcode, *operands = rest.split(None, 1)
        entry.statements.append(
            Statement(
                opcode, split_operands(operands[0] if operands else ""), guard, scope, line, " ".join(text.split())
            )
        )
