"""Attention on codes by look-up in shared memory: one KV head of one sequence, one stretch of its tokens, all query
heads of a group.

Keys: a thread owns tokens and goes over the subspaces. A look-up brings either the sum of the query with a centroid
(a table: float32 for one query head, fp16x2 for each two), or the centroid itself in fp16, once for all query heads of
the group (decode), whichever loads fewer words; see `CodedVariant.decodes`. Values: a thread owns subspaces and goes
over the tokens, the words of one centroid id lying side by side for all subspaces, so no two lanes of a warp ever want
the same bank. fp16x2 sums have at most four terms before they go to float32.

A block reads one stretch only: softmax is taken once, tables are built once a stretch, in stages of as many subspaces
as shared memory holds. Codes are read packed, 32 bits at a time, as they lie in the page.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import Any

from numba import cuda, float32, int32, int64, uint32, uint64

from pqkv.config import Layout
from pqkv.kernels.cuda.device import (
    LOWEST,
    add_halves,
    bits_of,
    bits_of_halves,
    exchange,
    float_of,
    floats_of_halves,
    high_twice,
    low_twice,
    multiply_add_halves,
    power_of_two,
    shared_word,
)
from pqkv.kernels.cuda.exact import SHARED_BYTES

_ROW_TOKENS = 4  # tokens of a thread where keys lie in rows


@dataclass(frozen=True, slots=True)
class Codes:
    """How keys or values are coded: M codes of `nbits` bits for `d_sub` elements each, in rows or transposed."""

    num_subspaces: int
    nbits: int
    d_sub: int
    layout: Layout

    @property
    def entries(self) -> int:
        """Centroids of a subspace."""
        return 2**self.nbits

    @property
    def period(self) -> int:
        """Codes after which the bit stream is at the start of a word again, at least 4."""
        return max(4, 32 // gcd(32, self.nbits))

    @property
    def centroid_words(self) -> int:
        """32-bit words of a centroid in fp16."""
        return (self.d_sub + 1) // 2


@dataclass(frozen=True, slots=True)
class CodedVariant:
    """What the kernel is compiled for."""

    group: int
    keys: Codes
    values: Codes
    block: int = 128

    @property
    def decodes(self) -> bool:
        """Whether keys are looked up as centroids: fewer words than tables of all query heads have."""
        return self.keys.centroid_words < self._table_words

    @property
    def _table_words(self) -> int:
        return 1 if self.group == 1 else (self.group + 1) // 2

    @property
    def entry_words(self) -> int:
        """32-bit words of a key's table entry."""
        return self.keys.centroid_words if self.decodes else self._table_words

    @property
    def key_tokens(self) -> int:
        """Tokens of a thread in the key phase."""
        return _ROW_TOKENS if self.keys.layout == "row" else max(8, self.keys.period)

    @property
    def value_tokens(self) -> int:
        """Tokens whose value codes are read at once."""
        return 4 if self.values.layout == "row" else self.values.period

    @property
    def tokens(self) -> int:
        """Of one block at most."""
        return self.block * self.key_tokens

    @property
    def together(self) -> int:
        """Tokens that a stretch starts at a multiple of: they are read at once and lie in one page."""
        return max(self.key_tokens, self.value_tokens)

    @property
    def stages(self) -> tuple[int, int]:
        """Subspaces whose tables are in shared memory at a time, of keys and of values; 0 where not one fits."""
        room = SHARED_BYTES - self._fixed_bytes
        return (
            _stage(self.keys.num_subspaces, 4 * self.keys.entries * self.entry_words, room),
            _stage(self.values.num_subspaces, 4 * self.values.entries * self.values.centroid_words, room),
        )

    @property
    def owners(self) -> int:
        """Threads that share the subspaces of one token's value: a warp where there are that many."""
        return max(1, min(self.stages[1], self.block, 32))

    @property
    def table_words(self) -> int:
        """Words of the shared table: that of keys, that of values, or the partial sums of all teams."""
        keys, values = self.stages
        sums = self.block // self.owners * self.group * values * self.values.d_sub
        return max(
            keys * self.keys.entries * self.entry_words,
            values * self.values.entries * self.values.centroid_words,
            sums,
        )

    @property
    def weight_words(self) -> int:
        """Words that hold the softmax weights of one token: two heads a word, one head twice in a word."""
        return (self.group + 1) // 2

    @property
    def _fixed_bytes(self) -> int:
        query = 4 * self.group * self.keys.num_subspaces * self.keys.d_sub
        packed_query = 4 * self.group * self.keys.num_subspaces * self.keys.centroid_words
        return 4 * self.tokens * self.weight_words + query + packed_query + 4 * self.block * self.group

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        return self._fixed_bytes + 4 * self.table_words

    def obstacle(self, page_size: int) -> str | None:
        """Why this kernel cannot serve the variant on such pages, or None."""
        if page_size % self.together:
            return f"{self.together} tokens are read at once, which does not divide pages of {page_size}"
        for name, codes in (("keys", self.keys), ("values", self.values)):
            if codes.layout == "transposed" and page_size * codes.nbits % 32:
                return f"a line of {name} is no whole number of 32-bit words"
        if self.keys.layout == "row" and self.keys.num_subspaces * self.keys.nbits % 32:
            return "a row of keys is no whole number of 32-bit words"
        if min(self.stages) < 1 or self.stages[0] % self.step or self.stages[1] % self.owners:
            return "the tables of too few subspaces fit shared memory"
        if self.shared_bytes > SHARED_BYTES:
            return "weights and partial sums do not fit shared memory"
        return None

    @property
    def step(self) -> int:
        """Subspaces of keys that are unrolled."""
        return self.keys.period if self.keys.layout == "row" else 4


