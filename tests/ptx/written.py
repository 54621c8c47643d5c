"""Kernels written by hand: a body between loading what a thread is given and storing what it found."""

import numpy as np

from ptx import GlobalMemory, launch, load

_HEAD = """
.version 9.0
.target sm_90
.address_size 64
{variables}
.visible .entry written(
    .param .u64 written_param_0,
    .param .u64 written_param_1
)
{{
    .reg .pred %p<8>;
    .reg .b16 %h<8>;
    .reg .b32 %r<24>;
    .reg .f32 %f<12>;
    .reg .b64 %rd<24>;
    .reg .f64 %d<4>;
    mov.u32 %r20, %tid.x;
    ld.param.u64 %rd20, [written_param_0];
    ld.param.u64 %rd21, [written_param_1];
    {body}
    ret;
}}
"""


def kernel(body, variables=""):
    """%r20 is the thread, %rd20 and %rd21 are the addresses of what is given and of what is found."""
    return _HEAD.format(body=body, variables=variables)


def run(body, given, found, *, threads=32, variables="", seed=0, grid=(1,), most_steps=100_000):
    """Launch; `found` is written in place and returned. Arrays may be anything of NumPy."""
    memory = GlobalMemory()
    arguments = [memory.add(given, "given", writable=False), memory.add(found, "found")]
    launch(
        load(kernel(body, variables)), grid, threads, arguments, memory, seed=seed, most_steps=most_steps
    )  # fmt: skip
    return found


def evaluate(instruction, *operands, result="b32", threads=32):
    """One instruction of a few typed operands: `instruction` names them {0} (the result), {1}, ... Operands are arrays
    of one element a thread; their dtypes choose the registers.
    """
    given = [np.ascontiguousarray(np.broadcast_to(one, threads)) for one in operands]
    lines, names, at = [], [], 0
    for i, one in enumerate(given):
        size, kind = one.dtype.itemsize, one.dtype.kind
        register = {(2, "u"): "%h", (4, "u"): "%r", (4, "f"): "%f", (8, "u"): "%rd", (8, "f"): "%d"}[size, kind] + str(
            i
        )
        bits = 8 * size
        lines.append(f"mul.wide.u32 %rd10, %r20, {size}; add.s64 %rd10, %rd10, %rd20;")
        lines.append(f"ld.global.{'f' if kind == 'f' else 'u'}{bits} {register}, [%rd10+{at}];")
        names.append(register)
        at += -(-size * threads // 16) * 16
    parts = [one.tobytes().ljust(-(-one.nbytes // 16) * 16, b"\0") for one in given]
    size, kind = int(result[1:]) // 8, result[0]
    target = {"b16": "%h7", "b32": "%r19", "f32": "%f11", "b64": "%rd19", "f64": "%d3"}[result]
    lines.append(instruction.format(target, *names) + ";")
    lines.append(f"mul.wide.u32 %rd10, %r20, {size}; add.s64 %rd10, %rd10, %rd21;")
    lines.append(f"st.global.{result} [%rd10], {target};")
    found = np.zeros(threads, f"{'f' if kind == 'f' else 'u'}{size}")
    return run("\n".join(lines), np.frombuffer(b"".join(parts), np.uint8).copy(), found, threads=threads)
