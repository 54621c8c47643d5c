"""The vector code of exact attention as a module of its own: assembled for a named processor, or run on this one.

Two functions, `score(scores, query, rows, count, ahead, length)` and `add(sums, weights, stride, rows, count, ahead,
length)`, as pointers and numbers of 64 bits.
"""

import ctypes
import re
from dataclasses import dataclass

import numpy as np
from llvmlite import binding, ir

from pqkv.kernels.cpu.exact_code import Rows, emit_scores, emit_values
from pqkv.kernels.cpu.exact_dots import emit_pair_scores, emit_pair_values
from pqkv.kernels.cpu.exact_form import FLOAT32, FORMS, uses_dots, width_of

I16, I64, FLOAT = ir.IntType(16), ir.IntType(64), ir.FloatType()
TRIPLE = "x86_64-unknown-linux-gnu"


def module_of(form, kind, head_dim, heads):
    shape, module = FORMS[form], ir.Module()
    number, rest = (FLOAT if kind == FLOAT32 else I16).as_pointer(), head_dim % width_of(kind, shape)
    numbers = FLOAT.as_pointer()
    dots = uses_dots(kind, shape)

    def begin(name, kinds):
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
        return ir.IRBuilder(function.append_basic_block()), function.args

    def rows(start, count, ahead, length):
        return Rows(start, length, count, ahead, 4 if kind == FLOAT32 else 2)

    builder, (scores, query, *of_rows) = begin("score", [numbers, numbers, number, I64, number, I64])
    if dots:
        emit_pair_scores(builder, shape, rest, heads, scores, query, rows(*of_rows))
    else:
        emit_scores(builder, shape, kind, rest, heads, scores, query, rows(*of_rows))
    builder.ret_void()
    of_weights = I16.as_pointer() if dots else numbers
    builder, (sums, weights, stride, *of_rows) = begin("add", [numbers, of_weights, I64, number, I64, number, I64])
    if dots:
        emit_pair_values(builder, shape, rest, heads, sums, weights, stride, rows(*of_rows))
    else:
        emit_values(builder, shape, kind, rest, heads, sums, weights, rows(*of_rows))
    builder.ret_void()
    return module


def optimized(module, machine):
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(parsed, passes)
    return parsed


def assembly(module, cpu):
    """What LLVM makes of the module for a processor, whatever runs here."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    machine = binding.Target.from_triple(TRIPLE).create_target_machine(cpu=cpu, opt=3)
    module.triple = TRIPLE
    return machine.emit_assembly(optimized(module, machine))


class Compiled:
    """The two functions on this processor; arrays are given as they are."""

    def __init__(self, module):
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        target = binding.Target.from_default_triple()
        machine = target.create_target_machine(
            cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=3
        )
        module.triple = binding.get_default_triple()
        parsed = optimized(module, machine)
        self.engine = binding.create_mcjit_compiler(parsed, machine)
        self.engine.finalize_object()

    def call(self, name, *arguments):
        given = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments]
        kinds = [ctypes.c_void_p if isinstance(a, np.ndarray) else ctypes.c_int64 for a in arguments]
        ctypes.CFUNCTYPE(None, *kinds)(self.engine.get_function_address(name))(*given)


@dataclass
class Loop:
    """Instructions from a label to the jump back to it; `inner` are the loops in it."""

    first: int
    last: int
    lines: list
    inner: list

    @property
    def own(self):
        """Instructions of this loop that are in none of its inner loops."""
        covered = {i for loop in self.inner for i in range(loop.first, loop.last + 1)}
        return [
            self.lines[i] for i in range(self.first, self.last + 1) if i not in covered and self.lines[i][0] == "\t"
        ]


def loops_of(text, name):
    """The outermost loops of a function, in order."""
    body = text[text.index(f"\n{name}:") :]
    body = body[: body.index(".Lfunc_end")]
    lines = [line for line in body.splitlines() if re.match(r"\t[a-z]|\.LBB", line)]
    labels = {line.split(":")[0]: i for i, line in enumerate(lines) if line.startswith(".LBB")}
    found = []
    for i, line in enumerate(lines):
        jump = re.match(r"\tj\w+\s+(\.LBB\w+)", line)
        if jump and labels[jump[1]] <= i:
            found.append(Loop(labels[jump[1]], i, lines, []))
    outermost = []
    for loop in sorted(found, key=lambda loop: (loop.first, -loop.last)):
        holders = [
            other for other in found if other is not loop and other.first <= loop.first and loop.last <= other.last
        ]
        if holders:
            min(holders, key=lambda other: other.last - other.first).inner.append(loop)
        else:
            outermost.append(loop)
    return outermost
