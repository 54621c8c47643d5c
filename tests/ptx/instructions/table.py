"""The table of known forms, and the guard that any of them may have."""

from ptx.scalars import SCALARS

FORMS = {}  # opcode -> a function of a `Form` that returns a function of a warp
GUARDED = set()  # forms that see to their guard themselves


def form(*opcodes, guarded=False):
    """Register what makes a step out of a `Form`."""

    def register(build):
        for opcode in opcodes:
            assert opcode not in FORMS, opcode
            FORMS[opcode] = build
            if guarded:
                GUARDED.add(opcode)
        return build

    return register


def meaning(one):
    """The step of a `Form`. Raises `UnknownForm` for an opcode, a type or operands that are not known."""
    opcode = one.statement.opcode
    if opcode not in FORMS:
        one.refuse(f"form {opcode} is not known")
    step = FORMS[opcode](one)
    if one.statement.guard is None or opcode in GUARDED:
        return step
    return _guarded(step, guard_of(one))


def guard_of(one):
    """A function of a warp -> its lanes that execute the statement."""
    if one.statement.guard is None:
        return lambda warp: warp.mask
    name, negated = one.statement.guard
    read = one.predicate(name)
    if negated:
        return lambda warp: warp.mask & ~read(warp.registers)
    return lambda warp: warp.mask & read(warp.registers)


def compute(one, result, sources, function):
    """The step that writes function(*sources) to the first operand; `result` and `sources` are names of types."""
    one.expect(1 + len(sources))
    write = one.target(one.operands[0], SCALARS[result])
    reads = [one.source(operand, SCALARS[name]) for operand, name in zip(one.operands[1:], sources, strict=True)]
    if len(reads) == 1:
        (a,) = reads
        return lambda warp: write(warp, function(a(warp.registers)))
    if len(reads) == 2:
        a, b = reads
        return lambda warp: write(warp, function(a(warp.registers), b(warp.registers)))
    if len(reads) == 3:
        a, b, c = reads
        return lambda warp: write(warp, function(a(warp.registers), b(warp.registers), c(warp.registers)))
    return lambda warp: write(warp, function(*(read(warp.registers) for read in reads)))


def _guarded(step, guard):
    def run(warp):
        mask, full = warp.mask, warp.full
        warp.mask = guard(warp)
        warp.full = False
        if warp.mask.any():
            step(warp)
        warp.mask, warp.full = mask, full

    return run
