"""Caches of any size made of random numbers: their codes cost what real ones cost, since every look-up is taken."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pqkv.cache import coded_len
from pqkv.config import BenchConfig
from pqkv.kernels import ExactTokens, PagedSide, PagedTokens
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
    sides = [
        _side(shape, layout, max(1, sum(used)), config, dtype, draw)
        for layout in (config.key_layout, config.value_layout)
    ]
    pages = PagedTokens(sides[0], sides[1], table, torch.tensor(coded, dtype=torch.int32), P)
    exact = [None if shape is None else _exact(part, batch, Hkv, D, dtype, draw) for part in (sinks, residual)]
    query = _normal((batch, 1, config.heads, D), dtype, draw)
    per_page = sum(side.pages[0].numel() * side.pages.element_size() for side in sides)
    books = sum(side.centroids.numel() * 4 for side in sides if side.centroids is not None)
    vector = 2 * Hkv * D * dtype.itemsize
    held = sum(coded) * per_page // P + books + (sum(sinks) + sum(residual)) * vector
    read = books
    for s, c, r in zip(sinks, coded, residual, strict=True):
        seen = s + c + r if config.window is None else min(config.window, s + c + r)
        in_residual, in_pages = min(seen, r), min(max(seen - r, 0), c)
        read += in_pages * per_page // P + (in_residual + max(seen - r - c, 0)) * vector
    return DecodeInputs(query, pages, exact[0], exact[1], held, read).to(device)


def parts_of(config: BenchConfig, n: int, shape: tuple[int, int] | None) -> tuple[int, int, int]:
    """Sinks, paged tokens and residual of a sequence of n tokens, its newest included."""
    if shape is None:
        return 0, n, 0
    sinks = min(n, config.sink_tokens)
    # the newest token is not in a page yet: what was sealed followed from the tokens before it
    coded = coded_len(n - 1, page_size=config.page_size, residual=config.residual, sink_tokens=config.sink_tokens)
    return sinks, coded, n - sinks - coded


def _side(
    shape: tuple[int, int] | None,
    layout: str,
    count: int,
    config: BenchConfig,
    dtype: torch.dtype,
    draw: torch.Generator,
) -> PagedSide:
    Hkv, D, P = config.kv_heads, config.head_dim, config.page_size
    if shape is None:
        return PagedSide(_normal((count, Hkv, P, D), dtype, draw))
    M, nbits = shape
    lines, codes = (P, M) if layout == "row" else (M, P)
    size = (count, Hkv, lines, packed_size(codes, nbits))
    centroids = _normal((Hkv, M, 2**nbits, D // M), torch.float32, draw)
    channels = torch.stack([torch.randperm(D, generator=draw, device=draw.device) for _ in range(Hkv)])
    bytes_ = torch.randint(0, 256, size, dtype=torch.uint8, generator=draw, device=draw.device)
    return PagedSide(bytes_, "row" if layout == "row" else "transposed", centroids, channels, nbits)


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
