"""A kernel made ready to run: operands are places in a register file, every statement a function of a warp."""

import re
import struct
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np

from ptx.faults import UnknownForm
from ptx.memory import lay_out
from ptx.scalars import LANES, SCALARS
from ptx.syntax import parse, split_operands
from ptx.warp import SPECIALS

_INTEGER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?")
_FLOAT = re.compile(r"0[fF]([0-9a-fA-F]{8})|0[dD]([0-9a-fA-F]{16})")
_ADDRESS = re.compile(r"\[\s*([^\]+\s]+)\s*(?:\+\s*(-?\w+))?\s*\]")


@dataclass(slots=True)
class Effect:
    """What a statement reads and writes, for the sake of poison. `select`: (taken, other, predicate), of which only
    one is read; `decides`: whether a poisoned source is a fault at once.
    """

    sources: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    select: tuple[int, int, int] | None = None
    decides: bool = False


@dataclass(slots=True)
class Program:
    """See `load`."""

    name: str
    parameters: dict
    statements: list
    steps: list
    effects: list[Effect]
    slots: int
    constants: list[tuple[int, np.ndarray]]
    specials: list[tuple[int, str]]
    shared_ranges: list[tuple[int, int]]
    shared_bytes: int
    local_ranges: list[tuple[int, int]]
    local_bytes: int


class Form:
    """One statement to those who know its meaning: `parts` of the opcode, and operands as places."""

    def __init__(self, assembly, statement, pc):
        self._assembly, self.statement, self.pc = assembly, statement, pc
        self.parts, self.operands = statement.opcode.split("."), statement.operands
        self.effect = Effect()

    def refuse(self, why):
        raise UnknownForm(f"{why}: line {self.statement.line}: {self.statement.text}")

    def expect(self, count):
        if len(self.operands) != count:
            self.refuse(f"{len(self.operands)} operands where {count} are known")

    def source(self, operand, scalar, *, wider=False):
        """A function of the register file -> the operand as an array of the type. With `wider` the register may have
        more bits, of which the lowest count.
        """
        slot, bits = self._place(operand, scalar)
        self.effect.sources.append(slot)
        if bits == scalar.bits:
            return _reader(slot, scalar)
        if not (wider and bits > scalar.bits):
            self.refuse(f"operand {operand} has {bits} bits where {scalar.name} has {scalar.bits}")
        stored, dtype = scalar.stored, scalar.dtype
        return lambda registers: registers[slot].astype(stored).view(dtype)

    def target(self, operand, scalar, *, wider=False):
        """A function (warp, array of the type) that writes the lanes that execute. With `wider` the register may have
        more bits, which the sign or zeros fill.
        """
        if operand == "_":
            return lambda warp, value: None
        register = self._assembly.register(operand, self.statement.scope)
        if register is None:
            self.refuse(f"{operand} is no register")
        slot, bits = register
        self.effect.targets.append(slot)
        if bits == scalar.bits:
            stored = scalar.stored
            if stored.kind == "b":
                return lambda warp, value: warp.write(slot, value)
            return lambda warp, value: warp.write(slot, value.view(stored))
        if not (wider and bits > scalar.bits) or scalar.kind == "f":
            self.refuse(f"target {operand} has {bits} bits where {scalar.name} has {scalar.bits}")
        narrow = scalar.dtype
        wide, stored = np.dtype(f"{narrow.kind}{bits // 8}"), np.dtype(f"u{bits // 8}")
        return lambda warp, value: warp.write(slot, value.view(narrow).astype(wide).view(stored))

    def address(self, operand):
        """A function of the register file -> addresses, 64 bits unsigned."""
        found = _ADDRESS.fullmatch(operand)
        if not found:
            self.refuse(f"{operand} is no address")
        base, offset = found[1], np.uint64(int(found[2] or "0", 0) % (1 << 64))
        register = self._assembly.register(base, self.statement.scope)
        if register is not None and register[1] == 32:
            slot = register[0]
            self.effect.sources.append(slot)
            return lambda registers: registers[slot].astype(np.uint64) + offset
        read = self.source(base, SCALARS["u64"])
        return (lambda registers: read(registers) + offset) if offset else read

    def vector(self, operand):
        """The parts of {a, b, ...}, or the one operand."""
        return split_operands(operand[1:-1]) if operand.startswith("{") else (operand,)

    def label(self, operand):
        if operand not in self._assembly.entry.labels:
            self.refuse(f"{operand} is no label")
        return self._assembly.entry.labels[operand]

    def parameter(self, operand):
        """(name, type) of a parameter that is read whole."""
        name = operand.strip("[] ")
        if name not in self._assembly.parameters:
            self.refuse(f"{operand} is no parameter")
        return name, self._assembly.parameters[name]

    def predicate(self, name):
        """A function of the register file -> bool."""
        return self.source(name, SCALARS["pred"])

    def _place(self, operand, scalar):
        register = self._assembly.register(operand, self.statement.scope)
        if register is not None:
            return register
        slot = self._assembly.constant(operand, scalar)
        if slot is None:
            self.refuse(f"operand {operand} is neither register nor number nor variable")
        return slot, scalar.bits


