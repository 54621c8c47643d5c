"""What a processor offers to attention on exact vectors, and how a row of numbers falls into its registers."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from llvmlite.binding import get_host_cpu_features, llvm_version_info

from pqkv.cpu_path import cpu_path

FLOAT32, BFLOAT16, FLOAT16 = range(3)  # lengths of a `kind`: what numbers are


@dataclass(frozen=True, slots=True)
class Form:
    """Vectors of `lanes` float32, of which `registers` can be held. `converts`: half precision is widened by an
    instruction (F16C). `dots`: products of pairs of bfloat16 are summed by one (`vdpbf16ps`); `emulated` writes them
    out, so that code made for them runs on any processor.
    """

    lanes: int
    registers: int
    converts: bool = False
    dots: bool = False
    emulated: bool = False

    @property
    def sums(self) -> int:
        """Sums under way at once: enough to hide how long a product takes, few enough to leave room for the rest."""
        return self.registers // 2


# a form's place here is the length of its tag, which compiled code is cached by
FORMS: dict[str, Form] = {
    "portable": Form(4, 16),
    "avx2": Form(8, 16, converts=True),
    "avx512": Form(16, 32, converts=True),
    "avx512-bf16": Form(16, 32, converts=True, dots=True),
    "avx512-bf16 emulated": Form(16, 32, dots=True, emulated=True),
}
_DOTS_SINCE = 16  # LLVM's `vdpbf16ps` takes bfloat16 from this version on


def form_of(features: Mapping[str, bool], llvm: int) -> str:
    """The fastest form of a processor with these `features` that this version of LLVM compiles."""

    def has(*names: str) -> bool:
        return all(features.get(name) for name in names)

    if has("avx512f", "avx512vl", "avx512bw", "avx512dq"):
        return "avx512-bf16" if has("avx512bf16") and llvm >= _DOTS_SINCE else "avx512"
    return "avx2" if has("avx2", "fma", "f16c") else "portable"


@functools.cache
def host_form() -> str:
    """The form of this process: the fastest of this machine, or of what `PQKV_CPU_PATH` leaves of it."""
    return form_of(cpu_path().allowed(get_host_cpu_features()), llvm_version_info[0])


def uses_dots(kind: int, form: Form) -> bool:
    """Whether pairs of numbers of this kind are multiplied as they are, and not widened first."""
    return form.dots and kind == BFLOAT16


@dataclass(frozen=True, slots=True)
class Piece:
    """`width` numbers of a row, loaded at once; `vectors` says which of them (-1: none, 0 in its place) each lane of
    the registers holds that they become.
    """

    width: int
    vectors: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Row:
    """How a row is read: `full` as often as it fits, then each of `rest` once."""

    full: Piece
    rest: tuple[Piece, ...]

    def order(self, head_dim: int) -> np.ndarray:
        """Which number of a row each lane holds, -1 for none; (registers, lanes) int64."""
        lanes, start = [], 0
        for piece in (*[self.full] * (head_dim // self.full.width), *self.rest):
            lanes += [[start + i if i >= 0 else -1 for i in vector] for vector in piece.vectors]
            start += piece.width
        return np.array(lanes, np.int64)


def width_of(kind: int, form: Form) -> int:
    """Numbers of a row that are read at once."""
    return form.lanes * (2 if kind == BFLOAT16 else 1)


@functools.cache
def key_row(rest: int, kind: int, form: Form) -> Row:
    """How keys are read whose last `rest` numbers fill no piece. Pairs stay as they lie. Else a register of bfloat16
    becomes two of float32, of its even and of its odd numbers: a shift and a mask.
    """
    L, width = form.lanes, width_of(kind, form)
    full = tuple(tuple(range(odd, width, width // L)) for odd in range(width // L))
    lanes = L
    if uses_dots(kind, form):
        full, lanes = (tuple(range(width)),), width
    pieces = tuple(Piece(n, ((*range(n), *[-1] * (lanes - n)),)) for n in _cut(rest))
    return Row(Piece(width, full), pieces)


@functools.cache
def value_row(rest: int, kind: int, form: Form) -> Row:
    """How values are read. Where pairs are multiplied they are of two tokens, whose registers are interleaved."""
    row = key_row(rest, kind, form)
    if not uses_dots(kind, form):
        return row

    def interleaved(piece: Piece) -> Piece:
        return Piece(piece.width, tuple(tuple(piece.vectors[0][i] for i in half) for half in interleaved_lanes(form)))

    return Row(interleaved(row.full), tuple(map(interleaved, row.rest)))


def interleaved_lanes(form: Form) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which numbers of two registers meet where they are interleaved within each 128 bits: the first four of each
    eight, and the others.
    """
    low, high = (tuple(at + half + i for at in range(0, 2 * form.lanes, 8) for i in range(4)) for half in (0, 4))
    return low, high


def _cut(count: int) -> list[int]:
    """Powers of two, the largest first, that add up to `count`."""
    return [1 << bit for bit in range(count.bit_length())[::-1] if count >> bit & 1]


@functools.cache
def orders(head_dim: int, kind: int, form: Form) -> tuple[np.ndarray, np.ndarray]:
    """Which element each lane holds of a query that meets keys, and of sums of values: see `Row.order`."""
    rest = head_dim % width_of(kind, form)
    return key_row(rest, kind, form).order(head_dim), value_row(rest, kind, form).order(head_dim)
