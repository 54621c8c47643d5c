"""Attention on codes by look-up in shared memory: one KV head of one sequence, one stretch of its tokens, all query
heads of a group.

Keys: a thread owns tokens and goes over the subspaces. A look-up brings either the sum of the query with a centroid
(a table: float32 for one query head, fp16x2 for each two), or the centroid itself in fp16, once for all query heads of
the group (decode), whichever loads fewer words; see `CodedVariant.decodes`. Values: a thread owns subspaces and goes
over the tokens, the words of one centroid id lying side by side for all subspaces, so no two lanes of a warp ever want
the same bank. fp16x2 sums of four terms go to float32, those of values in pairs.

Coded keys may have a bias by position: products of the turns within 64 tokens, of `pqkv.kernels.turns`, with what each
query head's phasors are at the start of those tokens, in float32. Coded values may have gains. Both are compiled in
only where a variant names them.

A block reads one stretch only: softmax is taken once, tables are built once a stretch, in stages of as many subspaces
as shared memory holds. Centroids come in fp16 in the tables' own order, copied without a register in between. Codes are
read packed, 32 bits at a time, as they lie in the page.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import Any, Literal

from numba import cuda, float32, int32, int64, uint32, uint64

from pqkv.config import Layout
from pqkv.kernels.cuda.device import (
    LOWEST,
    SIMULATED,
    bias_step,
    bits_of,
    bits_of_halves,
    copy_four,
    exchange,
    finish_copies,
    float_of,
    floats_of_halves,
    key_step,
    power_of_two,
    value_step,
    words_loader,
)
from pqkv.kernels.cuda.exact import SHARED_BYTES
from pqkv.kernels.cuda.steps import KeyStep, ValueStep
from pqkv.kernels.turns import BLOCK as TURN
from pqkv.kernels.turns import POLYNOMIALS

_ROW_TOKENS = 4  # tokens of a thread where keys lie in rows
_LANES = 32
_L2_BYTES = 39  # that a multiprocessor gets from the second-level cache in a clock
_KEY_WAVEFRONTS = 3.2  # of a load by lanes whose codes are drawn at random
_LEAST_PEAK = 2.0**-100  # where all products are zero: something to divide them by

Phase = Literal["tables", "scores", "softmax", "values"]


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
    """What the kernel is compiled for. With a `last` phase before that of values it ends there, to be timed: a word of
    every thread goes where values would, so that no phase is left out as useless.

    `turning`: scores get a bias by position, from phasors that turn. `gains`: so do weights of values a factor.
    """

    group: int
    keys: Codes
    values: Codes
    block: int = 128
    last: Phase = "values"
    turning: bool = False
    gains: bool = False

    @property
    def decodes(self) -> bool:
        """Whether keys are looked up as centroids: no more words than tables of all query heads have, and they need
        only be copied. But one word of two heads' sums is one addition for both.
        """
        words, table = self.keys.centroid_words, self._table_words
        return words < table or (words == table and self.group != 2)

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
        return 8 if self.values.layout == "row" else max(16, self.values.period)

    @property
    def tokens(self) -> int:
        """Of one block at most."""
        return self.block * self.key_tokens // self.together * self.together

    @property
    def together(self) -> int:
        """Tokens that a stretch middles at a multiple of: they are read at once and lie in one page."""
        return max(self.key_tokens, self.value_tokens)

    @property
    def stages(self) -> tuple[int, int]:
        """Subspaces whose tables are in shared memory at a time, of keys and of values; 0 where not one fits."""
        room = SHARED_BYTES - self._fixed_bytes
        keys, values = self.keys, self.values
        return (
            _stage(keys.num_subspaces, 4 * keys.entries * self.entry_words, room),
            # a lane owns one subspace
            _stage(values.num_subspaces, 4 * values.entries * values.centroid_words, room, min(self.block, _LANES)),
        )

    @property
    def key_step(self) -> KeyStep:
        """What a thread does between two readings of key codes."""
        row, words = self.keys.layout == "row", self.keys.centroid_words
        period = self.keys.period
        subspaces = 4 if not row else 2 * period if self.stages[0] % (2 * period) == 0 else period
        flush = max(1, 4 // words) if self.decodes else 4
        return KeyStep(
            self.key_tokens, subspaces, self.keys.nbits, row, self.keys.entries, self.entry_words, self.group,
            self.decodes, flush,
        )  # fmt: skip

    @property
    def value_step(self) -> ValueStep:
        """What a thread does between two readings of value codes."""
        values = self.values
        return ValueStep(
            self.value_tokens, values.nbits, values.layout == "row", values.entries, values.centroid_words,
            values.d_sub, self.stages[1], self.group,
        )  # fmt: skip

    @property
    def table_words(self) -> int:
        """Words of the shared table: that of keys, that of values, the partial sums of all teams, or what polynomials
        are weighted with in the bias.
        """
        keys, values = self.stages
        teams = self.block // max(1, values)
        sums = teams * self.group * values * self.values.d_sub
        return max(
            keys * self.keys.entries * self.entry_words,
            values * self.values.entries * self.values.centroid_words,
            sums,
            POLYNOMIALS * self._turned_words if self.turning else 0,
        )

    @property
    def turned_blocks(self) -> int:
        """Blocks of `turns` that a stretch lies in at most."""
        return (TURN - self.together + self.tokens - 1) // TURN + 1

    @property
    def _turned_words(self) -> int:
        """Words that one row of turns is weighted with, for all blocks and heads."""
        return self.turned_blocks * self.group

    @property
    def turned_pairs(self) -> int:
        """Fast pairs, of two rows each, whose weights fit the shared table at a time."""
        return self.table_words // self._turned_words // 2

    @property
    def weight_words(self) -> int:
        """Words that hold the softmax weights of one token: two heads a word, one head twice in a word."""
        return (self.group + 1) // 2

    @property
    def build_tokens(self) -> float:
        """How many tokens are looked up in the time that the tables of all subspaces take to copy, as A100 and H100
        are documented and 32 lanes meet in banks at 256 entries: for `choose_coded_splits`, not for predictions.
        """
        keys, values = self.keys, self.values
        copied = sum(4 * c.num_subspaces * c.entries * c.centroid_words for c in (keys, values)) / _L2_BYTES
        read = keys.num_subspaces * self.entry_words * _KEY_WAVEFRONTS + values.num_subspaces * values.centroid_words
        return copied / (read / _LANES)

    @property
    def _fixed_bytes(self) -> int:
        query = 4 * self.group * self.keys.num_subspaces * self.keys.d_sub
        packed_query = 4 * self.group * self.keys.num_subspaces * self.keys.centroid_words
        return 4 * self.block * self.key_tokens * self.weight_words + query + packed_query + 4 * self.block * self.group

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        return self._fixed_bytes + 4 * self.table_words

    def obstacle(self, page_size: int) -> str | None:
        """Why this kernel cannot serve the variant on such pages, or None."""
        if page_size % self.together:
            return f"{self.together} tokens are read at once, which does not divide pages of {page_size}"
        for name, codes, line in (("keys", self.keys, self.keys.num_subspaces), ("values", self.values, 32)):
            if (line if codes.layout == "row" else page_size) * codes.nbits % 32:
                return f"a line of {name} is no whole number of 32-bit words"
        if min(self.stages) < 1 or self.stages[0] % self.key_step.subspaces:
            return "the tables of too few subspaces fit shared memory"
        if self.stages[1] * self.values.entries * self.values.centroid_words % 4:
            return "centroids are copied four words at a time"
        if not self.tokens:
            return f"a block of {self.block} threads takes fewer than {self.together} tokens"
        return None if self.shared_bytes <= SHARED_BYTES else "weights and partial sums do not fit shared memory"


def coded_variant(
    group: int, keys: Codes, values: Codes, *, turning: bool = False, gains: bool = False
) -> CodedVariant:
    """The variant with the block that serves `group` query heads: their scores must fit a thread's registers. Two heads
    leave room for a large block, which reads more tokens by the same tables.
    """
    usual, large = (
        CodedVariant(group, keys, values, block, turning=turning, gains=gains)
        for block in (64 if group > 4 else 128, 256)
    )
    return large if group <= 2 and large.stages == usual.stages else usual


def _stage(subspaces: int, bytes_each: int, room: int, most: int | None = None) -> int:
    """The largest power-of-two fraction of `subspaces`, at most `most`, whose tables fit `room` bytes; 0 if none."""
    count = subspaces
    while count * bytes_each > room or (most is not None and count > most):
        if count % 2:
            return 0
        count //= 2
    return count


def coded_kernel(variant: CodedVariant) -> Callable[..., Any]:
    """The kernel, not compiled yet. Its grid is (splits, KV heads * chunks of query heads, sequences).

    query (B, Hq, D) float32, times scale and log2(e); key_codes, value_codes: 32-bit words of the pages of keys, bytes
    or words (transposed) of the pages of values; key_centroids, value_centroids: words as `centroids.key_words` and
    `centroids.value_words` make them, of `key_heads`, `value_heads` (1 or Hkv) heads; key_channels, value_channels
    (H, D) int64; table, lengths, partial as in
    `exact_kernel`. A split reads `share` tokens, at most `variant.tokens` and a multiple of what is read at once.

    turning: () or phasors (B, Hq, pairs, 2) float32, fast pairs first, times scale and log2(e), the tables `middles`,
    `rows` and `slow` of `Turns`, and the numbers of pairs and of fast ones. gains: () or words of the gains (pages,
    Hkv, page_size) and their values (Hkv, 256) float32. Products of weight and gain go to fp16 over the largest of the
    stretch, whatever octaves the gains span: sums over values are as far from overflow as without gains, and a product
    is off by no more than 2**-11 of itself or 2**-25 of the largest.
    """
    GROUP, BLOCK = variant.group, variant.block
    KM, KBITS, KSUB, KC, KROW = _constants(variant.keys)
    VM, VBITS, VSUB, VC, VROW = _constants(variant.values)
    D = KM * KSUB
    DECODES = variant.decodes
    ENTRY = variant.entry_words  # words of a key's table entry
    KWORDS, VWORDS = variant.keys.centroid_words, variant.values.centroid_words
    KSTAGE, VSTAGE = variant.stages
    KEY_STEP, VALUE_STEP = variant.key_step, variant.value_step
    LOOK_UP, MIX = key_step(KEY_STEP), value_step(VALUE_STEP)
    KT, VT, STEP = KEY_STEP.tokens, VALUE_STEP.tokens, KEY_STEP.subspaces
    TILE, WEIGHTS = BLOCK * KT, variant.weight_words
    TEAMS = BLOCK // VSTAGE
    VROW_BYTES = (VM * VBITS + 7) // 8
    TOGETHER = variant.together
    KLINE, KLINES = KEY_STEP.line, KT if KROW else STEP
    KLOAD, KLOADS = words_of_loads(KLINE)
    VLOAD, VLOADS = words_of_loads(VALUE_STEP.line)
    KCENTROID, KPARTS = words_of_loads(KWORDS)
    LOAD_KEYS, LOAD_VALUES, LOAD_KEY_CENTROID = words_loader(KLOAD), words_loader(VLOAD), words_loader(KCENTROID)
    GLOAD, GLOADS = words_of_loads(KT // 4)
    LOAD_GAINS, ADD_BIAS = words_loader(GLOAD), bias_step(KT, GROUP)
    KEY_TABLE, VALUE_TABLE = KSTAGE * KC * KWORDS, VSTAGE * VC * VWORDS  # words of the centroids of a stage
    ONE = GROUP == 1
    TABLES_ONLY, SCORES_ONLY, NO_VALUES = (variant.last == phase for phase in ("tables", "scores", "softmax"))
    BIASED, GAINS = variant.turning and not TABLES_ONLY, variant.gains
    TURNED, PAIRS = variant.turned_blocks, variant.turned_pairs
    FULL = BLOCK % 32 == 0
    TABLE, WEIGHT_ROOM, QUERY, PACKED, RED = (
        variant.table_words, TILE * WEIGHTS, GROUP * D, GROUP * KM * KWORDS, BLOCK * GROUP,
    )  # fmt: skip
    SCORES, ACC, HELD, LINE, GAIN_WORDS = KT * GROUP, VSUB * GROUP, KLINE * KLINES, VALUE_STEP.line, KT // 4
    ALIGNMENT = None if SIMULATED else 16  # of what is read 128 bits at a time; the simulator knows none

    def kernel(
        query, key_codes, value_codes, key_centroids, value_centroids, key_channels, value_channels, table, lengths,
        partial, page_size, page_shift, table_stride, kv_heads, chunks, key_heads, value_heads, window, share,
        first_slot, slots, turning, gains,
    ):  # fmt: skip
        tables = cuda.shared.array(TABLE, uint32, alignment=ALIGNMENT)
        weights = cuda.shared.array(WEIGHT_ROOM, uint32, alignment=ALIGNMENT)
        q = cuda.shared.array(QUERY, float32)
        packed = cuda.shared.array(PACKED, uint32, alignment=ALIGNMENT)
        meeting = cuda.shared.array(RED, float32)
        score = cuda.local.array(SCORES, float32)
        held = cuda.local.array(HELD, uint32)
        acc = cuda.local.array(ACC, float32)
        line = cuda.local.array(LINE, uint32)
        centroid = cuda.local.array(KWORDS, uint32)
        if BIASED:
            polynomial = cuda.local.array(POLYNOMIALS, float32)
        if GAINS:
            gain_bytes = cuda.local.array(GAIN_WORDS, uint32)

        split, kv, b = cuda.blockIdx.x, cuda.blockIdx.y // chunks, cuda.blockIdx.z
        batch = cuda.gridDim.z
        head = cuda.blockIdx.y * GROUP
        heads = kv_heads * chunks * GROUP
        thread = uint32(cuda.threadIdx.x)
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
            for g in range(int64(thread), GROUP, BLOCK):
                partial[uint64(at + g * slots * (D + 2) + D + 1)] = 0.0
            return

        index = thread
        while index < uint32(GROUP * D):
            g, e = uint32(index // uint32(D)), uint32(index % uint32(D))
            channel = int64(key_channels[uint64(key_book * D + int64(e))])
            q[index] = query[uint64((b * heads + head + int64(g)) * D + channel)]
            index = uint32(index + uint32(BLOCK))
        cuda.syncthreads()
        if DECODES:  # in the order [subspace][word][head], in which a look-up wants it
            index = thread
            while index < uint32(GROUP * KM * KWORDS):
                g, m_word = uint32(index % uint32(GROUP)), uint32(index // uint32(GROUP))
                word, m = uint32(m_word % uint32(KWORDS)), uint32(m_word // uint32(KWORDS))
                at_q = uint32(g * uint32(D) + m * uint32(KSUB) + uint32(2) * word)
                upper = q[uint32(at_q + uint32(1))] if 2 * word + 1 < KSUB else float32(0.0)
                packed[index] = bits_of_halves(q[at_q], upper)
                index = uint32(index + uint32(BLOCK))

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
        if BIASED:
            # what rows of turns are weighted with, [row][block][head]: polynomials, then fast pairs as there is room
            phasors, middles, rows, slow, pairs, fast = turning
            first_block = start // TURN
            blocks = uint32((end - 1) // TURN - first_block + 1)
            own_row, own_weight = token % TURN, uint32((token // TURN - first_block) * (4 * GROUP))
            index = thread
            while index < blocks * uint32(GROUP):
                g, block = uint32(index % uint32(GROUP)), uint32(index // uint32(GROUP))
                at_turn = 2 * ((first_block + int64(block)) * pairs + fast)
                at_phasor = 2 * ((b * heads + head + int64(g)) * pairs + fast)
                for k in range(POLYNOMIALS):
                    polynomial[k] = 0.0
                for pair in range(pairs - fast):
                    cosine, sine = middles[uint64(at_turn)], middles[uint64(at_turn + 1)]
                    even, odd = phasors[uint64(at_phasor)], phasors[uint64(at_phasor + 1)]
                    even, odd = even * cosine + odd * sine, odd * cosine - even * sine
                    for k in range(POLYNOMIALS):
                        polynomial[k] += (even if k % 2 == 0 else odd) * slow[uint64(pair * POLYNOMIALS + k)]
                    at_turn += 2
                    at_phasor += 2
                for k in range(POLYNOMIALS):
                    tables[uint32(index + uint32(k * TURNED * GROUP))] = bits_of(polynomial[k])
                index = uint32(index + uint32(BLOCK))
            cuda.syncthreads()
            if alive:
                at_row, at_weight = 2 * fast * TURN + own_row, own_weight
                for _row in range(POLYNOMIALS):
                    ADD_BIAS(rows, at_row, tables, at_weight, score)
                    at_row += TURN
                    at_weight = uint32(at_weight + uint32(4 * TURNED * GROUP))
            for pair in range(0, fast, PAIRS):
                count = min(fast - pair, PAIRS)
                cuda.syncthreads()
                index = thread
                while index < uint32(count) * uint32(TURNED * GROUP):
                    own = uint32(index // uint32(TURNED * GROUP))
                    g, block = uint32(index % uint32(GROUP)), uint32(index // uint32(GROUP) % uint32(TURNED))
                    if block < blocks:
                        at_turn = 2 * ((first_block + int64(block)) * pairs + pair + int64(own))
                        at_phasor = 2 * ((b * heads + head + int64(g)) * pairs + pair + int64(own))
                        cosine, sine = middles[uint64(at_turn)], middles[uint64(at_turn + 1)]
                        even, odd = phasors[uint64(at_phasor)], phasors[uint64(at_phasor + 1)]
                        target = uint32(index + own * uint32(TURNED * GROUP))
                        tables[target] = bits_of(even * cosine + odd * sine)
                        tables[uint32(target + uint32(TURNED * GROUP))] = bits_of(odd * cosine - even * sine)
                    index = uint32(index + uint32(BLOCK))
                cuda.syncthreads()
                if alive:
                    at_row, at_weight = 2 * pair * TURN + own_row, own_weight
                    for _row in range(2 * count):
                        ADD_BIAS(rows, at_row, tables, at_weight, score)
                        at_row += TURN
                        at_weight = uint32(at_weight + uint32(4 * TURNED * GROUP))
        for stage in range(0, KM, KSTAGE):
            cuda.syncthreads()
            first_word = (int64(key_book) * KM + stage) * KC * KWORDS
            if DECODES:
                index = uint32(thread * uint32(4))
                while index < uint32(KEY_TABLE):
                    copy_four(key_centroids, first_word + int64(index), tables, index)
                    index = uint32(index + uint32(4 * BLOCK))
                finish_copies()
            else:
                index = thread
                source = first_word + int64(thread) * KWORDS
                while index < uint32(KSTAGE * KC):
                    for part in range(KPARTS):
                        LOAD_KEY_CENTROID(key_centroids, source + part * KCENTROID, centroid, part * KCENTROID)
                    m = uint32(uint32(stage) + index // uint32(KC))
                    for word in range(ENTRY):
                        first, second = float32(0.0), float32(0.0)
                        place_q = uint32(m * uint32(KSUB) + uint32(2 * word * D))
                        for pair in range(KWORDS):
                            lower, upper = floats_of_halves(centroid[pair])
                            first += q[place_q] * lower
                            if 2 * word + 1 < GROUP:
                                second += q[uint32(place_q + uint32(D))] * lower
                            if 2 * pair + 1 < KSUB:
                                first += q[uint32(place_q + uint32(1))] * upper
                                if 2 * word + 1 < GROUP:
                                    second += q[uint32(place_q + uint32(D + 1))] * upper
                            place_q = uint32(place_q + uint32(2))
                        target = uint32(index * uint32(ENTRY) + uint32(word))
                        tables[target] = bits_of(first) if ONE else bits_of_halves(first, second)
                    index = uint32(index + uint32(BLOCK))
                    source += BLOCK * KWORDS
            cuda.syncthreads()
            if alive and not TABLES_ONLY:
                cursor = place + (stage * KBITS // 32 if KROW else stage * key_line)
                m = uint32(0)
                while m < uint32(KSTAGE):
                    lines = cursor
                    for i in range(KLINES):
                        for w in range(KLOADS):
                            LOAD_KEYS(key_codes, lines + w * KLOAD, held, i * KLINE + w * KLOAD)
                        lines += key_line
                    cursor = cursor + KLINE if KROW else lines
                    LOOK_UP(
                        held, tables, uint32(m * uint32(4 * KC * ENTRY)),
                        packed, uint32((m + uint32(stage)) * uint32(4 * GROUP * KWORDS)), score,
                    )  # fmt: skip
                    m = uint32(m + uint32(STEP))

        if TABLES_ONLY or SCORES_ONLY:
            total = float32(0.0)
            if TABLES_ONLY:
                total = float_of(tables[uint32(thread % uint32(TABLE))])
                if DECODES:
                    total += float_of(packed[uint32(thread % uint32(PACKED))])
            else:
                for i in range(SCORES):
                    total += score[i]
            # through the arrays of the phases to come: as many blocks run at a time as of the whole kernel
            weights[thread] = bits_of(total)
            meeting[thread] = total
            cuda.syncthreads()
            neighbour = uint32(uint32(thread + uint32(1)) % uint32(BLOCK))
            partial[uint64(at + int64(thread) % D)] = float_of(weights[neighbour]) + meeting[neighbour]
            return

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
            meeting[uint32(thread * uint32(GROUP) + uint32(g))] = top
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
            meeting[uint32(thread * uint32(GROUP) + uint32(g))] = mass
        if GAINS:  # from here on a score is the product of weight and gain over the largest of the block
            stored_gains, gain_values = gains
            if alive:
                number = token >> page_shift if page_shift >= 0 else token // page_size
                page, inside = int64(table[uint64(b * table_stride + number)]), token - number * page_size
                place = ((page * kv_heads + kv) * page_size + inside) // 4
                for w in range(GLOADS):
                    LOAD_GAINS(stored_gains, place + w * GLOAD, gain_bytes, w * GLOAD)
                for j in range(KT):
                    byte = uint32(gain_bytes[j // 4] >> uint32(8 * (j % 4))) & uint32(255)
                    # what lies past the end has weight 0, whatever its byte stands for
                    gain = gain_values[uint64(kv * 256 + int64(byte))] if token + j < end else float32(0.0)
                    for g in range(GROUP):
                        score[j * GROUP + g] *= gain
            for g in range(GROUP):
                peak = float32(_LEAST_PEAK)
                for j in range(KT):
                    peak = max(peak, abs(score[j * GROUP + g]))
                if FULL:
                    for halving in range(5):
                        peak = max(peak, exchange(uint32(0xFFFFFFFF), peak, int32(1 << halving)))
                weights[uint32(thread * uint32(GROUP) + uint32(g))] = bits_of(peak)
            cuda.syncthreads()
            for g in range(GROUP):
                peak = float32(_LEAST_PEAK)
                for other in range(0, BLOCK, 32 if FULL else 1):
                    peak = max(peak, float_of(weights[other * GROUP + g]))
                shrink = float32(1.0) / peak
                for j in range(KT):
                    score[j * GROUP + g] *= shrink
                if thread == 0:
                    q[g] = peak  # which sums over values are multiplied by; nothing else wants q any more
            cuda.syncthreads()
        for j in range(KT):
            for w in range(WEIGHTS):
                lower = score[j * GROUP + 2 * w]
                upper = lower if ONE else (score[j * GROUP + 2 * w + 1] if 2 * w + 1 < GROUP else float32(0.0))
                weights[uint32((thread * uint32(KT) + uint32(j)) * uint32(WEIGHTS) + uint32(w))] = bits_of_halves(
                    lower, upper
                )
        cuda.syncthreads()
        if thread == 0:
            for g in range(GROUP):
                mass = float32(0.0)
                for other in range(0, BLOCK, 32 if FULL else 1):
                    mass += meeting[other * GROUP + g]
                partial[uint64(at + g * slots * (D + 2) + D + 1)] = mass

        if NO_VALUES:
            partial[uint64(at + int64(thread) % D)] = float_of(weights[uint32(uint32(WEIGHT_ROOM - 1) - thread)])
            return

        # ---- values: this thread's subspace over the tokens of its team
        team, own = uint32(thread // uint32(VSTAGE)), uint32(thread % uint32(VSTAGE))
        groups = uint32((end - start + VT - 1) // VT)
        each = uint32((groups + uint32(TEAMS - 1)) // uint32(TEAMS))
        first_group = uint32(team * each)
        last_group = min(uint32(first_group + each), groups)
        for stage in range(0, VM, VSTAGE):
            cuda.syncthreads()
            first_word = (int64(value_book) * VM + stage) * VC * VWORDS
            index = uint32(thread * uint32(4))
            while index < uint32(VALUE_TABLE):
                copy_four(value_centroids, first_word + int64(index), tables, index)
                index = uint32(index + uint32(4 * BLOCK))
            finish_copies()
            cuda.syncthreads()
            for i in range(ACC):
                acc[i] = 0.0
            if team < uint32(TEAMS) and first_group < last_group:
                token = start + int64(first_group) * VT
                number = token >> page_shift if page_shift >= 0 else token // page_size
                inside = uint32(token - number * page_size)
                entry = b * table_stride + number
                bit = (int64(stage) + int64(own)) * VBITS  # of this subspace's code where values lie in rows
                done = first_group
                while done < last_group:
                    page = int64(table[uint64(entry)])
                    if VROW:
                        cursor = ((page * kv_heads + kv) * page_size + int64(inside)) * value_line + bit // 8
                    else:
                        line_number = (page * kv_heads + kv) * VM + stage + int64(own)
                        cursor = line_number * value_line + int64(inside) * VBITS // 32
                    paged = min(last_group, uint32(done + uint32(uint32(page_size) - inside) // uint32(VT)))
                    while done < paged:
                        if VROW:
                            for j in range(VT):
                                code = uint32(value_codes[uint64(cursor)])
                                if VBITS != 8:
                                    shift = uint32(bit % 8)
                                    if shift + uint32(VBITS) > uint32(8):
                                        code |= uint32(value_codes[uint64(cursor + 1)]) << uint32(8)
                                    if shift + uint32(VBITS) > uint32(16):
                                        code |= uint32(value_codes[uint64(cursor + 2)]) << uint32(16)
                                    code = uint32(code >> shift)
                                line[j] = code
                                cursor += value_line
                        else:
                            for w in range(VLOADS):
                                LOAD_VALUES(value_codes, cursor + w * VLOAD, line, w * VLOAD)
                            cursor += LINE
                        weights_at = uint32(done * uint32(4 * VT * WEIGHTS))
                        MIX(line, tables, uint32(own * uint32(4)), weights, weights_at, acc, 0)
                        done = uint32(done + uint32(1))
                    inside = uint32(0)
                    entry += 1
            cuda.syncthreads()
            if team < uint32(TEAMS):
                for g in range(GROUP):
                    for e in range(VSUB):
                        element = uint32(own * uint32(VSUB) + uint32(e))
                        target = uint32((team * uint32(GROUP) + uint32(g)) * uint32(VSTAGE * VSUB) + element)
                        tables[target] = bits_of(acc[g * VSUB + e])
            cuda.syncthreads()
            index = thread
            while index < uint32(GROUP * VSTAGE * VSUB):
                g, element = uint32(index // uint32(VSTAGE * VSUB)), uint32(index % uint32(VSTAGE * VSUB))
                value = float32(0.0)
                for one in range(TEAMS):
                    value += float_of(tables[uint32(uint32(one * GROUP * VSTAGE * VSUB) + index)])
                if GAINS:
                    value *= q[g]
                channel = int64(value_channels[uint64(int64(value_book) * D + stage * VSUB + int64(element))])
                partial[uint64(at + int64(g) * slots * (D + 2) + channel)] = value
                index = uint32(index + uint32(BLOCK))

    return kernel


def _constants(codes: Codes) -> tuple[int, int, int, int, bool]:
    return codes.num_subspaces, codes.nbits, codes.d_sub, codes.entries, codes.layout == "row"


def words_of_loads(words: int) -> tuple[int, int]:
    """How wide loads of `words` words are, and how many."""
    width = next(width for width in (4, 2, 1) if words % width == 0)
    return width, words // width
