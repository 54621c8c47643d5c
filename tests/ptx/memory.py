"""Global, shared and local memory: every access within one allocation and aligned, nothing zero by chance."""

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from ptx.faults import Misaligned, OutOfBounds, PtxFault, Race
from ptx.scalars import LANES, NOBODY

_APART = 1 << 20  # bytes between global buffers: an index past the end of one does not land in the next
_GUARD = 256  # the same between arrays in shared and local memory
_MANY = -2  # warps that have read a word
_NOT_ALLOCATED = -3


def lay_out(variables):
    """({name: address}, [(first, last + 1)], bytes) of arrays in one space, each with room around it."""
    at, places, ranges = _GUARD, {}, []
    for variable in variables:
        at = -(-at // variable.align) * variable.align
        size = variable.count * int(variable.scalar[1:]) // 8
        places[variable.name] = at
        ranges.append((at, at + size))
        at += size + _GUARD
    return places, ranges, -(-at // 16) * 16


@dataclass(slots=True)
class Buffer:
    """Bytes of global memory. `writer` has the thread that wrote a byte, -1 for none; None until one is written."""

    base: int
    data: np.ndarray
    writable: bool
    name: str
    writer: np.ndarray | None = None
    read_only: bool = False  # whether anybody read it by way of ld.global.nc


class GlobalMemory:
    """Buffers far apart. They are views of the arrays given: what a kernel writes is seen there."""

    def __init__(self):
        self._buffers, self._bases = [], []
        self._next = 1 << 33  # above 32 bits: an address that was cut off is none

    def add(self, array, name="", *, writable=True, offset=0):
        """The address of a C-contiguous array, `offset` bytes past a multiple of 256."""
        data = np.atleast_1d(array)
        if not data.flags.c_contiguous:
            raise ValueError("a buffer is contiguous")
        data = data.reshape(-1).view(np.uint8)
        base = self._next + offset
        self._next += -(-(len(data) + _APART) // 256) * 256
        self._buffers.append(Buffer(base, data, writable, name or f"buffer {len(self._buffers)}"))
        self._bases.append(base)
        return base

    def new_launch(self):
        """What an earlier launch wrote is there for all."""
        for buffer in self._buffers:
            buffer.writer, buffer.read_only = None, False

    def load(self, addresses, size, count, thread, *, read_only=False):
        """`count` elements of `size` bytes from each address on, (lanes, count) unsigned."""
        found = np.empty((len(addresses), count), f"u{size}")
        for buffer, lanes, offsets in self._parts(addresses, size * count):
            if buffer.writer is not None:
                if read_only or buffer.read_only:
                    raise PtxFault(f"{buffer.name} is read as constant and written in one launch")
                places = offsets[:, None] + np.arange(size * count)
                writer = buffer.writer[places]
                if ((writer >= 0) & (writer != thread[lanes][:, None])).any():
                    raise Race(f"{buffer.name} is read where another thread wrote")
            buffer.read_only |= read_only
            found[lanes] = _view(buffer.data, size, offsets, count)
        return found

    def store(self, addresses, values, thread):
        """(lanes, count) from each address on."""
        size, count = values.dtype.itemsize, values.shape[1]
        for buffer, lanes, offsets in self._parts(addresses, size * count):
            if not buffer.writable:
                raise PtxFault(f"{buffer.name} is not to be written")
            if buffer.read_only:
                raise PtxFault(f"{buffer.name} is read as constant and written in one launch")
            if buffer.writer is None:
                buffer.writer = np.full(len(buffer.data), -1, np.int64)
            places = offsets[:, None] + np.arange(size * count)
            mine = np.broadcast_to(thread[lanes][:, None], places.shape)
            before = buffer.writer[places]
            buffer.writer[places] = mine
            if ((before >= 0) & (before != mine)).any() or (buffer.writer[places] != mine).any():
                raise Race(f"two threads write one byte of {buffer.name}")
            parts = np.ascontiguousarray(values[lanes]).view(np.uint8).reshape(len(offsets), -1)
            buffer.data[places] = parts

    def _parts(self, addresses, size):
        """(buffer, lanes, offsets) of all addresses; mostly one buffer."""
        if not len(addresses):
            return
        if (addresses % size).any():
            raise Misaligned(f"address {_shown(addresses, addresses % size != 0)} is no multiple of {size}")
        number = bisect_right(self._bases, int(addresses[0])) - 1
        if number >= 0:
            buffer = self._buffers[number]
            offsets = addresses - np.uint64(buffer.base)
            if len(buffer.data) >= size and not (offsets > len(buffer.data) - size).any():
                yield buffer, slice(None), offsets.astype(np.int64)
                return
        numbers = np.searchsorted(self._bases, addresses, "right") - 1
        for number in np.unique(numbers):
            lanes = np.flatnonzero(numbers == number)
            if number < 0:
                raise OutOfBounds(f"{size} bytes at {_shown(addresses[lanes])}: no buffer")
            buffer = self._buffers[number]
            offsets = addresses[lanes] - np.uint64(buffer.base)
            outside = (offsets > len(buffer.data) - size) if len(buffer.data) >= size else np.ones(len(lanes), bool)
            if outside.any():
                raise OutOfBounds(
                    f"{size} bytes at {int(offsets[outside][0])} past the start of {buffer.name}, "
                    f"which has {len(buffer.data)}"
                )
            yield buffer, lanes, offsets.astype(np.int64)


class SharedMemory:
    """That of one block. In an epoch, from barrier to barrier, no word that a warp writes is another's."""

    def __init__(self, ranges, size):
        self._bytes = np.zeros(size, np.uint8)
        self._bytes.view(np.uint32)[:] = NOBODY[4]
        self._views = {width: self._bytes.view(f"u{width}") for width in (1, 2, 4, 8)}
        self._clean = np.full(size // 4, _NOT_ALLOCATED, np.int32)
        for first, end in ranges:
            self._clean[first // 4 : -(-end // 4)] = -1
        self.new_epoch()

    def new_epoch(self):
        self._writer = self._clean.copy()
        self._reader = self._clean.copy()

    def load(self, addresses, size, count, warp):
        """(lanes, count) unsigned, of `count` elements of `size` bytes from each address on."""
        places, words = self._places(addresses, size, count)
        writer = self._writer[words]
        if ((writer != -1) & (writer != warp)).any():
            self._blame(writer, "read", warp)
        reader = self._reader[words]
        self._reader[words] = np.where((reader == -1) | (reader == warp), warp, _MANY)
        return self._views[size][places]

    def store(self, addresses, values, warp):
        """(lanes, count) from each address on; lanes that meet at one address must agree."""
        size, count = values.dtype.itemsize, values.shape[1]
        places, words = self._places(addresses, size, count)
        self._claim(words, warp)
        self._views[size][places] = values
        if (self._views[size][places] != values).any():
            raise Race("two lanes of a warp write one address of shared memory, and not the same")

    def spoil(self, addresses, size, warp):
        """Words that are on their way have no content until they land."""
        places, words = self._places(addresses, size, 1) if size <= 8 else self._places(addresses, 4, size // 4)
        self._claim(words, warp)
        self._views[4][places] = NOBODY[4]

    def _claim(self, words, warp):
        writer, reader = self._writer[words], self._reader[words]
        if ((writer != -1) & (writer != warp)).any():
            self._blame(writer, "written", warp)
        if ((reader != -1) & (reader != warp)).any():
            raise Race(f"shared memory is written by warp {warp} where another reads, without a barrier between them")
        self._writer[words] = warp

    def _places(self, addresses, size, count):
        """Elements of `size` bytes, and the words that they lie in."""
        whole = size * count
        if (addresses % whole).any():
            raise Misaligned(f"shared address {_shown(addresses, addresses % whole != 0)} is no multiple of {whole}")
        if (addresses > len(self._bytes) - whole).any():
            raise OutOfBounds(f"shared address {_shown(addresses, addresses > len(self._bytes) - whole)}: no array")
        first = addresses.astype(np.int64) // size
        places = first[:, None] if count == 1 else first[:, None] + np.arange(count)
        return places, places if size == 4 else places * size // 4 if size < 4 else _pairs(places)

    def _blame(self, writer, done, warp):
        if (writer == _NOT_ALLOCATED).any():
            raise OutOfBounds(f"shared memory is {done} where no array lies")
        other = writer[(writer != -1) & (writer != warp)][0]
        raise Race(f"shared memory is {done} by warp {warp} where warp {other} writes, without a barrier between them")


class LocalMemory:
    """That of the threads of one warp."""

    def __init__(self, ranges, size):
        self._bytes = np.zeros((LANES, size), np.uint8)
        self._bytes.view(np.uint32)[:] = NOBODY[4]
        self._allowed = np.zeros(size, bool)
        for first, end in ranges:
            self._allowed[first:end] = True

    def load(self, addresses, size, count, lanes):
        bytes_of = self._bytes[lanes[:, None], self._places(addresses, size * count)]
        return np.ascontiguousarray(bytes_of).view(f"u{size}")

    def store(self, addresses, values, lanes):
        places = self._places(addresses, values.dtype.itemsize * values.shape[1])
        self._bytes[lanes[:, None], places] = np.ascontiguousarray(values).view(np.uint8)

    def _places(self, addresses, size):
        if (addresses % size).any():
            raise Misaligned(f"local address {_shown(addresses, addresses % size != 0)} is no multiple of {size}")
        if (addresses > len(self._allowed) - size).any():
            raise OutOfBounds(f"local address {_shown(addresses, addresses > len(self._allowed) - size)}: no array")
        places = addresses.astype(np.int64)[:, None] + np.arange(size)
        if not self._allowed[places].all():
            raise OutOfBounds("local memory is touched where no array lies")
        return places


def _view(data, size, offsets, count):
    """(lanes, count); buffers may have a length that no wider type divides."""
    if size == 1:
        return data[offsets[:, None] + np.arange(count)]
    whole = data[: len(data) // size * size].view(f"u{size}")
    first = offsets // size
    return whole[first[:, None]] if count == 1 else whole[first[:, None] + np.arange(count)]


def _pairs(places):
    """Words of 8-byte elements, (lanes, count) -> (lanes, 2 * count)."""
    return np.stack([2 * places, 2 * places + 1], -1).reshape(len(places), -1)


def _shown(addresses, wrong=None):
    return hex(int(addresses[0] if wrong is None else addresses[wrong][0]))
