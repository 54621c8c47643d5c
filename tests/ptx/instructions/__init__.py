"""What each form of instruction does. A form is the whole opcode, types and modifiers included: others are refused."""

from ptx.instructions import arithmetic, bits, comparisons, control, conversions, floats, lanes, memory, moves
from ptx.instructions.table import FORMS, meaning

__all__ = [
    "FORMS", "arithmetic", "bits", "comparisons", "control", "conversions", "floats", "lanes", "meaning", "memory",
    "moves",
]  # fmt: skip
