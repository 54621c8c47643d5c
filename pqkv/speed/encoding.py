"""How fast vectors become codes: one sealing of a page after another, beside FAISS on the same codebooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np
import torch

from pqkv.cache.store import CodeSide
from pqkv.codec import Codebook
from pqkv.config import BenchConfig
from pqkv.speed.synthetic import key_book
from pqkv.speed.timing import Contestant

_CPU = torch.device("cpu")
TOKENS = 512  # encoded in one call: a few pages


def encoding_contestants(config: BenchConfig, shape: tuple[int, int], device: torch.device = _CPU) -> list[Contestant]:
    """Keys of all heads into packed pages as a cache does it, with the mean taken off and the frame turned into where
    `config` serves them, and, on a CPU where FAISS is installed, by its `sa_encode`: it is given what is searched for,
    so the search is all that it does. On a GPU one kernel of pqkv searches, packs and stores a cache's pages, on
    vectors of the bench's dtype.
    """
    draw = torch.Generator().manual_seed(config.seed)
    P = config.page_size
    count = -(-TOKENS // P) * P
    book = key_book(config, shape, draw)
    kind = getattr(torch, config.dtype) if device.type == "cuda" else torch.float32
    shape_of_keys = (1, config.kv_heads, count, config.head_dim)
    vectors = [torch.randn(shape_of_keys, generator=draw).to(device, kind) for _ in range(4)]
    side = CodeSide(book.map(lambda t: t.to(device)), config.key_layout, config.kv_heads, P, device)
    call = _sealing_call if device.type == "cuda" else _pqkv_call
    found = [Contestant("pqkv", [call(side, v) for v in vectors])]
    if device.type == "cpu" and find_spec("faiss") is not None:
        found.append(Contestant("faiss sa_encode", [_faiss_call(book, _searched(book, v)) for v in vectors]))
    return found


def tokens_of(config: BenchConfig) -> int:
    """Tokens that one call of a contestant encodes."""
    return -(-TOKENS // config.page_size) * config.page_size


def _pqkv_call(side: CodeSide, vectors: torch.Tensor) -> Callable[[], object]:
    return lambda: side.encode(vectors)[0]


def _sealing_call(side: CodeSide, vectors: torch.Tensor) -> Callable[[], object]:
    pages = vectors.shape[2] // side.page_size
    side.grow(pages)
    ids = torch.arange(pages, device=vectors.device)[None]
    return lambda: side.write(vectors, ids)


@contextmanager
def faiss_threads(count: int) -> Iterator[None]:
    """FAISS on so many threads where this thread calls it; afterwards on as many as before."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _searched(book: Codebook, vectors: torch.Tensor) -> np.ndarray:
    """What codes are sought for of keys (1, Hkv, T, D), in coded order: (Hkv, T, D)."""
    framed = book.framed(vectors, torch.arange(vectors.shape[2]))[0][0]
    if book.channels is not None:
        framed = framed.gather(-1, book.channels[:, None].expand_as(framed))
    return framed.numpy()


def _faiss_call(book: Codebook, vectors: np.ndarray) -> Callable[[], object]:
    import faiss

    heads = []
    for centroids in book.float_centroids():
        index = faiss.IndexPQ(book.head_dim, book.num_subspaces, book.nbits)
        faiss.copy_array_to_vector(centroids.numpy().reshape(-1), index.pq.centroids)
        index.is_trained = True
        heads.append(index)
    rows = [np.ascontiguousarray(head) for head in vectors]

    def encode() -> object:
        with faiss_threads(torch.get_num_threads()):
            return [index.sa_encode(row) for index, row in zip(heads, rows, strict=True)]

    return encode
