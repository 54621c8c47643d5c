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
from typing import Any, NamedTuple

from numba import cuda, float32, int64, uint32

from pqkv.kernels.cuda.coded.ending import end_with
from pqkv.kernels.cuda.coded.gains import apply_gains
from pqkv.kernels.cuda.coded.query import load_query, pack_query
from pqkv.kernels.cuda.coded.scores import key_place, score_keys, words_of_key_line
from pqkv.kernels.cuda.coded.softmax import keep_weights, softmax_tile, write_masses
from pqkv.kernels.cuda.coded.turning import bias_scores
from pqkv.kernels.cuda.coded.values import mix_values, words_of_value_line
from pqkv.kernels.cuda.coded.variant import CodedVariant
from pqkv.kernels.cuda.device import SIMULATED, float_of
from pqkv.kernels.cuda.paging import Coded, Paging, Partial, heads_of_blocks, no_tokens, stretch_of_block


class Shared(NamedTuple):
    """The shared memory of a block: tables of keys, then of values; weights of tokens in fp16; the query in float32 and
    in fp16; where results of threads meet.
    """

    tables: Any
    weights: Any
    q: Any
    packed: Any
    meeting: Any


def coded_kernel(variant: CodedVariant) -> Callable[..., Any]:
    """The kernel, not compiled yet. Its grid is (splits, KV heads * chunks of query heads, sequences).

    query (B, Hq, D) in the variant's type, `heads` of them to a KV head, whose products are times `scale`, the bits of
    a float32 that has log2(e) in it; key_codes, value_codes: 32-bit words of the pages of keys, bytes
    or words (transposed) of the pages of values; key_centroids, value_centroids: words as `centroids.key_words` and
    `centroids.value_words` make them, of `key_heads`, `value_heads` (1 or Hkv) heads; key_channels, value_channels
    (H, D) int64; table, lengths, partial as in
    `exact_kernel`. A split reads `share` tokens, at most `variant.tokens` and a multiple of what is read at once.

    turning: () or phasors (B, Hq, pairs, 2) float32, fast pairs first, the tables `middles`,
    `rows` and `slow` of `Turns`, and the numbers of pairs and of fast ones. gains: () or words of the gains (pages,
    Hkv, page_size) and their values (Hkv, 256) float32. Products of weight and gain go to fp16 over the largest of the
    stretch, whatever octaves the gains span: sums over values are as far from overflow as without gains, and a product
    is off by no more than 2**-11 of itself or 2**-25 of the largest.
    """
    GROUP, D, KEY_TOKENS = variant.group, variant.head_dim, variant.key_tokens
    TABLE, WEIGHTS, QUERY, PACKED, MEETING, SCORES = (
        variant.table_words, variant.weight_room, GROUP * D, variant.packed_words, variant.block * GROUP,
        KEY_TOKENS * GROUP,
    )  # fmt: skip
    ALIGNMENT = None if SIMULATED else 16  # of what is read 128 bits at a time; the simulator knows none
    NO_SOFTMAX, NO_VALUES = variant.last in ("tables", "scores"), variant.last == "softmax"
    DECODES, BIASED, GAINS = variant.decodes, variant.turning and variant.last != "tables", variant.gains
    stretch_of, leave_empty, heads_of = (
        stretch_of_block(variant.together), no_tokens(GROUP, D, variant.block), heads_of_blocks(variant),
    )  # fmt: skip
    key_line, value_line, load, pack, place_of, add_bias, add_scores = (
        part(variant)
        for part in (
            words_of_key_line, words_of_value_line, load_query, pack_query, key_place, bias_scores, score_keys,
        )
    )  # fmt: skip
    softmax, use_gains, keep, sum_up, mix, end_early = (
        part(variant) for part in (softmax_tile, apply_gains, keep_weights, write_masses, mix_values, end_with)
    )

    def kernel(
        query, key_codes, value_codes, key_centroids, value_centroids, key_channels, value_channels, table, lengths,
        partial, scale, page_size, page_shift, table_stride, kv_heads, chunks, heads, key_heads, value_heads, window,
        share, first_slot, slots, turning, gains,
    ):  # fmt: skip
        tables = cuda.shared.array(TABLE, uint32, alignment=ALIGNMENT)
        weights = cuda.shared.array(WEIGHTS, uint32, alignment=ALIGNMENT)
        q = cuda.shared.array(QUERY, float32)
        packed = cuda.shared.array(PACKED, uint32, alignment=ALIGNMENT)
        meeting = cuda.shared.array(MEETING, float32)
        shared = Shared(tables, weights, q, packed, meeting)
        score = cuda.local.array(SCORES, float32)

        split, kv, b = cuda.blockIdx.x, cuda.blockIdx.y // chunks, cuda.blockIdx.z
        thread = uint32(cuda.threadIdx.x)
        first_head, row = heads_of(b, kv_heads, chunks, heads)
        stretch = stretch_of(lengths, b, cuda.gridDim.z, window, split, share)
        result = Partial(partial, (row * slots + first_slot + split) * (D + 2), slots * (D + 2))
        if stretch.start >= stretch.end:
            leave_empty(result, int64(thread))
            return
        paging = Paging(table, b * table_stride, page_size, page_shift, kv_heads, kv)
        keys = Coded(key_codes, key_centroids, key_channels, min(kv, key_heads - 1), key_line(page_size))
        values = Coded(value_codes, value_centroids, value_channels, min(kv, value_heads - 1), value_line(page_size))

        load(query, float_of(uint32(scale)), first_head, keys, q, thread)
        cuda.syncthreads()
        if DECODES:
            pack(q, packed, thread)
        for i in range(SCORES):
            score[i] = 0.0
        token = stretch.start + thread * KEY_TOKENS
        alive = token < stretch.end
        place = place_of(paging, token, keys.line) if alive else int64(0)
        if BIASED:
            add_bias(turning, float_of(uint32(scale)), first_head, stretch, token, tables, score, thread)
        add_scores(keys, place, alive, shared, score, thread)
        if NO_SOFTMAX:
            end_early(score, shared, result, thread)
            return

        softmax(score, token, stretch, meeting, result, thread)
        if GAINS:
            use_gains(gains, paging, token, stretch.end, score, weights, q, thread)
        keep(score, weights, thread)
        cuda.syncthreads()
        if thread == 0:
            sum_up(meeting, result)
        if NO_VALUES:
            end_early(score, shared, result, thread)
            return
        mix(values, paging, stretch, shared, result, thread)

    return kernel
