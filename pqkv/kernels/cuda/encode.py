"""What enters the cache: pages of codes, searched, packed and laid out by one kernel; new exact tokens in their slots.

Encoding. A warp takes one subspace and 32 lanes * `tokens` vectors, which it holds in registers; the block's subspaces
are neighbours, so a row of vectors is read in runs of 16 channels (32 bytes in half precision, where channels are in
natural order) and handed over in shared memory. Centroids lie there too, a column for each channel and one of half
norms; all lanes read the same one, and each serves `tokens` vectors. Codes go through shared memory a second time, to
be packed as they lie in the page, rows or transposed; nobody else writes the bytes that a block writes, so there are
no atomics.

What bounds it is arithmetic, not memory: C * d_sub multiply-adds a code, and the minimum. A comparison that remembers
its code costs three instructions of half the rate of a multiply-add, so centroids are taken eight at a time: their
lowest distance by one instruction each, three for which eight it was, and the winning eight are looked at again at the
end. At 4 bits (C = 256, d_sub = 2) that is 3.5 issued instructions a centroid, about 58,000 for a vector of 128
elements, of which 256 bytes are read and 64 written. Its 96 registers let a multiprocessor of an H100 run two blocks of
eight warps: few, but every lane has 4 * `tokens` sums that do not wait for each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from numba import cuda, float32, int32, int64, uint8, uint16, uint32, uint64
from torch import Tensor

from pqkv.config import Layout
from pqkv.errors import KernelError
from pqkv.kernels.cuda.codes import Codes
from pqkv.kernels.cuda.device import SIMULATED, float_of
from pqkv.kernels.cuda.exact import SHARED_BYTES
from pqkv.kernels.cuda.launch import array, compiled, launch, words
from pqkv.packing import packed_size

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MOST_TOKENS = 8  # of a lane
_CHANNELS = 16  # of a block: as many registers as a lane has for vectors, and 32 bytes of a row in half precision
_TOGETHER = 8  # centroids whose lowest distance is found before any code is remembered
_NEVER = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class EncodeVariant:
    """What the kernel is compiled for. `dtype` is that of the vectors: float32, float16 or bfloat16."""

    codes: Codes
    page_size: int
    dtype: str
    permuted: bool = False
    weighted: bool = False
    most_tokens: int = _MOST_TOKENS

    @property
    def tokens(self) -> int:
        """Vectors of a lane: as many as registers hold."""
        most = max(1, _CHANNELS // self.codes.d_sub)
        return min(self.most_tokens, 1 << most.bit_length() - 1)

    @property
    def tile(self) -> int:
        """Vectors of a block."""
        return 32 * self.tokens

    @property
    def subspaces(self) -> int:
        """Of a block, a warp each; in rows their codes end with a byte, or are all there are."""
        whole = 8 // math.gcd(8, self.codes.nbits) if self.codes.layout == "row" else 1
        wanted = -(-_CHANNELS // self.codes.d_sub)
        return min(self.codes.num_subspaces, -(-wanted // whole) * whole)

    @property
    def piece(self) -> int:
        """Tokens of a page that a block takes: all, or a tile of them."""
        return min(self.page_size, self.tile)

    @property
    def stride(self) -> int:
        """Words from one channel to the next in the shared vectors; apart so that a warp writes to all banks."""
        return self.tile + max(1, 32 // (self.subspaces * self.codes.d_sub))

    @property
    def chunk(self) -> int:
        """Centroids of each subspace that are in shared memory at a time: a power of two, 0 if not one fits."""
        room = SHARED_BYTES - self._fixed_bytes
        count = self.codes.entries
        while count and self._table_bytes(count) > room:
            count //= 2
        return count

    @property
    def unit(self) -> int:
        """Bytes that are written at once: 4 where lines, and a block's share of them, are whole words."""
        M, nbits = self.codes.num_subspaces, self.codes.nbits
        in_row = self.codes.layout == "row"
        line = packed_size(M if in_row else self.page_size, nbits)
        shared_line = in_row and self.subspaces < M
        return 1 if line % 4 or (shared_line and self.subspaces * nbits % 32) else 4

    @property
    def _fixed_bytes(self) -> int:
        vectors = 4 * self.subspaces * self.codes.d_sub * self.stride
        return vectors + 2 * self.subspaces * self.tile + 16 * (self.tile // self.piece)

    def _table_bytes(self, count: int) -> int:
        return 4 * self.subspaces * (self.codes.d_sub + 1) * column(count)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        return self._fixed_bytes + self._table_bytes(self.chunk)


def together(chunk: int) -> int:
    """Centroids whose distances are compared before one is remembered; few centroids are not worth a second look."""
    return _TOGETHER if chunk >= 8 * _TOGETHER else 1


def column(chunk: int) -> int:
    """Words of one channel of `chunk` centroids. Those of one group lie apart, so that lanes whose groups differ look
    at theirs a second time without wanting the same bank.
    """
    group = together(chunk)
    return chunk if group == 1 else group * (chunk // group + 4)


def encode_kernel(variant: EncodeVariant) -> Callable[..., Any]:
    """The kernel, not compiled yet. Its grid is (ranges of subspaces * tiles of tokens, KV heads), its block 32 threads
    for each of `subspaces`.

    vectors (B, Hkv, n * page_size, D), bfloat16 as int16; centroids (H, M, C, d_sub) float32; channels (H, D) and
    weights (H, D), or anything where the variant has none; page_ids (B, n); pages (num_pages, Hkv, lines, bytes), bytes
    or 32-bit words as `unit` says; `count` is B * n, `each` n. Ids that are not 0 ... num_pages - 1 write nothing.
    """
    M, NBITS, SUB, C = (
        variant.codes.num_subspaces, variant.codes.nbits, variant.codes.d_sub, variant.codes.entries,
    )  # fmt: skip
    D, P, S, U = M * SUB, variant.page_size, variant.subspaces, variant.tokens
    ROW, BFLOAT = variant.codes.layout == "row", variant.dtype == "bfloat16"
    PERMUTED, WEIGHTED = variant.permuted, variant.weighted
    BLOCK, TILE, PIECE = 32 * S, variant.tile, variant.piece
    PIECES, CUTS, RANGES = TILE // PIECE, -(-P // PIECE), -(-M // S)
    CHUNK, STRIDE, CHANNELS = variant.chunk, variant.stride, S * SUB
    GROUP, COLUMN = together(CHUNK), column(CHUNK)
    GROUPS, APART = CHUNK // GROUP, COLUMN // GROUP  # groups of centroids; words between centroids of one group
    QUAD = min(4, GROUPS)
    LINE, UNIT = packed_size(M if ROW else P, NBITS), variant.unit
    LINES, UNITS = PIECE if ROW else S, -(-packed_size(S if ROW else PIECE, NBITS) // UNIT)
    SPAN = (8 * UNIT - 1 + NBITS - 1) // NBITS + 1  # codes that one unit can hold some of
    VECTORS, TABLE, CODES = CHANNELS * STRIDE, S * (SUB + 1) * COLUMN, S * TILE
    HELD, LOWEST = U * SUB, U * QUAD
    ALIGNED = None if SIMULATED else 16  # lets centroids be loaded four at a time

    def kernel(
        vectors, centroids, channels, weights, page_ids, pages, count, each, kv_heads, book_heads, num_pages,
    ):  # fmt: skip
        table = cuda.shared.array(TABLE, float32, ALIGNED)
        held = cuda.shared.array(VECTORS, float32)
        codes = cuda.shared.array(CODES, uint16)
        rows = cuda.shared.array(PIECES, int64)
        targets = cuda.shared.array(PIECES, int32)
        lengths = cuda.shared.array(PIECES, int32)
        x = cuda.local.array(HELD, float32)
        lowest = cuda.local.array(LOWEST, float32)
        best = cuda.local.array(U, float32)
        place = cuda.local.array(U, uint32)
        code = cuda.local.array(U, uint32)

        first_subspace, tile = cuda.blockIdx.x % RANGES * S, cuda.blockIdx.x // RANGES
        kv = cuda.blockIdx.y
        book = int64(min(kv, book_heads - 1))
        thread = cuda.threadIdx.x
        warp, lane = thread // 32, thread % 32

        for piece in range(thread, PIECES, BLOCK):
            number = int64(tile) * PIECES + piece
            page, start = number // CUTS, number % CUTS * PIECE
            target = int64(-1)
            if page < count:
                target = int64(page_ids[uint64(page)])
            known = target >= 0 and target < num_pages
            rows[piece] = ((page // each * kv_heads + kv) * each + page % each) * P + start
            targets[piece] = int32(target) if known else int32(-1)
            lengths[piece] = int32(min(PIECE, P - start)) if known else int32(0)
        cuda.syncthreads()
        for index in range(thread, TILE * CHANNELS, BLOCK):
            channel, token = index % CHANNELS, index // CHANNELS
            piece, inside = token // PIECE, token % PIECE
            place_in_book = book * D + first_subspace * SUB + channel
            value = float32(0.0)
            if piece < PIECES and first_subspace * SUB + channel < D:
                if inside < lengths[piece]:
                    source = int64(first_subspace * SUB + channel)
                    if PERMUTED:
                        source = int64(channels[uint64(place_in_book)])
                    source += (rows[piece] + inside) * D
                    if BFLOAT:
                        value = float_of(uint32(int32(vectors[uint64(source)]) & 0xFFFF) << uint32(16))
                    else:
                        value = float32(vectors[uint64(source)])
                    if WEIGHTED:
                        value *= weights[uint64(place_in_book)]
            held[uint64(channel * STRIDE + token)] = -value
        cuda.syncthreads()
        for u in range(U):
            best[u] = math.inf
            code[u] = uint32(0)
            for k in range(SUB):
                x[u * SUB + k] = held[uint64((warp * SUB + k) * STRIDE + u * 32 + lane)]

        # ---- |x - c|^2 / 2 without the constant of x: the half norm, less x.c
        own = warp * (SUB + 1) * COLUMN
        for first in range(0, C, CHUNK):
            cuda.syncthreads()
            for index in range(thread, S * CHUNK, BLOCK):
                c, subspace = index % CHUNK, index // CHUNK
                if first_subspace + subspace < M:
                    at = subspace * (SUB + 1) * COLUMN + c % GROUP * APART + c // GROUP
                    source = ((book * M + first_subspace + subspace) * C + first + c) * SUB
                    norm = float32(0.0)
                    for k in range(SUB):
                        value = centroids[uint64(source + k)]
                        if WEIGHTED:
                            value *= weights[uint64(book * D + (first_subspace + subspace) * SUB + k)]
                        table[uint64(at + k * COLUMN)] = value
                        norm += value * value
                    table[uint64(at + SUB * COLUMN)] = norm * float32(0.5)
            cuda.syncthreads()
            for u in range(U):
                place[u] = uint32(_NEVER)
            for group in range(0, GROUPS, QUAD):
                for i in range(LOWEST):
                    lowest[i] = math.inf
                for j in range(GROUP):
                    for q in range(QUAD):
                        at = own + j * APART + group + q
                        norm = table[uint64(at + SUB * COLUMN)]
                        for u in range(U):
                            distance = norm
                            for k in range(SUB):
                                distance += x[u * SUB + k] * table[uint64(at + k * COLUMN)]
                            lowest[u * QUAD + q] = min(lowest[u * QUAD + q], distance)
                for q in range(QUAD):
                    for u in range(U):
                        if lowest[u * QUAD + q] < best[u]:
                            best[u] = lowest[u * QUAD + q]
                            place[u] = uint32(group + q)
            for u in range(U):
                if place[u] != uint32(_NEVER):
                    if GROUP == 1:
                        code[u] = uint32(first) + place[u]
                    else:
                        low = float32(math.inf)
                        for j in range(GROUP):
                            at = own + j * APART + int64(place[u])
                            distance = table[uint64(at + SUB * COLUMN)]
                            for k in range(SUB):
                                distance += x[u * SUB + k] * table[uint64(at + k * COLUMN)]
                            if distance < low:
                                low = distance
                                code[u] = uint32(first + j) + place[u] * uint32(GROUP)
        for u in range(U):
            codes[uint64(warp * TILE + u * 32 + lane)] = uint16(code[u])
        cuda.syncthreads()

        # ---- codes into bytes as they lie in the page
        for index in range(thread, PIECES * LINES * UNITS, BLOCK):
            part, line, piece = index % UNITS, index // UNITS % LINES, index // (UNITS * LINES)
            start = (int64(tile) * PIECES + piece) % CUTS * PIECE
            length = int64(lengths[piece])
            page = int64(targets[piece]) * kv_heads + kv
            if ROW:
                present, have = line < length, int64(min(S, M - first_subspace))
                before, target = first_subspace * NBITS // 8, (page * P + start + line) * LINE
            else:
                present, have = length > 0 and first_subspace + line < M, length
                before, target = start * NBITS // 8, (page * M + first_subspace + line) * LINE
            if present and before + part * UNIT < LINE:
                bit = part * 8 * UNIT
                word = uint32(0)
                for i in range(SPAN):
                    number = bit // NBITS + i
                    shift = number * NBITS - bit
                    if number < have and shift < 8 * UNIT:
                        at = number * TILE + piece * PIECE + line if ROW else line * TILE + piece * PIECE + number
                        one = uint32(codes[uint64(at)])
                        word |= one << uint32(shift) if shift >= 0 else one >> uint32(-shift)
                target += before + part * UNIT
                if UNIT == 4:
                    pages[uint64(target // 4)] = word
                else:
                    pages[uint64(target)] = uint8(word & uint32(255))

    return kernel


def encode_pages(
    vectors: Tensor,
    centroids: Tensor,
    channels: Tensor | None,
    weights: Tensor | None,
    nbits: int,
    layout: Layout,
    pages: Tensor,
    page_ids: Tensor,
) -> None:
    """Encode vectors (B, Hkv, n * page_size, D) into pages (num_pages, Hkv, lines, bytes) uint8 as
    `Codebook.encode` and `pack` do: page page_ids[b, i] takes the tokens i * page_size ... of sequence b.

    Vectors are float32, float16 or bfloat16; centroids (H, M, C, d_sub) float32 with H = 1 or Hkv; channels (H, D)
    int64 and weights (H, D) float32 as in `Codebook`; page_ids (B, n) int32 or int64.

    Ids must differ; those outside the pages write nothing. Raises `KernelError` before any launch for shapes, dtypes or
    devices that do not fit together, and for centroids too long for shared memory.
    """
    page_size = _checked(vectors, centroids, channels, weights, nbits, layout, pages, page_ids)
    _, kv_heads, T, _ = vectors.shape
    H, M, _, d_sub = centroids.shape
    dtype = str(vectors.dtype).removeprefix("torch.")
    variant = EncodeVariant(
        Codes(M, nbits, d_sub, layout),
        max(1, page_size),
        dtype,
        channels is not None,
        weights is not None,
        _MOST_TOKENS,
    )
    if not variant.chunk:
        raise KernelError(f"{d_sub} elements to a code do not fit shared memory; use more subspaces")
    count, each = page_ids.numel(), page_ids.shape[1]
    if not count or not T or not kv_heads:
        return
    if vectors.dtype == torch.bfloat16:
        vectors = vectors.contiguous().view(torch.int16)
    pieces = count * -(-page_size // variant.piece)
    tiles = -(-pieces // (variant.tile // variant.piece))
    launch(
        compiled(encode_kernel, variant), (tiles * -(-M // variant.subspaces), kv_heads), 32 * variant.subspaces,
        array(vectors), array(centroids), array(centroids if channels is None else channels),
        array(centroids if weights is None else weights), array(page_ids),
        words(pages) if variant.unit == 4 else array(pages), count, each, kv_heads, H, pages.shape[0],
    )  # fmt: skip


def _checked(
    vectors: Tensor,
    centroids: Tensor,
    channels: Tensor | None,
    weights: Tensor | None,
    nbits: int,
    layout: Layout,
    pages: Tensor,
    page_ids: Tensor,
) -> int:
    """The page size, or `KernelError`; see `encode_pages`."""
    if vectors.ndim != 4 or vectors.dtype not in _DTYPES:
        raise KernelError(f"vectors are {_described(vectors)}, not (B, Hkv, T, D) in float32, float16 or bfloat16")
    B, heads, T, D = vectors.shape
    if centroids.ndim != 4 or centroids.dtype != torch.float32:
        raise KernelError(f"centroids are {_described(centroids)}, not float32 (H, M, C, d_sub)")
    H, M, C, d_sub = centroids.shape
    if not 1 <= nbits <= 12 or 2**nbits != C or H not in (1, heads) or M * d_sub != D or not D:
        raise KernelError(
            f"centroids are {_described(centroids)}: {nbits}-bit codes (1 to 12) of {heads} heads of {D} elements need "
            f"H = 1 or {heads}, C = 2**nbits and M * d_sub = {D}"
        )
    for name, part, dtype in (("channels", channels, torch.int64), ("weights", weights, torch.float32)):
        if part is not None and (tuple(part.shape) != (H, D) or part.dtype != dtype):
            raise KernelError(f"{name} are {_described(part)}, not {dtype} ({H}, {D})")
    if page_ids.ndim != 2 or page_ids.shape[0] != B or page_ids.dtype not in (torch.int32, torch.int64):
        raise KernelError(f"page_ids are {_described(page_ids)}, not int32 or int64 ({B}, pages)")
    n = page_ids.shape[1]
    if T % max(1, n) or (T and not n):
        raise KernelError(f"{T} tokens do not fill {n} pages")
    page_size = T // max(1, n)
    lines, codes = (page_size, M) if layout == "row" else (M, page_size)
    shape = (heads, lines, packed_size(codes, nbits))
    if n and (pages.ndim != 4 or pages.shape[1:] != shape or pages.dtype != torch.uint8 or not pages.is_contiguous()):
        raise KernelError(
            f"pages are {_described(pages)}, not contiguous uint8 (pages, {', '.join(map(str, shape))}) as layout "
            f"{layout} of {M} codes of {nbits} bits in pages of {page_size} tokens needs"
        )
    if pages.data_ptr() % 4:
        raise KernelError("pages do not start at a multiple of 4 bytes")
    _check_devices(vectors, centroids, channels, weights, pages, page_ids)
    return page_size


def slots_kernel(_: None) -> Callable[..., Any]:
    """The kernel, not compiled yet. Its grid is (KV heads, sequences), any block; arrays are of the bits of elements:
    keys, values (B, Hkv, 1, D), key_buffer, value_buffer (B, Hkv, capacity, D), positions (B,) int32.
    """

    def kernel(keys, values, key_buffer, value_buffer, positions, capacity, head_dim):
        kv, b = cuda.blockIdx.x, cuda.blockIdx.y
        position = int64(positions[uint64(b)])
        if position < 0 or position >= capacity:
            return
        row = int64(b) * cuda.gridDim.x + kv
        for e in range(cuda.threadIdx.x, head_dim, cuda.blockDim.x):
            source, target = row * head_dim + e, (row * capacity + position) * head_dim + e
            key_buffer[uint64(target)] = keys[uint64(source)]
            value_buffer[uint64(target)] = values[uint64(source)]

    return kernel


def write_slots(keys: Tensor, values: Tensor, key_buffer: Tensor, value_buffer: Tensor, positions: Tensor) -> None:
    """Copy one new token's keys and values (B, Hkv, 1, D) bit for bit into slot positions[b] (B,) int32 of the buffers
    (B, Hkv, capacity, D), all sequences in one launch. Positions outside 0 ... capacity - 1 are padding: nothing is
    written.

    Raises `KernelError` before the launch for shapes, devices or dtypes (any of 16 or 32 bits, the same for all) that
    do not fit together, and for buffers that are not contiguous.
    """
    if keys.ndim != 4 or keys.shape[2] != 1 or keys.shape != values.shape:
        raise KernelError(f"keys are {_described(keys)} and values {_described(values)}, not both (B, Hkv, 1, D)")
    B, heads, _, D = keys.shape
    if keys.element_size() not in (2, 4) or {t.dtype for t in (values, key_buffer, value_buffer)} != {keys.dtype}:
        raise KernelError("keys, values and buffers need one dtype of 16 or 32 bits")
    for name, buffer in (("key_buffer", key_buffer), ("value_buffer", value_buffer)):
        shaped = (
            buffer.ndim == 4 and buffer.shape == key_buffer.shape and buffer.shape == (B, heads, buffer.shape[2], D)
        )
        if not shaped or not buffer.is_contiguous():
            raise KernelError(f"{name} is {_described(buffer)}, not contiguous ({B}, {heads}, capacity, {D})")
    if tuple(positions.shape) != (B,) or positions.dtype != torch.int32:
        raise KernelError(f"positions are {_described(positions)}, not int32 ({B},)")
    _check_devices(keys, values, key_buffer, value_buffer, positions)
    if not keys.numel():
        return
    bits = torch.int32 if keys.element_size() == 4 else torch.int16
    parts = (array(part.contiguous().view(bits)) for part in (keys, values, key_buffer, value_buffer))
    launch(
        compiled(slots_kernel, None), (heads, B), min(128, 32 * -(-D // 32)),
        *parts, array(positions), key_buffer.shape[2], D,
    )  # fmt: skip


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


def _check_devices(first: Tensor, *others: Tensor | None) -> None:
    for tensor in (first, *others):
        if tensor is not None and (
            tensor.device != first.device or tensor.device.type != ("cpu" if SIMULATED else "cuda")
        ):
            raise KernelError(f"a tensor is on {tensor.device}, another on {first.device}; all need one CUDA device")
