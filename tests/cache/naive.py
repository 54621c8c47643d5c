"""A cache that keeps every vector, decodes everything for every query, and simulates its schedule token by token."""

from copy import copy, deepcopy

import numpy as np
import torch

from pqkv.cache import Geometry, KVCache
from pqkv.codec import Codebook, CodebookSet

HEADS, GROUP, DIM = 2, 2, 8


def make_books(layers=1, *, nbits=3, subspaces=(4, 2), heads=HEADS, seed=0):
    """Codebooks with channel orders and weights, so that whoever forgets one is found out."""
    generator = torch.Generator().manual_seed(seed)

    def book(M):
        return Codebook(
            torch.randn(heads, M, 2**nbits, DIM // M, generator=generator),
            torch.stack([torch.randperm(DIM, generator=generator) for _ in range(heads)]),
            torch.rand(heads, DIM, generator=generator) + 0.1,
        )

    keys, values = ([book(M) for _ in range(layers)] for M in subspaces)
    return CodebookSet(tuple(keys), tuple(values))


def served_books(layers=1, *, rotary=3, seed=0):
    """What the best recipes need: keys around a mean that turns, in a frame that is not orthogonal, int8 centroids;
    values behind a Hadamard matrix, with gains. Two channels of keys do not turn.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    def keys():
        frame = normal(HEADS, DIM, DIM) + 2 * torch.eye(DIM)
        return Codebook(
            torch.randint(-127, 128, (HEADS, 4, 8, DIM // 4), dtype=torch.int8, generator=generator),
            scales=torch.rand(HEADS, 4, DIM // 4, generator=generator) / 30 + 0.01,
            frame=frame, back=torch.linalg.inv(frame), mean=normal(HEADS, DIM), turning=normal(HEADS, 2 * rotary),
            frequencies=tuple(0.7 ** i for i in range(rotary)),
        )  # fmt: skip

    def values():
        order = torch.stack([torch.randperm(DIM, generator=generator) for _ in range(HEADS)])
        middle = torch.tensor([0.1, -0.4])
        return Codebook(normal(HEADS, 2, 8, DIM // 2), order, middle_gain=middle, hadamard=True)

    return CodebookSet(tuple(keys() for _ in range(layers)), tuple(values() for _ in range(layers)))


def restored(book, vectors, first):
    """`decoded` vectors (Hkv, n, D) at positions first, first + 1, ..., of any codebook, as `Codebook` defines them."""
    if book.channels is not None and book.weights is not None:
        return decoded(book, vectors)
    n, identity = vectors.shape[1], np.eye(DIM)
    shift = np.zeros_like(vectors)
    if book.mean is not None:
        shift += book.mean.double().numpy()[:, None]
    if book.turning is not None:
        turning, half = book.turning.double().numpy(), len(book.frequencies)
        for t in range(n):
            for i, theta in enumerate(book.frequencies):
                z = (turning[:, i] + 1j * turning[:, half + i]) * np.exp(1j * theta * (first + t))
                shift[:, t, i] += z.real
                shift[:, t, half + i] += z.imag
    bits = [[(-1) ** bin(i & j).count("1") for j in range(DIM)] for i in range(DIM)]
    turn = np.array(bits) / DIM**0.5 if book.hadamard else identity
    y = (vectors - shift) @ turn.T
    if book.frame is not None:
        y = np.einsum("hnd,hed->hne", y, book.frame.double().numpy())
    gain = np.ones((*vectors.shape[:2], 1))
    if book.middle_gain is not None:
        middle = book.middle_gain.double().numpy()[:, None]
        stored = np.clip(np.round((np.log2(np.sqrt((y**2).mean(-1))) - middle) * 16 + 128), 0, 255)
        gain = 2 ** ((stored - 128) / 16 + middle)[..., None]
    plain = Codebook(
        (book.centroids if book.scales is None else book.centroids * book.scales[:, :, None]).double(),
        book.channels if book.channels is not None else torch.arange(DIM).repeat(HEADS, 1),
        torch.ones(HEADS, DIM),
    )
    y = decoded(plain, y / gain) * gain @ turn
    if book.back is not None:
        y = np.einsum("hnd,hed->hne", y, book.back.double().numpy())
    return y + shift


def decoded(book, vectors):
    """Vectors (Hkv, n, D) as their nearest centroids have them, by brute force."""
    centroids, order, weights = (part.double().numpy() for part in (book.centroids, book.channels, book.weights))
    H, M, _, d_sub = centroids.shape
    result = np.empty_like(vectors)
    for head in range(vectors.shape[0]):
        h = head if H > 1 else 0
        for m in range(M):
            part = slice(m * d_sub, (m + 1) * d_sub)
            mine = order[h, part].astype(int)
            difference = (vectors[head][:, None, mine] - centroids[h, m]) * weights[h, part]  # (n, C, d_sub)
            result[head][:, mine] = centroids[h, m, (difference**2).sum(-1).argmin(-1)]
    return result


class NaiveSequence:
    """One sequence of one layer. Exact if it has no books."""

    def __init__(self, config, books=None):
        self.config, self.books = config, books
        self.sides = [np.zeros((HEADS, 0, DIM)), np.zeros((HEADS, 0, DIM))]
        self.coded = self.window = 0

    @property
    def length(self):
        return self.sides[0].shape[1]

    def append(self, keys, values):
        """Append (Hkv, n, D), one token after another."""
        for t in range(keys.shape[1]):
            if self.length >= self.config.sink_tokens:
                self.window += 1
            token = keys[:, t : t + 1], values[:, t : t + 1]
            self.sides = [np.concatenate(pair, 1) for pair in zip(self.sides, token, strict=True)]
            if self.window == self.config.residual:
                self.coded += self.config.page_size
                self.window -= self.config.page_size

    def can_crop(self, length):
        return self.books is None or not self.coded or length >= self.config.sink_tokens + self.coded

    def crop(self, length):
        self.window = max(0, length - self.config.sink_tokens - self.coded)
        self.sides = [side[:, :length] for side in self.sides]

    def attend(self, query, keys, values, scale, window=None):
        """Query (T, Hq, D) of new tokens (Hkv, T, D), which are then appended -> (T, Hq, D)."""
        seen = []
        columns = slice(self.config.sink_tokens, self.config.sink_tokens + self.coded)
        for i, new in enumerate((keys, values)):
            held = self.sides[i].copy()
            if self.books is not None:
                held[:, columns] = restored(self.books[i], held[:, columns], columns.start)
            seen.append(np.concatenate([held, new], 1))
        out, beside = np.zeros(query.shape), 0
        if self.config.window is not None:
            window, beside = self.config.window, self.config.window_sinks
        for t in range(query.shape[0]):
            last = self.length + t
            visible = [j for j in range(last + 1) if window is None or j > last - window or j < beside]
            for h in range(query.shape[1]):
                scores = seen[0][h // GROUP, visible] @ query[t, h] * scale
                mass = np.exp(scores - scores.max())
                out[t, h] = mass @ seen[1][h // GROUP, visible] / mass.sum()
        self.append(keys, values)
        return out


class NaiveCache:
    """`NaiveSequence` for every layer and sequence, with the calls of a `KVCache`."""

    def __init__(self, config, sequences, layers, books=None):
        self.config, self.books, self.num_layers = config, books, layers
        self.layers = [[self._sequence(i) for _ in range(sequences)] for i in range(layers)]

    def attend(self, layer, query, keys, values, scale, padding=None, window=None):
        out = np.zeros(query.shape)
        for b, sequence in enumerate(self.layers[layer]):
            pad = padding[b] if padding else 0
            new = [x[b, :, pad:].numpy() for x in (keys, values)]
            out[b, pad:] = sequence.attend(query[b, pad:].numpy(), *new, scale, window)
        return out

    def append(self, layer, keys, values, padding=None):
        for b, sequence in enumerate(self.layers[layer]):
            pad = padding[b] if padding else 0
            sequence.append(keys[b, :, pad:].numpy(), values[b, :, pad:].numpy())

    def crop(self, lengths):
        for layer in self.layers:
            for sequence, length in zip(layer, lengths, strict=True):
                sequence.crop(length)

    def select(self, sequences):
        self.layers = [[copy(layer[s]) for s in sequences] for layer in self.layers]

    def reset(self):
        self.layers = [[self._sequence(i) for _ in layer] for i, layer in enumerate(self.layers)]

    def _sequence(self, layer):
        books = None if self.books is None else (self.books.keys[layer], self.books.values[layer])
        return NaiveSequence(self.config, books)


class Pair:
    """A cache and its naive double, given the same tokens."""

    def __init__(self, config, *, exact=False, sequences=2, layers=1, books=None, seed=0, dtype=torch.float64):
        self.books = None if exact else books or make_books(layers)
        geometry = Geometry(sequences, HEADS, DIM, dtype, torch.device("cpu"))
        self.cache = KVCache(config, geometry, layers, self.books)
        naive_config = config.model_copy(update={"sink_tokens": 0}) if exact else config
        self.naive = NaiveCache(naive_config, sequences, layers, self.books)
        self.random = torch.Generator().manual_seed(seed)
        gains = self.books is not None and self.books.values[0].middle_gain is not None
        self.atol = 1e-6 if gains else 1e-9  # what a byte of gain stands for is a float32

    @property
    def sequences(self):
        return len(self.naive.layers[0])

    @property
    def lengths(self):
        return [[sequence.length for sequence in layer] for layer in self.naive.layers]

    def tokens(self, count):
        """Query (B, T, Hq, D), keys and values (B, Hkv, T, D)."""
        B = self.sequences
        shapes = [(B, count, HEADS * GROUP, DIM), *[(B, HEADS, count, DIM)] * 2]
        return [torch.randn(shape, generator=self.random, dtype=torch.float64) for shape in shapes]

    def append(self, count, padding=None):
        for layer in range(self.naive.num_layers):
            _, keys, values = self.tokens(count)
            self.cache.layers[layer].append(keys, values, padding)
            self.naive.append(layer, keys, values, padding)

    def attend(self, count=1, padding=None, window=None):
        """A step of all layers; its results must agree."""
        for layer in range(self.naive.num_layers):
            query, keys, values = self.tokens(count)
            out = self.cache.layers[layer].attend(query, keys, values, scale=0.7, padding=padding, window=window)
            expected = self.naive.attend(layer, query, keys, values, 0.7, padding, window)
            assert out.shape == query.shape
            for b in range(self.sequences):
                pad = padding[b] if padding else 0  # what a padding query returns is nobody's business
                np.testing.assert_allclose(out[b, pad:].numpy(), expected[b, pad:], rtol=0, atol=self.atol)
        assert [layer.lengths for layer in self.cache.layers] == self.lengths

    def probe(self):
        """What the caches hold agrees; both stay as they are."""
        twin = deepcopy(self)
        twin.cache.pool.max_pages = None  # looking takes a page at most, and must not fail for it
        twin.attend(1)

    def select(self, sequences):
        self.cache.select(sequences)
        self.naive.select(sequences)

    def crop(self, lengths):
        self.cache.crop(lengths)
        self.naive.crop(lengths)

    def fork(self, sequence):
        count = self.sequences
        assert self.cache.fork(sequence) == count
        self.naive.select([*range(count), sequence])

    def reset(self):
        self.cache.reset()
        self.naive.reset()
