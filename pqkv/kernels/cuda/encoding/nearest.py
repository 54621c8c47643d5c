"""The nearest centroid of each vector of a lane: |x - c|^2 / 2 without the constant of x is the half norm, less x.c."""

import math

from numba import cuda, float32, uint32, uint64

from pqkv.kernels.cuda.device import device_function

_NEVER = 0xFFFFFFFF


def load_centroids(variant):
    """load(centroids, weights, book, first_subspace, first, table, thread): `chunk` centroids from `first` on of each
    of the block's subspaces, a column for each channel and one of half norms.
    """
    M, D_SUB, C, BLOCK = variant.codes.num_subspaces, variant.codes.d_sub, variant.codes.entries, variant.block
    S, CHUNK, COLUMN, GROUP, APART = variant.subspaces, variant.chunk, variant.column, variant.together, variant.apart
    D, WEIGHTED = variant.head_dim, variant.weighted

    @device_function
    def load(centroids, weights, book, first_subspace, first, table, thread):
        for index in range(thread, S * CHUNK, BLOCK):
            c, subspace = index % CHUNK, index // CHUNK
            if first_subspace + subspace < M:
                at = subspace * (D_SUB + 1) * COLUMN + c % GROUP * APART + c // GROUP
                source = ((book * M + first_subspace + subspace) * C + first + c) * D_SUB
                norm = float32(0.0)
                for k in range(D_SUB):
                    value = centroids[uint64(source + k)]
                    if WEIGHTED:
                        value *= weights[uint64(book * D + (first_subspace + subspace) * D_SUB + k)]
                    table[uint64(at + k * COLUMN)] = value
                    norm += value * value
                table[uint64(at + D_SUB * COLUMN)] = norm * float32(0.5)

    return load


def search(variant):
    """search(table, own, first, x, best, code): compares the vectors of a lane with the centroids in the table, from
    `own` on, whose first has the code `first`; `best` and `code` are the lowest distances so far and whose they are.
    """
    D_SUB, U, COLUMN = variant.codes.d_sub, variant.tokens, variant.column
    GROUP, GROUPS, APART = variant.together, variant.chunk // variant.together, variant.apart
    QUAD = min(4, GROUPS)
    LOWEST = U * QUAD

    @device_function
    def distance(x, u, table, at, norm):
        total = norm
        for k in range(D_SUB):
            total += x[u * D_SUB + k] * table[uint64(at + k * COLUMN)]
        return total

    @device_function
    def lowest_of_groups(table, at, x, lowest):
        """Of `QUAD` groups of centroids, whose first lie side by side from `at` on."""
        for i in range(LOWEST):
            lowest[i] = math.inf
        for j in range(GROUP):
            for q in range(QUAD):
                here = at + j * APART + q
                norm = table[uint64(here + D_SUB * COLUMN)]
                for u in range(U):
                    lowest[u * QUAD + q] = min(lowest[u * QUAD + q], distance(x, u, table, here, norm))

    @device_function
    def look_again(table, own, first, place, x, u):
        """The code of the nearest in the group `place`."""
        low, code = float32(math.inf), uint32(0)
        for j in range(GROUP):
            at = own + j * APART + place
            found = distance(x, u, table, at, table[uint64(at + D_SUB * COLUMN)])
            if found < low:
                low = found
                code = uint32(first + j) + place * uint32(GROUP)
        return code

    @device_function
    def search(table, own, first, x, best, code):
        lowest = cuda.local.array(LOWEST, float32)
        place = cuda.local.array(U, uint32)
        for u in range(U):
            place[u] = uint32(_NEVER)
        for group in range(0, GROUPS, QUAD):
            lowest_of_groups(table, own + group, x, lowest)
            for q in range(QUAD):
                for u in range(U):
                    if lowest[u * QUAD + q] < best[u]:
                        best[u] = lowest[u * QUAD + q]
                        place[u] = uint32(group + q)
        for u in range(U):
            if place[u] != uint32(_NEVER):
                code[u] = uint32(first) + place[u] if GROUP == 1 else look_again(table, own, first, place[u], x, u)

    return search
