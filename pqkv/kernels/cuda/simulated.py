"""The simulator's twins of `intrinsics.py`: the same results from NumPy scalars, a barrier per group of lanes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any, cast

import numpy as np
from numba.cuda.simulator import kernel as simulator

from pqkv.kernels.cuda.steps import KeyStep, ValueStep

_WAIT = 60  # seconds until a lane that never comes is an error and not a hang
_lock = threading.Lock()


class _Running:
    """The module `cuda` as the kernel that runs has it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(simulator._get_kernel_context(), name)


def device_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """See `intrinsics.device_function`. Numba's own puts the simulated `cuda` into the function's module for each call
    and takes it out again while other threads are in it.
    """
    written = cast(FunctionType, function)
    names = {**written.__globals__, "cuda": _Running()}
    return FunctionType(written.__code__, names, written.__name__, written.__defaults__, written.__closure__)


def load_four(words: Any, index: int) -> tuple[np.uint32, ...]:
    """See `intrinsics.load_four`; a misaligned index is an error, as it is on a device."""
    if int(index) % 4:
        raise IndexError(f"a 128-bit load from word {int(index)}, which is not a multiple of 4")
    return tuple(words[int(index) + i] for i in range(4))


def floats_of_halves(word: Any) -> tuple[np.float32, np.float32]:
    """See `intrinsics.floats_of_halves`."""
    low, high = np.array([word], np.uint32).view(np.float16).astype(np.float32)
    return low, high


def floats_of_bfloats(word: Any) -> tuple[np.float32, np.float32]:
    """See `intrinsics.floats_of_bfloats`."""
    low, high = np.array([int(word) << 16 & 0xFFFFFFFF, int(word) & 0xFFFF0000], np.uint32).view(np.float32)
    return low, high


def load_floats(words: Any, index: int, target: Any, at: int) -> None:
    """See `intrinsics.load_floats`."""
    target[at : at + 4] = np.array(load_four(words, index), np.uint32).view(np.float32)


def load_halves(words: Any, index: int, target: Any, at: int) -> None:
    """See `intrinsics.load_halves`."""
    target[at : at + 8] = np.array(load_four(words, index), np.uint32).view(np.float16)


def load_bfloats(words: Any, index: int, target: Any, at: int) -> None:
    """See `intrinsics.load_bfloats`."""
    bits = np.array(load_four(words, index), np.uint32).view(np.uint16)
    target[at : at + 8] = (bits.astype(np.uint32) << 16).view(np.float32)


def bits_of_halves(low: Any, high: Any) -> np.uint32:
    """See `intrinsics.bits_of_halves`."""
    with np.errstate(over="ignore"):
        word: np.uint32 = np.array([low, high], np.float32).astype(np.float16).view(np.uint32)[0]
    return word


def multiply_add_halves(a: Any, b: Any, c: Any) -> np.uint32:
    """See `intrinsics.multiply_add_halves`; products of halves are exact in float32, so one rounding is left."""
    x, y, z = (np.array([word], np.uint32).view(np.float16).astype(np.float64) for word in (a, b, c))
    with np.errstate(over="ignore", invalid="ignore"):
        word: np.uint32 = (x * y + z).astype(np.float16).view(np.uint32)[0]
    return word


def add_halves(a: Any, b: Any) -> np.uint32:
    """See `intrinsics.add_halves`."""
    return multiply_add_halves(a, 0x3C003C00, b)


def power_of_two(x: Any) -> np.float32:
    """See `intrinsics.power_of_two`."""
    with np.errstate(under="ignore", over="ignore"):
        value = np.exp2(np.float32(x))
    return np.float32(0) if value < np.finfo(np.float32).tiny else value


def exchange(mask: Any, value: Any, offset: Any) -> np.float32:
    """See `intrinsics.exchange`: lanes of `mask` meet at a barrier of their own, write, and read their partner's."""
    thread: Any = threading.current_thread()  # the simulator's own kind, which knows its place in the block
    lane, warp, named = thread.thread_id % 32, thread.thread_id // 32, int(mask)
    if not named >> lane & 1:
        raise RuntimeError(f"lane {lane} exchanges without being in the mask {named:#010x}")
    with _lock:
        meetings = thread._manager.__dict__.setdefault("_pqkv_meetings", {})
        key = (str(thread.blockIdx), warp, named)
        if key not in meetings:
            meetings[key] = (threading.Barrier(named.bit_count()), [None] * 32)
        barrier, slots = meetings[key]
    slots[lane] = np.float32(value)
    barrier.wait(_WAIT)
    result = slots[lane ^ int(offset)]
    barrier.wait(_WAIT)
    if result is None:
        raise RuntimeError(f"lane {lane} reads lane {lane ^ int(offset)}, which is not in the mask {named:#010x}")
    return result


def float_of(word: Any) -> np.float32:
    """See `intrinsics.float_of`."""
    value: np.float32 = np.array([word], np.uint32).view(np.float32)[0]
    return value


def bits_of(value: Any) -> np.uint32:
    """See `intrinsics.bits_of`."""
    word: np.uint32 = np.array([value], np.float32).view(np.uint32)[0]
    return word


def low_twice(word: Any) -> np.uint32:
    """See `intrinsics.low_twice`."""
    return np.uint32((int(word) & 0xFFFF) * 0x10001)


