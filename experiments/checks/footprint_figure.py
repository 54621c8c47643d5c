"""Bytes of a 4-bit cache beside those of a bfloat16 cache: 32 layers, 8 KV heads of 128, exact parts in bfloat16.

.venv/bin/python experiments/checks/footprint_figure.py [TOKENS ...]
"""

import sys

import torch

from pqkv.cache import effective_bits, footprint
from pqkv.codec import Codebook, CodebookSet, code_geometry
from pqkv.config import CacheConfig, CodeShape

LAYERS, HEADS, DIM, BITS, ITEMSIZE = 32, 8, 128, 4, torch.bfloat16.itemsize
M, nbits = code_geometry(CodeShape(bits=BITS), DIM)


def book(*, weighted: bool) -> Codebook:
    """One layer's keys or values, with all that training writes: an order of channels, and for keys their weights."""
    centroids, channels = torch.zeros(HEADS, M, 2**nbits, DIM // M), torch.arange(DIM).repeat(HEADS, 1)
    return Codebook(centroids, channels, torch.ones(HEADS, DIM) if weighted else None)


keys, values = (tuple(book(weighted=weighted) for _ in range(LAYERS)) for weighted in (True, False))
books = CodebookSet(keys, values)
for tokens in [int(word) for word in sys.argv[1:]] or [2048, 32768, 131072]:
    total = footprint(tokens, CacheConfig(), LAYERS, HEADS, DIM, ITEMSIZE, books).total
    exact = 2 * LAYERS * tokens * HEADS * DIM * ITEMSIZE
    bits = effective_bits(total, tokens, LAYERS, HEADS, DIM)
    print(f"{tokens:,} tokens: {total:,} of {exact:,} bytes, {total / exact:.1%}; {bits:.2f} bits an element")
