"""The generator's functions compiled outside Numba.

Where a path's instructions are not those of this processor, they are defined in plain LLVM as their manual has them
(`software`), so that what composes them is executed everywhere.
"""

import ctypes
import re
from collections import Counter

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from pqkv.kernels.cpu.byte_lookups import weights
from pqkv.kernels.cpu.byte_lookups.assembly import optimized
from pqkv.kernels.cpu.byte_lookups.instructions import I8, I16, I32, I64, Portable, vector_of
from pqkv.kernels.cpu.byte_lookups.one_plane import ByteQueries, ByteWeights

POINTER = I8.as_pointer()


def weigh(path, heads, gained):
    """weigh(scores, groups, top, gains, inverse, weights, scales, mass, norm)"""

    def emit(own, *arguments):
        weights.weigh(own, heads, gained, *arguments)

    return _module(path, [POINTER, I64, *[POINTER] * 7], emit)


def largest(path, heads):
    """largest(scores, blocks, top)"""

    def emit(own, scores, blocks, top):
        weights.largest(own.builder, scores, blocks, heads, top)

    return _module(path, [POINTER, I64, POINTER], emit)


def _module(path, arguments, emit):
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), "run")
    own = path(ir.IRBuilder(function.append_basic_block()))
    emit(own, *function.args)
    own.builder.ret_void()
    return module


class Compiled:
    """A module's `run` on this processor; numbers are passed as they are, arrays by their address. `recorded` has what
    is asked of memory noted down in place of asking (`prefetched`).
    """

    def __init__(self, module, *, software=False, recorded=False):
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        text = str(module)
        if software:
            text = _with_software(text)
        if recorded:
            self._asked = np.zeros(1 << 12, np.int64)  # how many, and the addresses
            text = _with_notes(text, self._asked.ctypes.data)
        features = llvm.get_host_cpu_features().flatten()
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=features, opt=2
        )
        self.engine = llvm.create_mcjit_compiler(optimized(llvm.parse_assembly(text), machine), machine)
        self.engine.finalize_object()
        self.address = self.engine.get_function_address("run")

    def __call__(self, *arguments):
        kinds = [ctypes.c_int64 if isinstance(a, int) else ctypes.c_void_p for a in arguments]
        given = [a if isinstance(a, int) else a.ctypes.data for a in arguments]
        ctypes.CFUNCTYPE(None, *kinds)(self.address)(*given)

    def prefetched(self):
        """How often each address was asked for."""
        return Counter(self._asked[1 : 1 + self._asked[0]].tolist())


def _with_notes(text, room):
    """A module whose prefetches write their addresses down."""
    text = re.sub(r'^declare .*@"llvm\.prefetch.*$', "", text, flags=re.MULTILINE).replace("llvm.prefetch.p0", "noted")
    defined = ir.Module()
    kinds = [POINTER, I32, I32, I32]
    builder = ir.IRBuilder(ir.Function(defined, ir.FunctionType(ir.VoidType(), kinds), "noted").append_basic_block())
    places = builder.inttoptr(I64(room), I64.as_pointer())
    count = builder.add(builder.load(places), I64(1))
    builder.store(count, places)
    builder.store(builder.ptrtoint(builder.function.args[0], I64), builder.gep(places, [count]))
    builder.ret_void()
    return text + "\n" + "\n".join(str(function) for function in defined.functions)


def _with_software(text):
    """A module whose intrinsics of x86 are functions of its own."""
    named = set(re.findall(r'declare .*@"(llvm\.x86\.[a-z0-9.]+)"', text))
    text = re.sub(r'^declare .*@"llvm\.x86\..*$', "", text, flags=re.MULTILINE).replace("llvm.x86.", "soft.x86.")
    defined = ir.Module()
    for name in sorted(named):
        _define(defined, name)
    bodies = "\n".join(str(function) for function in defined.functions)
    return text + "\n" + bodies


def _define(module, name):
    make = SOFTWARE[name.removeprefix("llvm.x86.")]
    kinds, result, body = make
    function = ir.Function(module, ir.FunctionType(result, kinds), name.replace("llvm.", "soft."))
    builder = ir.IRBuilder(function.append_basic_block())
    builder.ret(body(builder, *function.args))


