"""Vector code written by hand through Numba intrinsics: what all kernels that emit it share.

LLVM does not vectorize loops whose loads depend on data. The helpers here write loads, shuffles and products into the
function that an intrinsic is compiled into; `builder` is llvmlite's. Compile-time constants come as the lengths of
tuples (`tag`), which are part of an argument's type, so that Numba compiles and caches one variant each.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba.core import cgutils
from numba.extending import overload

FLOAT, I16, I32, I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_FUSE = ("contract", "nsz")  # a product and a sum may become one instruction


def tag(number: int) -> tuple[int, ...]:
    """A tuple whose type says `number`."""
    return (0,) * number


def drop_stale_code(function: Any, *others: Path) -> None:
    """Remove what is cached of compiled `function` and its neighbours in its folder, where older than a source that it
    may come from: there, in `others`, folders too, or the helpers that all share. Numba looks only at the file of the
    outer function, and the vector code in it comes from others.
    """
    folder = Path(function.py_func.__code__.co_filename).parent
    if function.stats.cache_path is None:  # nothing is kept
        return
    with suppress(OSError):
        shared = (Path(__file__), Path(__file__).with_name("thread_code.py"))
        sources = (path for place in (folder, *others) for path in place.glob("*.py"))
        newest = max(path.stat().st_mtime for path in (*shared, *sources))
        for path in Path(function.stats.cache_path).glob("*.nb[ic]"):
            if path.stat().st_mtime < newest:
                path.unlink()


def chosen(choose: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: compiled code that calls `choose` runs the function that it returns. `choose` is given the Numba types
    of the arguments; the function takes the same arguments under the same names.
    """

    @wraps(choose)
    def compiled_only(*arguments: Any) -> Any:
        raise TypeError(f"{choose.__name__} runs in compiled code only")

    overload(compiled_only)(choose)
    return compiled_only


def data(context: Any, builder: Any, signature: Any, arguments: Any, index: int) -> Any:
    """Pointer to the first element of array argument `index`."""
    return context.make_array(signature.args[index])(context, builder, arguments[index]).data


def floats(lanes: int) -> Any:
    """Type of a vector of `lanes` float32."""
    return ir.VectorType(FLOAT, lanes)


def constant(kind: Any, values: list[Any]) -> Any:
    """A vector with one value a lane."""
    return ir.Constant(kind, values)


def number(builder: Any, pointer: Any, offset: Any) -> Any:
    """The element at `offset`."""
    return builder.load(builder.gep(pointer, [offset]), align=4)


def vector(builder: Any, pointer: Any, offset: Any, lanes: int) -> Any:
    """`lanes` float32 from `offset` on, wherever they are aligned."""
    place = builder.bitcast(builder.gep(pointer, [offset]), floats(lanes).as_pointer())
    return builder.load(place, align=4)


def store(builder: Any, value: Any, pointer: Any, offset: Any) -> None:
    """Write a vector from `offset` on."""
    place = builder.bitcast(builder.gep(pointer, [offset]), value.type.as_pointer())
    builder.store(value, place, align=4)


def shuffle(builder: Any, value: Any, lanes: list[int]) -> Any:
    """A vector whose lane i is lane lanes[i] of `value`."""
    mask = ir.Constant(ir.VectorType(I32, len(lanes)), lanes)
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), mask)


def splat(builder: Any, value: Any, lanes: int) -> Any:
    """One number in every lane."""
    one = builder.insert_element(ir.Constant(ir.VectorType(value.type, 1), ir.Undefined), value, I32(0))
    return shuffle(builder, one, [0] * lanes)


def add_product(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, fused where the processor can."""
    return builder.fadd(builder.fmul(a, b, flags=_FUSE), c, flags=_FUSE)


def variable(builder: Any, value: Any) -> Any:
    """A place that starts as `value`; LLVM keeps it in a register."""
    return cgutils.alloca_once_value(builder, value)


def prefetch(builder: Any, pointer: Any, level: int) -> None:
    """Ask for the line at `pointer`; level 3 is the first-level cache, 2 the second."""
    byte = ir.IntType(8).as_pointer()
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32]), "llvm.prefetch.p0"
    )
    builder.call(function, [builder.bitcast(pointer, byte), I32(0), I32(level), I32(1)])
