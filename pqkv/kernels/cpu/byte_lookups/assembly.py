"""The generator's functions as assembly for any processor, none of which need be there, and instructions counted."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import llvmlite.binding as llvm
from llvmlite import ir

from pqkv.kernels.cpu.byte_lookups.instructions import I8, Asked, Portable, Value
from pqkv.kernels.cpu.byte_lookups.keys import score_block
from pqkv.kernels.cpu.byte_lookups.shapes import Shape
from pqkv.kernels.cpu.byte_lookups.values import mix_span, subspaces_at_once
from pqkv.vector_code import I64

TRIPLE = "x86_64-unknown-linux-gnu"
_POINTER = I8.as_pointer()


@dataclass(frozen=True, slots=True)
class Loop:
    """An innermost loop: its instructions by name, those that touch the stack, and the tokens times subspaces of one
    turn.
    """

    names: Counter[str]
    on_stack: int
    work: int

    @property
    def per_block(self) -> float:
        """Instructions per 64 tokens and subspace."""
        return self.names.total() * 64 / self.work


def key_module(path: type[Portable], shape: Shape) -> Value:
    """A module with `run(codes, line, head_dim, table, query, offsets, scales, scores, asked, later)`:
    `keys.score_block`, asking for the codes at two addresses.
    """
    module, own, given = _function(path, [_POINTER, I64, I64, *[_POINTER] * 5, I64, I64])
    codes, line, *others, soon, later = given
    asked = [Asked(own.builder, start, line) for start in (soon, later)]
    score_block(own, shape, *[codes, line, *others, asked])
    own.builder.ret_void()
    return module


def value_module(path: type[Portable], shape: Shape) -> Value:
    """A module with `run(codes, places, groups, line, head_dim, table, weights, scales, sums, asked)`:
    `values.mix_span`, asking for the blocks at addresses `asked`.
    """
    module, own, given = _function(path, [_POINTER, _POINTER, I64, I64, I64, *[_POINTER] * 5])
    mix_span(own, shape, *given)
    own.builder.ret_void()
    return module


def _function(path: type[Portable], kinds: list[Value]) -> tuple[Value, Portable, Value]:
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), "run")
    return module, path(ir.IRBuilder(function.append_basic_block())), function.args


def assembly(module: Value, cpu: str) -> list[str]:
    """Lines of assembly for a processor by LLVM's name for it (`znver4`, `haswell`, ...)."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module.triple = TRIPLE
    machine = llvm.Target.from_triple(TRIPLE).create_target_machine(cpu=cpu, opt=3)
    lines: list[str] = machine.emit_assembly(optimized(llvm.parse_assembly(str(module)), machine)).splitlines()
    return lines


def optimized(module: Value, machine: Value) -> Value:
    """A module after LLVM's passes of level 3."""
    module.verify()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(module, builder)
    return module


def key_loops(path: type[Portable], shape: Shape, cpu: str) -> list[Loop]:
    """The loops over subspaces, one a part of a block."""
    work = path.width * max(shape.subspaces, 1)
    return _innermost(assembly(key_module(path, shape), cpu), work)


def value_loops(path: type[Portable], shape: Shape, cpu: str) -> list[Loop]:
    """The loops over groups of blocks, one a part of a subspace's components."""
    work = 64 * path.scaled * subspaces_at_once(path, shape)
    return _innermost(assembly(value_module(path, shape), cpu), work)


def instructions(loops: list[Loop], *, parts: bool) -> float:
    """Instructions per 64 tokens and subspace: the mean where loops share the tokens (`parts`), else the sum."""
    found = [loop.per_block for loop in loops]
    return sum(found) / (len(found) if parts else 1)


def _innermost(lines: list[str], work: int) -> list[Loop]:
    """Loops that hold vector instructions and no other loop."""
    lines = [line.replace("{vex}", "") for line in lines]  # before an instruction that has another encoding too
    labels: dict[str, int] = {}
    spans: list[tuple[int, int]] = []
    for i, line in enumerate(lines):
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = i
        jump = re.match(r"\s+j\w+\s+(\.L\w+)", line)
        if jump and jump[1] in labels:
            spans.append((labels[jump[1]], i))
    inner = [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    found = []
    for first, last in inner:
        body = [line for line in lines[first : last + 1] if re.match(r"\s+[a-z]", line)]
        if any(re.search(r"%[xyz]mm", line) for line in body):
            names = Counter(line.split()[0] for line in body)
            found.append(Loop(names, sum("(%rsp" in line for line in body), work))
    return found