def _stage(subspaces: int, bytes_each: int, room: int) -> int:
    """The largest power-of-two fraction of `subspaces` whose tables fit `room` bytes; 0 if not one does."""
    count = subspaces
    while count * bytes_each > room:
        if count % 2:
            return 0
        count //= 2
    return count


def coded_kernel(variant: CodedVariant) -> Callable[..., Any]:
    """The kernel, not compiled yet. Its grid is (splits, KV heads * chunks of query heads, sequences).

    query (B, Hq, D) float32, times scale and log2(e); key_codes, value_codes: 32-bit words of the pages of keys, bytes
    or words (transposed) of the pages of values; key_centroids, value_centroids (H, M, C, d_sub) float32 with H 1 or
    Hkv, as `key_heads`, `value_heads` say; key_channels, value_channels (H, D) int64; table, lengths, partial as in
    `exact_kernel`. A split reads `share` tokens, at most `variant.tokens` and a multiple of what is read at once.
    """
    GROUP, BLOCK = variant.group, variant.block
    KM, KBITS, KSUB, KC, KROW = _constants(variant.keys)
    VM, VBITS, VSUB, VC, VROW = _constants(variant.values)
    D = KM * KSUB
    KMASK, VMASK = KC - 1, VC - 1
    DECODES = variant.decodes
    ENTRY = variant.entry_words  # words of a key's table entry
    KWORDS, VWORDS = variant.keys.centroid_words, variant.values.centroid_words
    KSTAGE, VSTAGE = variant.stages
    KT, VT, STEP = variant.key_tokens, variant.value_tokens, variant.step
    FLUSH = max(1, 4 // KWORDS) if DECODES else 4  # subspaces after which fp16x2 sums go to float32
    TILE, WEIGHTS = variant.tokens, variant.weight_words
    OWNERS = variant.owners
    TEAMS, SLOTS = BLOCK // OWNERS, VSTAGE // OWNERS
    VROW_BYTES = (VM * VBITS + 7) // 8
    TOGETHER = variant.together
    KHELD = KT * (STEP * KBITS // 32) if KROW else KT * KBITS // 32
    VHELD = VT * VBITS // 32 if not VROW else 1
    ONE = GROUP == 1
    FULL = BLOCK % 32 == 0
    TABLE, WEIGHT_ROOM, QUERY, PACKED, RED = (
        variant.table_words, TILE * WEIGHTS, GROUP * D, GROUP * KM * KWORDS, BLOCK * GROUP,
    )  # fmt: skip
    SCORES, HALF_SCORES, ACC = KT * GROUP, KT * max(ENTRY, GROUP if DECODES else 1), SLOTS * VSUB * GROUP
    HALF_ACC = SLOTS * VWORDS * GROUP

    def kernel(
        query, key_codes, value_codes, key_centroids, value_centroids, key_channels, value_channels, table, lengths,
        partial, page_size, page_shift, table_stride, kv_heads, chunks, key_heads, value_heads, window, share,
        first_slot, slots,
    ):  # fmt: skip
        tables = cuda.shared.array(TABLE, uint32)
        weights = cuda.shared.array(WEIGHT_ROOM, uint32)
        q = cuda.shared.array(QUERY, float32)
        packed = cuda.shared.array(PACKED, uint32)
        meeting = cuda.shared.array(RED, float32)
        score = cuda.local.array(SCORES, float32)
        halves = cuda.local.array(HALF_SCORES, uint32)
        held = cuda.local.array(KHELD, uint32)
        acc = cuda.local.array(ACC, float32)
        half_acc = cuda.local.array(HALF_ACC, uint32)
        line = cuda.local.array(VHELD, uint32)

        split, kv, b = cuda.blockIdx.x, cuda.blockIdx.y // chunks, cuda.blockIdx.z
        batch = cuda.gridDim.z
        head = cuda.blockIdx.y * GROUP
        heads = kv_heads * chunks * GROUP
        thread = cuda.threadIdx.x
        key_book, value_book = min(kv, key_heads - 1), min(kv, value_heads - 1)

        length, residual = lengths[batch + b], lengths[2 * batch + b]
        low = int32(0)
        if window > 0:
            low = min(max(length + residual - window, 0), length)
        begin = low // TOGETHER * TOGETHER
        start = begin + split * share
        end = min(start + share, length)
        # 32-bit words of a line of a page; bytes where values lie in rows
        key_line = KM * KBITS // 32 if KROW else page_size * KBITS // 32
        value_line = VROW_BYTES if VROW else page_size * VBITS // 32
        at = ((b * heads + head) * slots + first_slot + split) * (D + 2)
        if start >= end:
            for g in range(thread, GROUP, BLOCK):
                partial[uint64(at + g * slots * (D + 2) + D + 1)] = 0.0
            return

        for index in range(thread, GROUP * D, BLOCK):
            g, e = index // D, index % D
            channel = int64(key_channels[uint64(key_book * D + e)])
            q[index] = query[uint64((b * heads + head + g) * D + channel)]
        cuda.syncthreads()
        if DECODES:
            for index in range(thread, GROUP * KM * KWORDS, BLOCK):
                word, g_m = index % KWORDS, index // KWORDS
                at_q = g_m * KSUB + 2 * word
                upper = q[at_q + 1] if 2 * word + 1 < KSUB else float32(0.0)
                packed[index] = bits_of_halves(q[at_q], upper)

        # ---- scores: this thread's tokens against every subspace
        for i in range(SCORES):
            score[i] = 0.0
        token = start + thread * KT
        alive = token < end
        place = int64(0)
        if alive:
            number = token >> page_shift if page_shift >= 0 else token // page_size
            page, inside = int64(table[uint64(b * table_stride + number)]), token - number * page_size
            if KROW:
                place = ((page * kv_heads + kv) * page_size + inside) * key_line
            else:
                place = (page * kv_heads + kv) * KM * key_line + inside * KBITS // 32
        for stage in range(0, KM, KSTAGE):
            cuda.syncthreads()
            for index in range(thread, KSTAGE * KC, BLOCK):
                m = stage + index // KC
                source = (int64(key_book) * KM * KC + stage * KC + index) * KSUB
                if DECODES:
                    for word in range(KWORDS):
                        lower = key_centroids[uint64(source + 2 * word)]
                        upper = key_centroids[uint64(source + 2 * word + 1)] if 2 * word + 1 < KSUB else float32(0.0)
                        tables[index * ENTRY + word] = bits_of_halves(lower, upper)
                else:
                    for word in range(ENTRY):
                        first, second = float32(0.0), float32(0.0)
                        for e in range(KSUB):
                            c = key_centroids[uint64(source + e)]
                            first += q[2 * word * D + m * KSUB + e] * c
                            if 2 * word + 1 < GROUP:
                                second += q[(2 * word + 1) * D + m * KSUB + e] * c
                        tables[index * ENTRY + word] = bits_of(first) if ONE else bits_of_halves(first, second)
            cuda.syncthreads()
            if alive:
                for m0 in range(0, KSTAGE, STEP):
                    if KROW:
                        for j in range(KT):
                            for w in range(STEP * KBITS // 32):
                                word_at = place + j * key_line + (stage + m0) * KBITS // 32 + w
                                held[j * (STEP * KBITS // 32) + w] = uint32(key_codes[uint64(word_at)])
                    for mm in range(STEP):
                        m = m0 + mm
                        if not KROW:
                            for w in range(KT * KBITS // 32):
                                held[w] = uint32(key_codes[uint64(place + int64(stage + m) * key_line + w)])
                        if mm % FLUSH == 0:
                            for i in range(HALF_SCORES):
                                halves[i] = uint32(0)
                        for j in range(KT):
                            bit = mm * KBITS if KROW else j * KBITS
                            word = (j * (STEP * KBITS // 32) if KROW else 0) + bit // 32
                            code = held[word] >> uint32(bit % 32)
                            if bit % 32 + KBITS > 32:
                                code |= held[word + 1] << uint32(32 - bit % 32)
                            offset = (uint32(code & uint32(KMASK)) + uint32(m * KC)) * uint32(4 * ENTRY)
                            for w in range(ENTRY):
                                entry = shared_word(tables, offset + uint32(4 * w))
                                if DECODES:
                                    for g in range(GROUP):
                                        halves[j * GROUP + g] = multiply_add_halves(
                                            packed[(g * KM + stage + m) * KWORDS + w], entry, halves[j * GROUP + g]
                                        )
                                elif ONE:
                                    score[j] += float_of(entry)
                                else:
                                    halves[j * ENTRY + w] = add_halves(halves[j * ENTRY + w], entry)
                        if not ONE or DECODES:
                            if mm % FLUSH == FLUSH - 1:
                                for j in range(KT):
                                    if DECODES:
                                        for g in range(GROUP):
                                            lower, upper = floats_of_halves(halves[j * GROUP + g])
                                            score[j * GROUP + g] += lower + upper
                                    else:
                                        for w in range(ENTRY):
                                            lower, upper = floats_of_halves(halves[j * ENTRY + w])
                                            score[j * GROUP + 2 * w] += lower
                                            if 2 * w + 1 < GROUP:
                                                score[j * GROUP + 2 * w + 1] += upper

        # ---- softmax over the block's tokens
        for g in range(GROUP):
            top = float32(LOWEST)
            for j in range(KT):
                if token + j < low or token + j >= end:
                    score[j * GROUP + g] = LOWEST
                top = max(top, score[j * GROUP + g])
            if FULL:
                for halving in range(5):
                    top = max(top, exchange(uint32(0xFFFFFFFF), top, int32(1 << halving)))
            meeting[thread * GROUP + g] = top
        cuda.syncthreads()
        for g in range(GROUP):
            top = float32(LOWEST)
            for other in range(0, BLOCK, 32 if FULL else 1):
                top = max(top, meeting[other * GROUP + g])
            for j in range(KT):
                hidden = score[j * GROUP + g] <= float32(0.5 * LOWEST)  # NaN is not
                score[j * GROUP + g] = float32(0.0) if hidden else power_of_two(score[j * GROUP + g] - top)
            if thread == 0:
                partial[uint64(at + g * slots * (D + 2) + D)] = top
        cuda.syncthreads()
        for g in range(GROUP):
            mass = float32(0.0)
            for j in range(KT):
                mass += score[j * GROUP + g]
            if FULL:
                for halving in range(5):
                    mass += exchange(uint32(0xFFFFFFFF), mass, int32(1 << halving))
            meeting[thread * GROUP + g] = mass
        for j in range(KT):
            for w in range(WEIGHTS):
                lower = score[j * GROUP + 2 * w]
                upper = lower if ONE else (score[j * GROUP + 2 * w + 1] if 2 * w + 1 < GROUP else float32(0.0))
                weights[(thread * KT + j) * WEIGHTS + w] = bits_of_halves(lower, upper)
        cuda.syncthreads()
        if thread == 0:
            for g in range(GROUP):
                mass = float32(0.0)
                for other in range(0, BLOCK, 32 if FULL else 1):
                    mass += meeting[other * GROUP + g]
                partial[uint64(at + g * slots * (D + 2) + D + 1)] = mass

        # ---- values: this thread's subspaces over the tokens of its team
        team, own = thread // OWNERS, thread % OWNERS
        for stage in range(0, VM, VSTAGE):
            cuda.syncthreads()
            for index in range(thread, VSTAGE * VC, BLOCK):
                m, c = index % VSTAGE, index // VSTAGE
                source = ((int64(value_book) * VM + stage + m) * VC + c) * VSUB
                for word in range(VWORDS):
                    lower = value_centroids[uint64(source + 2 * word)]
                    upper = value_centroids[uint64(source + 2 * word + 1)] if 2 * word + 1 < VSUB else float32(0.0)
                    tables[(word * VC + c) * VSTAGE + m] = bits_of_halves(lower, upper)
            cuda.syncthreads()
            for i in range(ACC):
                acc[i] = 0.0
            if team < TEAMS:
                chunk = team
                while start + chunk * VT < end:
                    token = start + chunk * VT
                    number = token >> page_shift if page_shift >= 0 else token // page_size
                    page, inside = int64(table[uint64(b * table_stride + number)]), token - number * page_size
                    for slot in range(SLOTS):
                        m = slot * OWNERS + own
                        if not VROW:
                            base = ((page * kv_heads + kv) * VM + stage + m) * value_line + inside * VBITS // 32
                            for w in range(VHELD):
                                line[w] = uint32(value_codes[uint64(base + w)])
                        for j in range(VT):
                            if j % 4 == 0:
                                for i in range(VWORDS * GROUP):
                                    half_acc[slot * VWORDS * GROUP + i] = uint32(0)
                            code = uint32(0)
                            if VROW:
                                bit = (stage + m) * VBITS
                                row = (page * kv_heads + kv) * page_size + inside + j
                                byte = row * value_line + bit // 8
                                code = uint32(value_codes[uint64(byte)])
                                if bit % 8 + VBITS > 8:
                                    code |= uint32(value_codes[uint64(byte + 1)]) << uint32(8)
                                if bit % 8 + VBITS > 16:
                                    code |= uint32(value_codes[uint64(byte + 2)]) << uint32(16)
                                code = code >> uint32(bit % 8)
                            else:
                                bit = j * VBITS
                                code = line[bit // 32] >> uint32(bit % 32)
                                if bit % 32 + VBITS > 32:
                                    code |= line[bit // 32 + 1] << uint32(32 - bit % 32)
                            offset = (uint32(code & uint32(VMASK)) * uint32(VSTAGE) + uint32(m)) * uint32(4)
                            for w in range(VWORDS):
                                entry = shared_word(tables, offset + uint32(4 * w * VC * VSTAGE))
                                for g in range(GROUP):
                                    weight = weights[(chunk * VT + j) * WEIGHTS + g // 2]
                                    if not ONE:
                                        weight = low_twice(weight) if g % 2 == 0 else high_twice(weight)
                                    i = (slot * VWORDS + w) * GROUP + g
                                    half_acc[i] = multiply_add_halves(weight, entry, half_acc[i])
                            if j % 4 == 3:
                                for w in range(VWORDS):
                                    for g in range(GROUP):
                                        lower, upper = floats_of_halves(half_acc[(slot * VWORDS + w) * GROUP + g])
                                        acc[(slot * GROUP + g) * VSUB + 2 * w] += lower
                                        if 2 * w + 1 < VSUB:
                                            acc[(slot * GROUP + g) * VSUB + 2 * w + 1] += upper
                    chunk += TEAMS
            cuda.syncthreads()
            if team < TEAMS:
                for slot in range(SLOTS):
                    for g in range(GROUP):
                        for e in range(VSUB):
                            element = (slot * OWNERS + own) * VSUB + e
                            tables[(team * GROUP + g) * VSTAGE * VSUB + element] = bits_of(
                                acc[(slot * GROUP + g) * VSUB + e]
                            )
            cuda.syncthreads()
            for index in range(thread, GROUP * VSTAGE * VSUB, BLOCK):
                g, element = index // (VSTAGE * VSUB), index % (VSTAGE * VSUB)
                value = float32(0.0)
                for one in range(TEAMS):
                    value += float_of(tables[(one * GROUP + g) * VSTAGE * VSUB + element])
                channel = int64(value_channels[uint64(value_book * D + stage * VSUB + element)])
                partial[uint64(at + g * slots * (D + 2) + channel)] = value

    return kernel


def _constants(codes: Codes) -> tuple[int, int, int, int, bool]:
    return codes.num_subspaces, codes.nbits, codes.d_sub, codes.entries, codes.layout == "row"
