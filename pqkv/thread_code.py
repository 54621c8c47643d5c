"""Compiled functions on several threads at once: units of work that each thread takes until none is left, and functions
that are given, once, all of their arguments that stay, to be called by address with those that change.

To call a compiled function from Python takes long where it has many arguments: each is looked at for its type, and the
objects of arrays lie in no cache when a model has run in between. What is `bound` is two numbers.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from pqkv.vector_code import I32, I64, data

_BYTES = ir.IntType(8).as_pointer()
_PART = ir.FunctionType(ir.VoidType(), [_BYTES])
_TEAM = ir.FunctionType(ir.VoidType(), [_PART.as_pointer(), _BYTES, I32, I32])
_BOUND = ir.FunctionType(I32, [_BYTES, _BYTES])  # (its arguments that stay, those of a call) -> 0, or 1 if it failed


@intrinsic
def next_unit(typing_context: Any, taken: Any) -> Any:
    """taken[0], and count it up in the same instant: threads that share `taken`, int64 (1,), get each number once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", data(context, builder, signature, arguments, 0), I64(1), "monotonic")

    return types.int64(taken), generate


@intrinsic
def is_last(typing_context: Any, left: Any, index: Any) -> Any:
    """Count left[index] down in one instant; whether it is 0 now. Who finds that sees all that the others wrote before
    they counted.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.gep(data(context, builder, signature, arguments, 0), [arguments[1]])
        return builder.icmp_signed("==", builder.atomic_rmw("sub", place, I64(1), "acq_rel"), I64(1))

    return types.boolean(left, types.int64), generate


@intrinsic
def pointer_to(typing_context: Any, address: Any, dtype: Any) -> Any:
    """An address as what `numba.carray` takes, to numbers of `dtype`."""
    kind = types.CPointer(dtype.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(kind))

    return kind(types.int64, dtype), generate


@intrinsic
def on_threads(typing_context: Any, launch: Any, count: Any, function: Any, arguments: Any) -> Any:
    """Call compiled `function(*arguments)` on `count` threads at once, none of which holds the interpreter's lock, and
    return whether any of them failed. `launch` is the address of OpenMP's `GOMP_parallel`, not asked for one thread.
    """
    wanted = typing_context.resolve_function_type(function, tuple(arguments.types), {})

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        target = _linked(context, builder, function, wanted)
        values = _lent_values(context, builder, cgutils.unpack_tuple(builder, given[3]), arguments.types, wanted.args)
        shared = cgutils.alloca_once(builder, ir.LiteralStructType([I32, *(value.type for value in values)]))
        for i, value in enumerate([I32(0), *values]):
            builder.store(value, builder.gep(shared, [I32(0), I32(i)]))
        part, own = _function(builder, _PART, "part")
        fields = [own.gep(own.bitcast(part.args[0], shared.type), [I32(0), I32(i)]) for i in range(len(values) + 1)]
        status, _ = context.call_conv.call_function(
            own, target, wanted.return_type, wanted.args, [own.load(field) for field in fields[1:]]
        )
        with cgutils.if_unlikely(own, status.is_error):
            own.store(I32(1), fields[0])
        own.ret_void()
        _launch(builder, given[0], given[1], part, builder.bitcast(shared, _BYTES))
        return builder.trunc(builder.load(builder.gep(shared, [I32(0), I32(0)])), ir.IntType(1))

    return types.boolean(types.int64, types.int64, function, arguments), generate


@intrinsic
def bound_size(typing_context: Any, function: Any, changing: Any, arguments: Any) -> Any:
    """Bytes that `bind` writes of these arguments."""
    wanted = _wanted(typing_context, function, changing, arguments)

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kinds = [context.get_value_type(kind) for kind in wanted.args[1:]]
        return I64(context.get_abi_sizeof(ir.LiteralStructType(kinds)))

    return types.int64(function, changing, arguments), generate


@intrinsic
def bind(typing_context: Any, function: Any, changing: Any, arguments: Any, room: Any) -> Any:
    """Write `arguments` into `room` (uint8, of `bound_size`) and return the address of what calls compiled
    `function(own, *arguments)`, for `call_bound`: `changing` is the Numba type of `own`. Whoever keeps the room keeps
    what owns the memory of arrays among the arguments.
    """
    wanted = _wanted(typing_context, function, changing, arguments)

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        target = _linked(context, builder, function, wanted)
        values = cgutils.unpack_tuple(builder, given[2])
        kept = _lent_values(context, builder, values, arguments.types, wanted.args[1:])
        kind = ir.LiteralStructType([value.type for value in kept])
        place = builder.bitcast(data(context, builder, signature, given, 3), kind.as_pointer())
        for i, value in enumerate(kept):
            builder.store(value, builder.gep(place, [I32(0), I32(i)]))
        part, own = _function(builder, _BOUND, "bound")
        stored = own.bitcast(part.args[0], kind.as_pointer())
        now = own.load(own.bitcast(part.args[1], context.get_value_type(wanted.args[0]).as_pointer()))
        loaded = [own.load(own.gep(stored, [I32(0), I32(i)])) for i in range(len(kept))]
        status, _ = context.call_conv.call_function(own, target, wanted.return_type, wanted.args, [now, *loaded])
        own.ret(own.zext(status.is_error, I32))
        return builder.ptrtoint(part, I64)

    return types.int64(function, changing, arguments, room), generate


@intrinsic
def call_bound(typing_context: Any, launch: Any, count: Any, addresses: Any, changing: Any, own: Any) -> Any:
    """On `count` threads at once, as `on_threads` has them, call one after another what lies bound at `addresses`: of
    each the two numbers, (function, room), that are 0 where there is none. `own` is of the type `changing` that they
    were bound for. Whether any call failed.
    """
    if own != changing.instance_type or not all(kind == types.int64 for kind in addresses.types):
        raise TypingError(f"{own} or {addresses} is not what was bound: {changing.instance_type}, integers of 64 bits")

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        numbers = cgutils.unpack_tuple(builder, given[2])
        value = _lent(context, builder, own, given[4])
        kind = ir.LiteralStructType([I32, *[I64] * len(numbers), value.type])
        shared = cgutils.alloca_once(builder, kind)
        for i, field in enumerate([I32(0), *numbers, value]):
            builder.store(field, builder.gep(shared, [I32(0), I32(i)]))
        part, team = _function(builder, _PART, "team")
        fields = [team.gep(team.bitcast(part.args[0], shared.type), [I32(0), I32(i)]) for i in range(len(numbers) + 2)]
        now = team.bitcast(fields[-1], _BYTES)
        for function, room in zip(fields[1:-1:2], fields[2:-1:2], strict=True):
            address = team.load(function)
            with team.if_then(team.icmp_unsigned("!=", address, I64(0))):
                call = team.inttoptr(address, _BOUND.as_pointer())
                failed = team.call(call, [team.inttoptr(team.load(room), _BYTES), now])
                with cgutils.if_unlikely(team, team.icmp_unsigned("!=", failed, I32(0))):
                    team.store(I32(1), fields[0])
        team.ret_void()
        _launch(builder, given[0], given[1], part, builder.bitcast(shared, _BYTES))
        return builder.trunc(builder.load(builder.gep(shared, [I32(0), I32(0)])), ir.IntType(1))

    return types.boolean(types.int64, types.int64, addresses, changing, own), generate


def _wanted(typing_context: Any, function: Any, changing: Any, arguments: Any) -> Any:
    """What a compiled function is compiled for, given a type and the types of a tuple."""
    return typing_context.resolve_function_type(function, (changing.instance_type, *arguments.types), {})


def _function(builder: Any, kind: Any, name: str) -> tuple[Any, Any]:
    """A new function of the module, and what writes into it."""
    function = ir.Function(builder.module, kind, builder.module.get_unique_name(name))
    function.linkage = "internal"
    return function, ir.IRBuilder(function.append_basic_block())


def _linked(context: Any, builder: Any, function: Any, wanted: Any) -> Any:
    """What the module calls for a compiled function."""
    found = function.dispatcher.get_compile_result(wanted)
    context.active_code_library.add_linking_library(found.library)
    return context.declare_function(builder.module, found.fndesc)


def _lent_values(context: Any, builder: Any, values: Any, before: Any, after: Any) -> list[Any]:
    return [
        _lent(context, builder, own, context.cast(builder, value, given, own))
        for value, given, own in zip(values, before, after, strict=True)
    ]


def _lent(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """The value with arrays that own nothing: the caller keeps them alive, and threads do not meet in counting how
    often each is used, for which they would wait for each other.
    """
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        array.meminfo = cgutils.get_null_value(array.meminfo.type)
        array.parent = cgutils.get_null_value(array.parent.type)
        return array._getvalue()
    if isinstance(kind, types.BaseTuple):
        parts = zip(kind.types, cgutils.unpack_tuple(builder, value), strict=True)
        return context.make_tuple(builder, kind, [_lent(context, builder, part, each) for part, each in parts])
    return value


def _launch(builder: Any, launch: Any, count: Any, part: Any, room: Any) -> None:
    """Call `part(room)` on `count` threads."""
    with builder.if_else(builder.icmp_signed("<=", count, I64(1))) as (alone, together):
        with alone:
            builder.call(part, [room])
        with together:
            team = builder.inttoptr(launch, _TEAM.as_pointer())
            builder.call(team, [part, room, builder.trunc(count, I32), I32(0)])
