"""Codes into bytes as they lie in the page, rows or transposed."""

from numba import int64, uint8, uint32, uint64

from pqkv.kernels.cuda.device import device_function
from pqkv.packing import packed_size


def pack_codes(variant):
    """pack(codes, pieces, tile, first_subspace, kv_heads, kv, pages, thread): codes [subspace][token] of shared memory
    into `pages`, a byte or a word at a time.
    """
    M, NBITS, ROW = variant.codes.num_subspaces, variant.codes.nbits, variant.codes.layout == "row"
    P, S, TILE, PIECE, BLOCK = variant.page_size, variant.subspaces, variant.tile, variant.piece, variant.block
    PIECES, CUTS, UNIT = variant.pieces, variant.cuts, variant.unit
    LINE = packed_size(M if ROW else P, NBITS)
    LINES, UNITS = PIECE if ROW else S, -(-packed_size(S if ROW else PIECE, NBITS) // UNIT)
    SPAN = (8 * UNIT - 1 + NBITS - 1) // NBITS + 1  # codes that one unit can hold some of

    @device_function
    def unit_of(codes, line, piece, bit, have):
        """The bits from `bit` on of a line's `have` codes."""
        word = uint32(0)
        for i in range(SPAN):
            number = bit // NBITS + i
            shift = number * NBITS - bit
            if number < have and shift < 8 * UNIT:
                at = number * TILE + piece * PIECE + line if ROW else line * TILE + piece * PIECE + number
                one = uint32(codes[uint64(at)])
                word |= one << uint32(shift) if shift >= 0 else one >> uint32(-shift)
        return word

    @device_function
    def pack(codes, pieces, tile, first_subspace, kv_heads, kv, pages, thread):
        for index in range(thread, PIECES * LINES * UNITS, BLOCK):
            part, line, piece = index % UNITS, index // UNITS % LINES, index // (UNITS * LINES)
            start = (int64(tile) * PIECES + piece) % CUTS * PIECE
            length = int64(pieces.lengths[piece])
            page = int64(pieces.targets[piece]) * kv_heads + kv
            if ROW:
                present, have = line < length, int64(min(S, M - first_subspace))
                before, target = first_subspace * NBITS // 8, (page * P + start + line) * LINE
            else:
                present, have = length > 0 and first_subspace + line < M, length
                before, target = start * NBITS // 8, (page * M + first_subspace + line) * LINE
            if present and before + part * UNIT < LINE:
                word = unit_of(codes, line, piece, part * 8 * UNIT, have)
                target += before + part * UNIT
                if UNIT == 4:
                    pages[uint64(target // 4)] = word
                else:
                    pages[uint64(target)] = uint8(word & uint32(255))

    return pack
