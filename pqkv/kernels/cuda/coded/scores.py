"""A thread's tokens against every subspace of keys: codes of global memory, looked up in shared memory."""

from numba import cuda, int64, uint32, uint64

from pqkv.kernels.cuda.coded.tables import key_tables
from pqkv.kernels.cuda.codes import words_of_loads
from pqkv.kernels.cuda.device import device_function, key_step, words_loader
from pqkv.kernels.cuda.paging import page_of_token


def words_of_key_line(variant):
    """line(page_size): 32-bit words of a line of a page."""
    M, NBITS, ROW = variant.keys.num_subspaces, variant.keys.nbits, variant.keys.layout == "row"

    @device_function
    def line(page_size):
        return M * NBITS // 32 if ROW else page_size * NBITS // 32

    return line


def key_place(variant):
    """place(paging, token, line): the first word of the codes of a thread's tokens, the first of which is `token`."""
    M, NBITS, ROW = variant.keys.num_subspaces, variant.keys.nbits, variant.keys.layout == "row"

    @device_function
    def place(paging, token, line):
        number, inside = page_of_token(paging, token)
        lines = int64(paging.table[uint64(paging.row + number)]) * paging.kv_heads + paging.kv
        if ROW:
            return (lines * paging.size + inside) * line
        return lines * M * line + inside * NBITS // 32

    return place


def load_codes(variant):
    """load_codes(codes, cursor, line, held): the codes of a thread's tokens in the subspaces of one step -> where those
    of the next begin.
    """
    STEP, ROW = variant.key_step, variant.keys.layout == "row"
    LINE, LINES = STEP.line, STEP.tokens if ROW else STEP.subspaces
    LOAD, LOADS = words_of_loads(LINE)
    LOAD_WORDS = words_loader(LOAD)

    @device_function
    def load_codes(codes, cursor, line, held):
        lines = cursor
        for i in range(LINES):
            for w in range(LOADS):
                LOAD_WORDS(codes, lines + w * LOAD, held, i * LINE + w * LOAD)
            lines += line
        return cursor + LINE if ROW else lines

    return load_codes


def score_tile(variant):
    """score_tile(codes, place, line, stage, tables, packed, score): adds to the scores of a thread's tokens the
    products of their keys with the query in the subspaces of a stage.
    """
    KEYS, STEP, GROUP = variant.keys, variant.key_step, variant.group
    NBITS, WORDS, ROW = KEYS.nbits, KEYS.centroid_words, KEYS.layout == "row"
    STAGE, SUBSPACES = variant.stages[0], STEP.subspaces
    TABLE_BYTES = 4 * KEYS.entries * variant.entry_words  # of a subspace
    HELD = STEP.line * (STEP.tokens if ROW else SUBSPACES)
    LOAD_CODES, LOOK_UP = load_codes(variant), key_step(STEP)

    @device_function
    def score_tile(codes, place, line, stage, tables, packed, score):
        held = cuda.local.array(HELD, uint32)
        cursor = place + (stage * NBITS // 32 if ROW else stage * line)
        m = uint32(0)
        while m < uint32(STAGE):
            cursor = LOAD_CODES(codes, cursor, line, held)
            LOOK_UP(
                held, tables, uint32(m * uint32(TABLE_BYTES)),
                packed, uint32((m + uint32(stage)) * uint32(4 * GROUP * WORDS)), score,
            )  # fmt: skip
            m = uint32(m + uint32(SUBSPACES))

    return score_tile


def score_keys(variant):
    """score_keys(keys, place, alive, shared, score, thread): adds to the scores of a thread's tokens, whose codes begin
    at `place` if it has any (`alive`), their keys' products with the query.
    """
    KEYS, STAGE = variant.keys, variant.stages[0]
    M, CENTROIDS = KEYS.num_subspaces, KEYS.entries * KEYS.centroid_words  # of a subspace, in words
    SCORES = variant.last != "tables"
    make_tables, score_tile_of_stage = key_tables(variant), score_tile(variant)

    @device_function
    def score_keys(keys, place, alive, shared, score, thread):
        for stage in range(0, M, STAGE):
            cuda.syncthreads()
            first = (int64(keys.book) * M + stage) * CENTROIDS
            make_tables(keys.centroids, first, stage, shared.q, shared.tables, thread)
            cuda.syncthreads()
            if alive and SCORES:
                score_tile_of_stage(keys.codes, place, keys.line, stage, shared.tables, shared.packed, score)

    return score_keys
