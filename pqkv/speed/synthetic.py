"""Caches of any size made of random numbers: their codes cost what real ones cost, since every look-up is taken."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pqkv.cache import coded_len
from pqkv.cache.turns import CodedQueries, ValueTurn
from pqkv.codec import Codebook
from pqkv.config import BenchConfig
from pqkv.kernels import AttentionBackend, ExactTokens, PagedSide, PagedTokens
from pqkv.packing import packed_size

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """What a backend gets in one decoding step, the bytes that hold it, and those of them a step has to read."""

    query: Tensor
    pages: PagedTokens
    sinks: ExactTokens | None
    residual: ExactTokens | None
    nbytes: int
    read: int
    queries: CodedQueries | None = None
    turn: ValueTurn | None = None

    def step(self, backend: AttentionBackend, scale: float, window: int | None) -> tuple[Tensor, Tensor]:
        """One decoding step as a cache takes it, with the query that codes meet and the turn of what comes out."""
        pages = self.pages
        if self.queries is not None:
            pages = replace(pages, query=self.queries(self.query))
        out, lse = backend(self.query, pages, self.sinks, self.residual, scale=scale, window=window)
        return (out if self.turn is None else self.turn.undo(out, pages.keys.pages.shape[1])), lse

    def to(self, device: torch.device) -> DecodeInputs:
        """On another device. Ids and lengths were made here, so a backend there need not look at them again."""
        pages = replace(self.pages.to(device), trusted=True)
        sinks, residual = (None if part is None else part.to(device) for part in (self.sinks, self.residual))
        return replace(self, query=self.query.to(device), pages=pages, sinks=sinks, residual=residual)


def lengths_of(batch: int, context: int, ragged: bool) -> list[int]:
    """Tokens of each sequence: all `context`, or ragged ones from an eighth of it up to it."""
    if not ragged or batch == 1:
        return [context] * batch
    return [max(1, round(context * (1 + 7 * i / (batch - 1)) / 8)) for i in range(batch)]


def decode_inputs(
    config: BenchConfig,
    context: int,
    batch: int,
    shape: tuple[int, int] | None,
    seed: int,
    device: torch.device = _CPU,
) -> DecodeInputs:
    """A cache of `context` tokens a sequence, as `config` schedules them; shape (M, nbits), None for exact pages. Drawn
    where it is used: a processor takes minutes to draw what fills a GPU.
    """
    draw = torch.Generator(device).manual_seed(seed)
    dtype = getattr(torch, config.dtype)
    Hkv, D, P = config.kv_heads, config.head_dim, config.page_size
    lengths = lengths_of(batch, context, config.ragged)
    sinks, coded, residual = ([parts[i] for parts in (parts_of(config, n, shape) for n in lengths)] for i in range(3))
    used = [-(-n // P) for n in coded]
    ids = torch.randperm(sum(used), generator=draw, device=device).to("cpu", torch.int32)
    table = torch.full((batch, max(1, *used)), -1, dtype=torch.int32)
    for row, own in zip(table, ids.split(used), strict=True):
        row[: len(own)] = own
    queries = turn = None
    if shape is None:
        sides = [PagedSide(_normal((max(1, sum(used)), Hkv, P, D), dtype, draw)) for _ in range(2)]
        books = 0
    else:
        own = key_book(config, shape, draw), value_book(config, shape, draw)
        layouts = (config.key_layout, config.value_layout)
        sides = [
            _side(book, layout, max(1, sum(used)), config, draw) for book, layout in zip(own, layouts, strict=True)
        ]
        queries, turn = CodedQueries.of(own[0], config.sink_tokens, Hkv, device), ValueTurn.of(own[1], device)
        books = sum(book.nbytes() for book in own)
    pages = PagedTokens(sides[0], sides[1], table, torch.tensor(coded, dtype=torch.int32), P)
    exact = [None if shape is None else _exact(part, batch, Hkv, D, dtype, draw) for part in (sinks, residual)]
    query = _normal((batch, 1, config.heads, D), dtype, draw)
    if queries is not None:
        pages = replace(pages, query=queries(query))
    per_page = sum(side.pages[0].numel() * side.pages.element_size() for side in sides)
    per_page += sum(side.gains[0].numel() for side in sides if side.gains is not None)
    vector = 2 * Hkv * D * dtype.itemsize
    held = sum(coded) * per_page // P + books + (sum(sinks) + sum(residual)) * vector
    read = books
    for s, c, r in zip(sinks, coded, residual, strict=True):
        seen = s + c + r if config.window is None else min(config.window, s + c + r)
        in_residual, in_pages = min(seen, r), min(max(seen - r, 0), c)
        read += in_pages * per_page // P + (in_residual + max(seen - r - c, 0)) * vector
    made = DecodeInputs(query, pages, exact[0], exact[1], held, read, queries, turn).to(device)
    for side in (made.pages.keys, made.pages.values):
        if side.centroids is not None:
            side.float_centroids()  # what a cache makes once is no part of a step
    return made


def parts_of(config: BenchConfig, n: int, shape: tuple[int, int] | None) -> tuple[int, int, int]:
    """Sinks, paged tokens and residual of a sequence of n tokens, its newest included."""
    if shape is None:
        return 0, n, 0
    sinks = min(n, config.sink_tokens)
    # the newest token is not in a page yet: what was sealed followed from the tokens before it
    coded = coded_len(n - 1, page_size=config.page_size, residual=config.residual, sink_tokens=config.sink_tokens)
    return sinks, coded, n - sinks - coded


def key_book(config: BenchConfig, shape: tuple[int, int], draw: torch.Generator) -> Codebook:
    """A codebook of random numbers with what `config` says is served."""
    Hkv, D = config.kv_heads, config.head_dim
    parts = _centroids((Hkv, shape[0], 2 ** shape[1], D // shape[0]), config, draw)
    frequencies: tuple[float, ...] = ()
    if "frame" in config.served:
        parts["back"] = (_normal((Hkv, D, D), torch.float32, draw) / D**0.5).half()  # lengths stay
        parts["frame"] = parts["back"]  # nothing is encoded: its bytes count
    else:
        parts["channels"] = _orders(Hkv, D, draw)
    if "turning" in config.served:
        frequencies = tuple((1e-5 ** (torch.arange(D // 2).double() / (D // 2))).tolist())
        parts["turning"] = _normal((Hkv, 2 * len(frequencies)), torch.float32, draw)
    return Codebook(
        parts["centroids"],
        parts.get("channels"),
        scales=parts.get("scales"),
        frame=parts.get("frame"),
        back=parts.get("back"),
        turning=parts.get("turning"),
        frequencies=frequencies,
    )


def value_book(config: BenchConfig, shape: tuple[int, int], draw: torch.Generator) -> Codebook:
    """The same for values."""
    Hkv, (M, nbits), d_sub = config.kv_heads, shape, config.head_dim // shape[0]
    universal = "universal" in config.served
    if universal:
        one = _normal((2**nbits, d_sub), torch.float32, draw)
        parts = {"centroids": one.expand(1, M, *one.shape)}
    else:
        parts = _centroids((Hkv, M, 2**nbits, d_sub), config, draw)
    if "gains" in config.served:
        parts["middle_gain"] = torch.zeros(Hkv, device=draw.device)
    if "hadamard" not in config.served and not universal:
        parts["channels"] = _orders(Hkv, config.head_dim, draw)
    return Codebook(
        parts["centroids"],
        parts.get("channels"),
        scales=parts.get("scales"),
        middle_gain=parts.get("middle_gain"),
        hadamard="hadamard" in config.served,
    )


def _centroids(shape: tuple[int, ...], config: BenchConfig, draw: torch.Generator) -> dict[str, Tensor]:
    centroids = _normal(shape, torch.float32, draw)
    if "int8" not in config.served:
        return {"centroids": centroids}
    scales = centroids.abs().amax(2) / 127
    return {"centroids": (centroids / scales[:, :, None]).round().to(torch.int8), "scales": scales}


def _orders(heads: int, head_dim: int, draw: torch.Generator) -> Tensor:
    return torch.stack([torch.randperm(head_dim, generator=draw, device=draw.device) for _ in range(heads)])


def _side(book: Codebook, layout: str, count: int, config: BenchConfig, draw: torch.Generator) -> PagedSide:
    """Pages of random codes."""
    Hkv, P, M = config.kv_heads, config.page_size, book.num_subspaces
    lines, codes = (P, M) if layout == "row" else (M, P)
    size = (count, Hkv, lines, packed_size(codes, book.nbits))
    drawn = torch.randint(0, 256, size, dtype=torch.uint8, generator=draw, device=draw.device)
    gains = gain_values = None
    if book.middle_gain is not None:
        gains = torch.randint(96, 160, (count, Hkv, P), dtype=torch.uint8, generator=draw, device=draw.device)
        gain_values = book.gain_of(torch.arange(256, device=draw.device).expand(Hkv, -1)).contiguous()
    return PagedSide(
        drawn, "row" if layout == "row" else "transposed", book.centroids, book.channels, book.nbits, book.scales,
        gains, gain_values,
    )  # fmt: skip


def _exact(
    lengths: list[int], batch: int, Hkv: int, D: int, dtype: torch.dtype, draw: torch.Generator
) -> ExactTokens | None:
    capacity = max(lengths)
    if not capacity:
        return None
    keys, values = (_normal((batch, Hkv, capacity, D), dtype, draw) for _ in range(2))
    return ExactTokens(keys, values, torch.tensor(lengths, dtype=torch.int32))


def _normal(shape: tuple[int, ...], dtype: torch.dtype, draw: torch.Generator) -> Tensor:
    """Numbers of N(0, 1) on the generator's device. A GPU draws them in `dtype`: in float32 they would take twice the
    memory for a moment.
    """
    drawn = dtype if draw.device.type == "cuda" else torch.float32
    return torch.randn(shape, generator=draw, dtype=drawn, device=draw.device).to(dtype)
