"""Batches of paged tokens whose content the test knows, and attention on that content by brute force in float64.

Nothing here is built with the code under test: codes are packed by `numpy.packbits`, decoded one centroid at a time,
and attended to one query at a time.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from pqkv.kernels import CodedQuery, ExactTokens, PagedSide, PagedTokens

LENGTHS = (0, 1, 63, 64, 65, 127, 128, 129, 700)


@dataclass(frozen=True)
class Spec:
    """What to build. `nbits` None means exact pages; `codebooks` 1 shares centroids between heads."""

    context: tuple[int, ...] = LENGTHS
    sinks: tuple[int, ...] | None = None
    residual: tuple[int, ...] | None = None
    queries: int = 1
    heads: int = 2
    group: int = 1
    head_dim: int = 64
    page_size: int = 64
    nbits: int | None = 8
    subspaces: tuple[int, int] = (16, 16)  # of keys, of values
    layouts: tuple[str, str] = ("transposed", "transposed")
    per_head: bool = True
    channels: bool = True
    dtype: torch.dtype = torch.float64
    seed: int = 0
    turning: tuple[float, ...] | None = None  # frequencies; codes then meet a query of their own, biased by phasors
    gains: bool = False  # of values
    int8: bool = False  # centroids
    unused: str = "zero"  # what lies where nothing may be read: zero, poison (NaN, 0xFF) or garbage

    def but(self, **changes):
        return replace(self, **changes)


@dataclass(frozen=True)
class Batch:
    """Arguments of a backend, and what they hold: keys[b], values[b] (Hkv, n, D) in float64."""

    query: torch.Tensor
    pages: PagedTokens | None
    sinks: ExactTokens | None
    residual: ExactTokens | None
    keys: list[np.ndarray]
    values: list[np.ndarray]
    coded: list[slice]  # columns of each sequence that lie in pages

    @property
    def inputs(self):
        return self.query, self.pages, self.sinks, self.residual


def build(spec: Spec) -> Batch:
    # what is unused has its own generator: the content is the same whatever lies around it
    content, noise = np.random.default_rng(spec.seed), np.random.default_rng(spec.seed + 1)
    B = len(spec.context)
    query = torch.from_numpy(content.standard_normal((B, spec.queries, spec.heads * spec.group, spec.head_dim)))
    sinks, *sink_content = _exact_tokens(spec, spec.sinks, content, noise)
    residual, *residual_content = _exact_tokens(spec, spec.residual, content, noise)
    pages, *page_content = _pages(spec, content, noise)
    keys, values = (
        [np.concatenate([part[b] for part in parts], 1) for b in range(B)]
        for parts in zip(sink_content, page_content, residual_content, strict=True)
    )
    starts = [0] * B if spec.sinks is None else spec.sinks
    coded = [slice(start, start + n) for start, n in zip(starts, spec.context, strict=True)]
    if spec.turning is not None:
        pages = replace(pages, query=_coded_query(spec, query.shape))
    return Batch(query.to(spec.dtype), pages, sinks, residual, keys, values, coded)


def _coded_query(spec, shape):
    draw = np.random.default_rng(spec.seed + 2)
    query = torch.from_numpy(draw.standard_normal(shape))
    phasors = torch.from_numpy(draw.standard_normal((*shape[:3], len(spec.turning), 2)) * 3)
    wide = torch.float64 if spec.dtype == torch.float64 else torch.float32  # as a cache makes it of half types
    return CodedQuery(query.to(wide), phasors.to(wide), spec.turning)


def brute_force(batch: Batch, scale: float, window: int | None = None):
    """Attention one query at a time, as its definition says: out (B, Tq, Hq, D), lse (B, Tq, Hq)."""

    def own(b, t, h):
        """The query that coded tokens meet and the bias of token j, or None where it is the query itself."""
        if batch.pages is None or (coded := batch.pages.query) is None:
            return None
        (cosines, sines), thetas = coded.phasors[b, t, h].double().numpy().T, np.array(coded.frequencies)

        def bias(j):
            angles = np.outer(j, thetas)
            return np.cos(angles) @ cosines + np.sin(angles) @ sines

        return coded.query[b, t, h].double().numpy(), bias

    query = batch.query.double().numpy()
    B, Tq, Hq, _ = query.shape
    out, lse = np.zeros(query.shape), np.full((B, Tq, Hq), -np.inf)
    for b in range(B):
        keys, values = batch.keys[b], batch.values[b]
        total = keys.shape[1]
        group = Hq // keys.shape[0]
        for t in range(Tq):
            position = total - Tq + t
            if position < 0:
                continue
            first = 0 if window is None else max(0, position - window + 1)
            for h in range(Hq):
                scores = keys[h // group, first : position + 1] @ query[b, t, h] * scale
                if (coded := own(b, t, h)) is not None:
                    mine = slice(max(first, batch.coded[b].start), min(position + 1, batch.coded[b].stop))
                    places = np.arange(mine.start, mine.stop)
                    scores[mine.start - first : max(mine.stop - first, mine.start - first)] = scale * (
                        keys[h // group, places] @ coded[0] + coded[1](places - batch.coded[b].start)
                    )
                top = scores.max()
                mass = np.exp(scores - top)
                out[b, t, h] = mass @ values[h // group, first : position + 1] / mass.sum()
                lse[b, t, h] = top + np.log(mass.sum())
    return out, lse


def _fill(spec, shape, noise):
    """Numbers for slots that may not be read."""
    if spec.unused == "poison":
        return np.full(shape, np.nan)
    return noise.standard_normal(shape) * 1e4 if spec.unused == "garbage" else np.zeros(shape)


def _rounded(array, dtype):
    """The float64 values that storing in `dtype` leaves."""
    return torch.from_numpy(array).to(dtype).double().numpy()


def _exact_tokens(spec, lengths, content, noise):
    B, H, D = len(spec.context), spec.heads, spec.head_dim
    nothing = [np.zeros((H, 0, D))] * B
    if lengths is None:
        return None, nothing, nothing
    sides, held = [], []
    for _ in range(2):
        buffer = _fill(spec, (B, H, max(lengths) + 3, D), noise)
        vectors = [_rounded(content.standard_normal((H, n, D)), spec.dtype) for n in lengths]
        for row, vector in zip(buffer, vectors, strict=True):
            row[:, : vector.shape[1]] = vector
        sides.append(torch.from_numpy(buffer).to(spec.dtype))
        held.append(vectors)
    return ExactTokens(*sides, torch.tensor(lengths, dtype=torch.int32)), *held


def _pages(spec, content, noise):
    B, P = len(spec.context), spec.page_size
    used = [-(-n // P) for n in spec.context]
    count = sum(used) + 3  # some pages belong to nobody
    ids = content.permutation(count)
    nowhere = {"zero": [-1], "poison": [-1, 2**31 - 1, -(2**31), count, 10**6], "garbage": [0, 1, count - 1]}
    table = noise.choice(nowhere[spec.unused], (B, max(1, *used) + 2)).astype(np.int32)
    start = 0
    for row, n in zip(table, used, strict=True):
        row[:n] = ids[start : start + n]
        start += n
    make = _exact_side if spec.nbits is None else _coded_side
    (keys, key_content), (values, value_content) = (make(spec, i, table, count, content, noise) for i in range(2))
    lengths = torch.tensor(spec.context, dtype=torch.int32)
    return PagedTokens(keys, values, torch.from_numpy(table), lengths, P), key_content, value_content


def _places(spec, table, b):
    """(page, slot) of every token of sequence b."""
    position = np.arange(spec.context[b])
    return table[b, position // spec.page_size], position % spec.page_size


def _exact_side(spec, _, table, count, content, noise):
    pages = _fill(spec, (count, spec.heads, spec.page_size, spec.head_dim), noise)
    held = []
    for b, n in enumerate(spec.context):
        vectors = _rounded(content.standard_normal((spec.heads, n, spec.head_dim)), spec.dtype)
        page, slot = _places(spec, table, b)
        pages[page, :, slot] = vectors.transpose(1, 0, 2)
        held.append(vectors)
    return PagedSide(torch.from_numpy(pages).to(spec.dtype)), held


def _coded_side(spec, side, page_table, count, content, noise):
    H, D, M, C = spec.heads, spec.head_dim, spec.subspaces[side], 2**spec.nbits
    books = H if spec.per_head else 1
    centroids = _rounded(content.standard_normal((books, M, C, D // M)), torch.float32)
    book, scales = torch.from_numpy(centroids).float(), None
    if spec.int8:
        scales = torch.from_numpy(np.abs(centroids).max(2)).float() / 127
        book = (book / scales[:, :, None]).round().to(torch.int8)
        centroids = (book.float() * scales[:, :, None]).double().numpy()
    channels = np.stack([content.permutation(D) for _ in range(books)]) if spec.channels else None
    shape = (count, H, spec.page_size, M)
    if spec.unused == "garbage":
        codes = noise.integers(0, C, shape)
    else:
        codes = np.full(shape, C - 1 if spec.unused == "poison" else 0)
    held = []
    for b, n in enumerate(spec.context):
        mine = content.integers(0, C, (H, n, M))
        page, slot = _places(spec, page_table, b)
        codes[page, :, slot] = mine.transpose(1, 0, 2)
        held.append(_decoded(mine, centroids, channels))
    gains = gain_values = None
    if spec.gains and side == 1:
        draw = np.random.default_rng(spec.seed + 3)
        table = np.exp2(draw.uniform(-2, 2, (H, 256))).astype(np.float32)
        stored = noise.integers(0, 256, (count, H, spec.page_size)).astype(np.uint8)
        for b, n in enumerate(spec.context):
            mine = draw.integers(0, 256, (H, n)).astype(np.uint8)
            page, slot = _places(spec, page_table, b)
            stored[page, :, slot] = mine.T
            held[b] = held[b] * np.take_along_axis(table.astype(np.float64), mine.astype(int), 1)[..., None]
        gains, gain_values = torch.from_numpy(stored), torch.from_numpy(table)
    pages = _packed(codes if spec.layouts[side] == "row" else codes.swapaxes(2, 3), spec.nbits, spec.unused != "zero")
    order = None if channels is None else torch.from_numpy(channels)
    coded = PagedSide(torch.from_numpy(pages), spec.layouts[side], book, order, spec.nbits, scales, gains, gain_values)
    return coded, held


def _decoded(codes, centroids, channels):
    """Codes (Hkv, n, M) -> vectors (Hkv, n, D)."""
    H, n, M = codes.shape
    d_sub = centroids.shape[3]
    vectors = np.zeros((H, n, M * d_sub))
    for h in range(H):
        book = h if centroids.shape[0] > 1 else 0
        for m in range(M):
            for s in range(d_sub):
                element = m * d_sub + s
                channel = element if channels is None else channels[book, element]
                vectors[h, :, channel] = centroids[book, m, codes[h, :, m], s]
    return vectors


def _packed(codes, nbits, ones):
    """Codes (..., n) -> bytes, lowest bit first; the bits that fill up the last byte are ones or zeros."""
    bits = (codes[..., None] >> np.arange(nbits) & 1).reshape(*codes.shape[:-1], -1)
    rest = np.full((*bits.shape[:-1], -bits.shape[-1] % 8), int(ones))
    return np.packbits(np.concatenate([bits, rest], -1).astype(np.uint8), axis=-1, bitorder="little")
