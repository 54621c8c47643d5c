"""Pages that `encode_pages` wrote, and their codes against the nearest centroid in float64."""

from dataclasses import dataclass

import numpy as np
import torch

from pqkv.kernels.cuda.encode import encode_pages


@dataclass(frozen=True)
class Case:
    nbits: int = 8
    d_sub: int = 2
    subspaces: int = 12  # a block takes eight: the second has idle warps
    layout: str = "transposed"
    page_size: int = 16
    pages: int = 3  # of each of two sequences
    dtype: torch.dtype = torch.float16
    permuted: bool = True
    ids: torch.dtype = torch.int32


def encoded(case):
    """What `encode_pages` is given, and the pages it wrote; those that belong to nobody hold 0xA5."""
    draw = torch.Generator().manual_seed(case.nbits)
    H, M, D, B, n = 2, case.subspaces, case.subspaces * case.d_sub, 2, case.pages
    lines, count = (case.page_size, M) if case.layout == "row" else (M, case.page_size)
    pages = torch.full((B * n + 2, H, lines, -(-count * case.nbits // 8)), 0xA5, dtype=torch.uint8)
    ids = torch.randperm(len(pages), generator=draw)[: B * n].reshape(B, n).to(case.ids)
    ids[1, 2] = -1  # a page that nobody asked for
    given = {
        "vectors": torch.randn(B, H, n * case.page_size, D, generator=draw).to(case.dtype),
        "centroids": torch.randn(H, M, 2**case.nbits, case.d_sub, generator=draw),
        "channels": torch.stack([torch.randperm(D, generator=draw) for _ in range(H)]) if case.permuted else None,
        "weights": torch.rand(H, D, generator=draw) + 0.5 if case.permuted else None,
    }
    encode_pages(*given.values(), case.nbits, case.layout, pages, ids)
    return given, pages.numpy(), ids.tolist()


def codes_of(page, case):
    """Bytes (lines, ...) -> codes (tokens, M)."""
    count = case.subspaces if case.layout == "row" else case.page_size
    bits = np.unpackbits(page, axis=-1, bitorder="little")[:, : count * case.nbits]
    codes = (bits.reshape(len(page), count, case.nbits).astype(np.int64) << np.arange(case.nbits)).sum(-1)
    return codes if case.layout == "row" else codes.T


def check(case):
    given, pages, ids = encoded(case)
    vectors, centroids = given["vectors"].double().numpy(), given["centroids"].double().numpy()
    B, H, _, D = vectors.shape
    for h in range(H):
        order = np.arange(D) if given["channels"] is None else given["channels"][h].numpy()
        weights = np.ones(D) if given["weights"] is None else given["weights"][h].double().numpy()
        split = weights.reshape(case.subspaces, 1, case.d_sub)
        for b in range(B):
            for i, page in enumerate(ids[b]):
                if page < 0:
                    continue
                tokens = vectors[b, h, i * case.page_size : (i + 1) * case.page_size][:, order] * weights
                tokens = tokens.reshape(len(tokens), case.subspaces, 1, case.d_sub)
                distances = ((tokens - centroids[h] * split) ** 2).sum(-1)  # (tokens, M, C)
                chosen = np.take_along_axis(distances, codes_of(pages[page, h], case)[..., None], 2)[..., 0]
                assert (chosen - distances.min(-1)).max() < 1e-5  # of distances around 1: another only where both tie
    used = {page for row in ids for page in row if page >= 0}
    assert (pages[[page for page in range(len(pages)) if page not in used]] == 0xA5).all()