def high_twice(word: Any) -> np.uint32:
    """See `intrinsics.high_twice`."""
    return np.uint32((int(word) >> 16) * 0x10001)


def shared_word(table: Any, offset: Any) -> np.uint32:
    """See `intrinsics.shared_word`."""
    if int(offset) % 4:
        raise IndexError(f"a word at byte {int(offset)}, which is not a multiple of 4")
    word: np.uint32 = table[int(offset) // 4]
    return word


def copy_four(words: Any, index: Any, table: Any, at: Any) -> None:
    """See `intrinsics.copy_four`."""
    if int(at) % 4:
        raise IndexError(f"128 bits to word {int(at)}, which is not a multiple of 4")
    table[int(at) : int(at) + 4] = np.array(load_four(words, index), np.uint32)


def finish_copies() -> None:
    """See `intrinsics.finish_copies`."""


def words_loader(count: int) -> Callable[..., None]:
    """See `lookups.words_loader`."""

    def load(words: Any, index: int, target: Any, at: int) -> None:
        if int(index) % count:
            raise IndexError(f"a load of {count} words from word {int(index)}, which is not a multiple of {count}")
        for i in range(count):
            target[int(at) + i] = np.array([words[int(index) + i]]).view(np.uint32)[0]

    return load


def key_step(step: KeyStep) -> Callable[..., None]:
    """See `lookups.key_step`."""
    one = step.group == 1 and not step.decodes

    def look_up(held: Any, tables: Any, at: Any, query: Any, query_at: Any, score: Any) -> None:
        sums: dict[tuple[int, int], np.uint32] = {}
        for m in range(step.subspaces):
            for token in range(step.tokens):
                code = _code(held, step.bit(token, m), step.nbits)
                place = (m * step.entries + code) * step.entry_words
                for w in range(step.entry_words):
                    word = shared_word(tables, int(at) + 4 * (place + w))
                    if step.decodes:
                        for g in range(step.group):
                            asked = query[int(query_at) // 4 + (m * step.entry_words + w) * step.group + g]
                            sums[token, g] = multiply_add_halves(asked, word, sums.get((token, g), 0))
                    elif one:
                        score[token] += float_of(word)
                    else:
                        sums[token, w] = add_halves(sums[token, w], word) if (token, w) in sums else word
            if m % step.flush == step.flush - 1:
                for (token, part), word in sums.items():
                    lower, upper = floats_of_halves(word)
                    if step.decodes:
                        score[token * step.group + part] += lower + upper
                    else:
                        score[token * step.group + 2 * part] += lower
                        if 2 * part + 1 < step.group:
                            score[token * step.group + 2 * part + 1] += upper
                sums = {}

    return look_up


def value_step(step: ValueStep) -> Callable[..., None]:
    """See `lookups.value_step`."""

    def mix(line: Any, tables: Any, at: Any, weights: Any, weights_at: Any, acc: Any, acc_at: int) -> None:
        if int(weights_at) % 16:
            raise IndexError(f"a 128-bit load of weights from byte {int(weights_at)}")
        for start in range(0, step.tokens, 8):
            sums: dict[tuple[int, int], np.uint32] = {}
            for first in (start, start + 4):
                four: dict[tuple[int, int], np.uint32] = {}
                for token in range(first, first + 4):
                    code = _code(line, step.bit(token), step.nbits)
                    for w in range(step.words):
                        entry = shared_word(tables, int(at) + 4 * (w * step.entries + code) * step.stride)
                        for g in range(step.group):
                            weight = weights[int(weights_at) // 4 + token * step.weight_words + g // 2]
                            if step.group > 1:
                                weight = low_twice(weight) if g % 2 == 0 else high_twice(weight)
                            four[w, g] = multiply_add_halves(weight, entry, four.get((w, g), 0))
                for part, word in four.items():
                    sums[part] = add_halves(sums[part], word) if part in sums else word
            for (w, g), word in sums.items():
                lower, upper = floats_of_halves(word)
                acc[int(acc_at) + g * step.elements + 2 * w] += lower
                if 2 * w + 1 < step.elements:
                    acc[int(acc_at) + g * step.elements + 2 * w + 1] += upper

    return mix


def bias_step(tokens: int, group: int) -> Callable[..., None]:
    """See `lookups.bias_step`."""
    width = next(w for w in (4, 2, 1) if group % w == 0)

    def add_bias(rows: Any, at: Any, weights: Any, weights_at: Any, score: Any) -> None:
        if int(at) % 4 or int(weights_at) % (4 * width):
            raise IndexError(f"a load of 4 numbers from {int(at)} on, or of {width} words from byte {int(weights_at)}")
        first = int(weights_at) // 4
        heads = np.array(weights[first : first + group], np.uint32).view(np.float32)
        score[:] += np.outer(rows[int(at) : int(at) + tokens], heads).ravel()

    return add_bias


def _code(words: Any, bit: int, nbits: int) -> int:
    """The `nbits` bits at `bit` of an array of words."""
    found = int(words[bit // 32]) >> bit % 32
    if bit % 32 + nbits > 32:
        found |= int(words[bit // 32 + 1]) << (32 - bit % 32)
    return found & ((1 << nbits) - 1)