def _lanes(builder, vector, kind):
    """Elements of a vector, seen as numbers of one kind."""
    bits = vector.type.count * vector.type.element.width
    vector = builder.bitcast(vector, vector_of(kind, bits // kind.width))
    return [builder.extract_element(vector, I32(i)) for i in range(vector.type.count)]


def _gather(builder, elements, kind):
    result = ir.Constant(kind, ir.Undefined)
    for i, element in enumerate(elements):
        result = builder.insert_element(result, element, I32(i))
    return result


def _chosen(builder, table, index, kind):
    """table[index] for a computed index: a chain of choices."""
    found = table[0]
    for i, entry in enumerate(table[1:], 1):
        found = builder.select(builder.icmp_unsigned("==", index, index.type(i)), entry, found)
    return builder.trunc(found, kind) if found.type != kind else found


def _pshufb(builder, table, codes):
    """Within each 16 bytes: table[code & 15], 0 where the code's top bit is set."""
    entries, found = _lanes(builder, table, I8), []
    for i, code in enumerate(_lanes(builder, codes, I8)):
        own = entries[i // 16 * 16 : i // 16 * 16 + 16]
        value = _chosen(builder, own, builder.and_(code, I8(15)), I8)
        found.append(builder.select(builder.icmp_signed("<", code, I8(0)), I8(0), value))
    return _gather(builder, found, codes.type)


def _vpermb(builder, table, codes):
    """table[code & 63]"""
    entries = _lanes(builder, table, I8)
    return _gather(
        builder,
        [_chosen(builder, entries, builder.and_(c, I8(63)), I8) for c in _lanes(builder, codes, I8)],
        codes.type,
    )


def _vpermi2(kind):
    """(low, high)[code & 127] of bytes, & 63 of words."""

    def body(builder, low, codes, high):
        entries = [*_lanes(builder, low, kind), *_lanes(builder, high, kind)]
        last = kind(len(entries) - 1)
        return _gather(
            builder,
            [_chosen(builder, entries, builder.and_(c, last), kind) for c in _lanes(builder, codes, kind)],
            codes.type,
        )

    return body


def _multishift(builder, starts, data):
    """Each byte: eight bits of its own 64 from bit start & 63 on, around the end."""
    words, found = _lanes(builder, data, I64), []
    for i, start in enumerate(_lanes(builder, starts, I8)):
        word, by = words[i // 8], builder.zext(builder.and_(start, I8(63)), I64)
        up = builder.and_(builder.sub(I64(64), by), I64(63))
        turned = builder.or_(builder.lshr(word, by), builder.shl(word, up))
        found.append(builder.trunc(builder.select(builder.icmp_unsigned("==", by, I64(0)), word, turned), I8))
    return _gather(builder, found, starts.type)


def _dot(first, second, of):
    """Products of `of` neighbours, extended as given, added to a lane of int32."""

    def body(builder, *arguments):
        *total, a, b = arguments
        kind = I8 if of == 4 else I16
        xs, ys = _lanes(builder, a, kind), _lanes(builder, b, kind)
        sums = _lanes(builder, total[0], I32) if total else [I32(0)] * (len(xs) // of)
        for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
            product = builder.mul(getattr(builder, first)(x, I32), getattr(builder, second)(y, I32))
            sums[i // of] = builder.add(sums[i // of], product)
        return _gather(builder, sums, vector_of(I32, len(sums)))

    return body


def _maddubs(builder, a, b):
    """Sums of two products of bytes, the first unsigned, as far as 16 bits go."""
    xs, ys = _lanes(builder, a, I8), _lanes(builder, b, I8)
    products = [builder.mul(builder.zext(x, I32), builder.sext(y, I32)) for x, y in zip(xs, ys, strict=True)]
    found = []
    for one, other in zip(products[::2], products[1::2], strict=True):
        total, most, least = builder.add(one, other), I32(2**15 - 1), I32(-(2**15))
        total = builder.select(builder.icmp_signed(">", total, most), most, total)
        total = builder.select(builder.icmp_signed("<", total, least), least, total)
        found.append(builder.trunc(total, I16))
    return _gather(builder, found, vector_of(I16, len(found)))


_B64, _B32, _W32, _W16, _S16, _S8 = (
    vector_of(kind, n) for kind, n in ((I8, 64), (I8, 32), (I16, 32), (I16, 16), (I32, 16), (I32, 8))
)
SOFTWARE = {
    "avx2.pshuf.b": ([_B32, _B32], _B32, _pshufb),
    "avx512.pshuf.b.512": ([_B64, _B64], _B64, _pshufb),
    "avx512.permvar.qi.512": ([_B64, _B64], _B64, _vpermb),
    "avx512.vpermi2var.qi.512": ([_B64, _B64, _B64], _B64, _vpermi2(I8)),
    "avx512.vpermi2var.hi.512": ([_W32, _W32, _W32], _W32, _vpermi2(I16)),
    "avx512.pmultishift.qb.512": ([_B64, _B64], _B64, _multishift),
    "avx2.pmadd.ub.sw": ([_B32, _B32], _W16, _maddubs),
    "avx2.pmadd.wd": ([_W16, _W16], _S8, _dot("sext", "sext", 2)),
    "avx512.vpdpwssd.512": ([_S16, _W32, _W32], _S16, _dot("sext", "sext", 2)),
    "avx512.vpdpbusd.256": ([_S8, _B32, _B32], _S8, _dot("zext", "sext", 4)),
    "avx512.vpdpbusd.512": ([_S16, _B64, _B64], _S16, _dot("zext", "sext", 4)),
}


def portable_like(path):
    """Plain LLVM with the lanes, scales and integers of another path."""
    names = ("lanes", "scaled", "largest_weight", "largest_query")
    forms = [form for form in (ByteQueries, ByteWeights) if issubclass(path, form)]
    return type("Like", (*forms, Portable), {name: getattr(path, name) for name in names})