class _Assembly:
    """The register file of a kernel as it is laid out, statement by statement."""

    def __init__(self, entry, variables):
        self.entry = entry
        self.parameters = {}
        for kind, name in entry.parameters:
            self.parameters[name] = SCALARS.get(kind) or _unknown(f"a parameter of type {kind}")
        unknown = sorted({kind for kind in entry.registers.values() if kind not in SCALARS})
        if unknown:
            raise UnknownForm(f"registers of type {', '.join(unknown)}")
        self._registers = {key: (slot, SCALARS[kind].bits) for slot, (key, kind) in enumerate(entry.registers.items())}
        self.slots = len(self._registers)
        self._constants, self._specials = {}, {}
        self.constants = []
        self.variables = variables

    def register(self, name, scope):
        """(slot, bits) of the innermost register of this name, None where it is none."""
        if name in SPECIALS:
            if name not in self._specials:
                self._specials[name] = self._new_slot()
            return self._specials[name], 32
        while scope:
            if (scope, name) in self._registers:
                return self._registers[scope, name]
            scope = scope[:-1]
        return None

    def constant(self, text, scalar):
        """The slot of a number or of the address of a variable, None where it is neither."""
        if found := _FLOAT.fullmatch(text):
            single, double = found.groups()
            bits = int(single or double, 16)
            if single and scalar.name == "f64":
                bits = struct.unpack("<Q", struct.pack("<d", struct.unpack("<f", struct.pack("<I", bits))[0]))[0]
        elif _INTEGER.fullmatch(text) and scalar.kind != "f":
            bits = int(text.rstrip("U"), 0)
        elif text in self.variables:
            bits = self.variables[text]
        else:
            return None
        key = bits % (1 << scalar.bits), scalar.stored
        if key not in self._constants:
            self._constants[key] = self._new_slot()
            value = np.full(LANES, key[0], scalar.stored)
            value.flags.writeable = False
            self.constants.append((self._constants[key], value))
        return self._constants[key]

    @property
    def specials(self):
        return [(slot, name) for name, slot in self._specials.items()]

    def _new_slot(self):
        self.slots += 1
        return self.slots - 1


def load(text, name=None):
    """The kernel `name` of PTX, or its only one. Raises `UnknownForm` with the line of what the executor does not know:
    all of a kernel is known before any of it runs.
    """
    from ptx.instructions import meaning

    module = parse(text)
    if name is None and len(module.entries) != 1:
        raise UnknownForm(f"{len(module.entries)} kernels: which one?")
    entry = module.entries[name] if name is not None else next(iter(module.entries.values()))
    variables = [*module.variables, *entry.variables]
    shared, shared_ranges, shared_bytes = lay_out([one for one in variables if one.space == "shared"])
    local, local_ranges, local_bytes = lay_out([one for one in variables if one.space == "local"])
    assembly = _Assembly(entry, shared | local)
    steps, effects = [], []
    for pc, statement in enumerate(entry.statements):
        form = Form(assembly, statement, pc)
        steps.append(meaning(form))
        effects.append(form.effect)
    return Program(
        entry.name, assembly.parameters, entry.statements, steps, effects, assembly.slots, assembly.constants,
        assembly.specials, shared_ranges, shared_bytes, local_ranges, local_bytes,
    )  # fmt: skip


def _reader(slot, scalar):
    if scalar.dtype == scalar.stored:
        return itemgetter(slot)
    dtype = scalar.dtype
    return lambda registers: registers[slot].view(dtype)


def _unknown(what):
    raise UnknownForm(what)
