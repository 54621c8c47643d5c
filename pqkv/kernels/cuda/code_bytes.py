"""Codes of any width out of the bytes of a page."""

from numba import uint32, uint64

from pqkv.kernels.cuda.device import device_function


def code_of_bytes(nbits):
    """code(codes, byte, bit): the code that begins `bit` % 8 bits into a byte, with bits of others above its own."""

    @device_function
    def code(codes, byte, bit):
        found = uint32(codes[uint64(byte)])
        if nbits != 8:
            shift = uint32(bit % 8)
            if shift + uint32(nbits) > uint32(8):
                found |= uint32(codes[uint64(byte + 1)]) << uint32(8)
            if shift + uint32(nbits) > uint32(16):
                found |= uint32(codes[uint64(byte + 2)]) << uint32(16)
            found = uint32(found >> shift)
        return found

    return code


def code_in_page(codes_of_side):
    """code(codes, paging, page, slot, m): that of a token in subspace `m`, in a page of either layout whose lines are
    whole bytes.
    """
    M, NBITS, ROW = codes_of_side.num_subspaces, codes_of_side.nbits, codes_of_side.layout == "row"
    MASK = codes_of_side.entries - 1
    cut = code_of_bytes(NBITS)

    @device_function
    def code(codes, paging, page, slot, m):
        row = (page * paging.kv_heads + paging.kv) * (paging.size if ROW else M) + (slot if ROW else m)
        bit = (m if ROW else slot) * NBITS
        line = ((M if ROW else paging.size) * NBITS + 7) // 8
        return cut(codes, row * line + bit // 8, bit) & uint32(MASK)

    return code
