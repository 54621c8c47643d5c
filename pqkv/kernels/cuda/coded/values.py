"""A thread's subspace of values over the tokens of its team: codes of global memory, centroids of shared memory."""

from numba import cuda, float32, int64, uint32, uint64

from pqkv.kernels.cuda.code_bytes import code_of_bytes
from pqkv.kernels.cuda.coded.tables import copy_centroids
from pqkv.kernels.cuda.codes import words_of_loads
from pqkv.kernels.cuda.device import bits_of, device_function, float_of, value_step, words_loader
from pqkv.kernels.cuda.paging import page_of_token


def words_of_value_line(variant):
    """line(page_size): 32-bit words of a line of a transposed page, bytes of a row."""
    M, NBITS, ROW = variant.values.num_subspaces, variant.values.nbits, variant.values.layout == "row"

    @device_function
    def line(page_size):
        return (M * NBITS + 7) // 8 if ROW else page_size * NBITS // 32

    return line


def share_of_team(variant):
    """share(stretch, team): its tokens are read `value_tokens` at a time; which times are a team's: (first, after)."""
    TOKENS, TEAMS = variant.value_tokens, variant.teams

    @device_function
    def share(stretch, team):
        groups = uint32((stretch.end - stretch.start + TOKENS - 1) // TOKENS)
        each = uint32((groups + uint32(TEAMS - 1)) // uint32(TEAMS))
        first = uint32(team * each)
        return first, min(uint32(first + each), groups)

    return share


def load_codes(variant):
    """load(codes, cursor, line, bit, held): `value_tokens` codes, packed as words of a transposed page, or as numbers
    cut out of the bytes of rows at `bit` -> where the next lie; a line of a page has `line` words, or bytes of rows.
    """
    NBITS, TOKENS, WORDS = variant.values.nbits, variant.value_tokens, variant.value_step.line
    LOAD, LOADS = words_of_loads(WORDS)
    load_words, cut = words_loader(LOAD), code_of_bytes(NBITS)

    @device_function
    def load_rows(codes, cursor, line, bit, held):
        for j in range(TOKENS):
            held[j] = cut(codes, cursor, bit)
            cursor += line
        return cursor

    @device_function
    def load_line(codes, cursor, line, bit, held):
        for w in range(LOADS):
            load_words(codes, cursor + w * LOAD, held, w * LOAD)
        return cursor + WORDS

    return load_rows if variant.values.layout == "row" else load_line


def accumulate_values(variant):
    """accumulate(values, paging, start, share, subspace, own, shared, acc): adds to acc, [head][element], what the
    team's share of the tokens from `start` on has in `subspace`, number `own` of those in the table.
    """
    M, NBITS, ROW = variant.values.num_subspaces, variant.values.nbits, variant.values.layout == "row"
    TOKENS, WEIGHT_WORDS, HELD = variant.value_tokens, variant.weight_words, variant.value_step.line
    load, mix = load_codes(variant), value_step(variant.value_step)

    @device_function
    def place(paging, page, inside, line, subspace):
        lines = page * paging.kv_heads + paging.kv
        if ROW:
            return (lines * paging.size + inside) * line + subspace * NBITS // 8
        return (lines * M + subspace) * line + inside * NBITS // 32

    @device_function
    def accumulate(values, paging, start, share, subspace, own, shared, acc):
        held = cuda.local.array(HELD, uint32)
        done, last = share
        number, slot = page_of_token(paging, start + int64(done) * TOKENS)
        entry, inside = paging.row + number, uint32(slot)
        while done < last:
            page = int64(paging.table[uint64(entry)])
            cursor = place(paging, page, int64(inside), values.line, subspace)
            paged = min(last, uint32(done + uint32(uint32(paging.size) - inside) // uint32(TOKENS)))
            while done < paged:
                cursor = load(values.codes, cursor, values.line, subspace * NBITS, held)
                weights_at = uint32(done * uint32(4 * TOKENS * WEIGHT_WORDS))
                mix(held, shared.tables, uint32(own * uint32(4)), shared.weights, weights_at, acc, 0)
                done = uint32(done + uint32(1))
            inside = uint32(0)
            entry += 1

    return accumulate


def leave_sums(variant):
    """leave_sums(acc, team, own, tables): a thread's sums into the table, [team][head][element of the stage]."""
    GROUP, D_SUB, STAGE = variant.group, variant.values.d_sub, variant.stages[1]

    @device_function
    def leave_sums(acc, team, own, tables):
        for g in range(GROUP):
            for e in range(D_SUB):
                element = uint32(own * uint32(D_SUB) + uint32(e))
                target = uint32((team * uint32(GROUP) + uint32(g)) * uint32(STAGE * D_SUB) + element)
                tables[target] = bits_of(acc[g * D_SUB + e])

    return leave_sums


def write_values(variant):
    """write_values(tables, factors, channels, first, partial, thread): the sums of all teams to where `channels`, of
    which the stage's begin at `first`, put them; with gains times the factor of each head.
    """
    GROUP, BLOCK, TEAMS, GAINS = variant.group, variant.block, variant.teams, variant.gains
    ELEMENTS = variant.stages[1] * variant.values.d_sub

    @device_function
    def write_values(tables, factors, channels, first, partial, thread):
        index = thread
        while index < uint32(GROUP * ELEMENTS):
            g, element = uint32(index // uint32(ELEMENTS)), uint32(index % uint32(ELEMENTS))
            value = float32(0.0)
            for one in range(TEAMS):
                value += float_of(tables[uint32(uint32(one * GROUP * ELEMENTS) + index)])
            if GAINS:
                value *= factors[g]
            channel = int64(channels[uint64(first + int64(element))])
            partial.data[uint64(partial.at + int64(g) * partial.step + channel)] = value
            index = uint32(index + uint32(BLOCK))

    return write_values


def mix_values(variant):
    """mix_values(values, paging, stretch, shared, partial, thread): values by their weights, to `partial`."""
    VALUES, GROUP, BLOCK, TEAMS = variant.values, variant.group, variant.block, variant.teams
    M, D_SUB, STAGE = VALUES.num_subspaces, VALUES.d_sub, variant.stages[1]
    CENTROIDS, SUMS = VALUES.entries * VALUES.centroid_words, GROUP * D_SUB
    copy, share_of, accumulate = (
        copy_centroids(STAGE * CENTROIDS, BLOCK),
        share_of_team(variant),
        accumulate_values(variant),
    )
    leave, write = leave_sums(variant), write_values(variant)

    @device_function
    def mix_values(values, paging, stretch, shared, partial, thread):
        acc = cuda.local.array(SUMS, float32)
        team, own = uint32(thread // uint32(STAGE)), uint32(thread % uint32(STAGE))
        share = share_of(stretch, team)
        for stage in range(0, M, STAGE):
            cuda.syncthreads()
            copy(values.centroids, (int64(values.book) * M + stage) * CENTROIDS, shared.tables, thread)
            cuda.syncthreads()
            for i in range(SUMS):
                acc[i] = 0.0
            if team < uint32(TEAMS) and share[0] < share[1]:
                accumulate(values, paging, stretch.start, share, int64(stage) + int64(own), own, shared, acc)
            cuda.syncthreads()
            if team < uint32(TEAMS):
                leave(acc, team, own, shared.tables)
            cuda.syncthreads()
            first = (int64(values.book) * M + stage) * D_SUB
            write(shared.tables, shared.q, values.channels, first, partial, thread)

    return mix_values
