"""The cache of a whole model: one pool, one table, a layer each, for a batch of sequences."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from pqkv.cache.coded import CodedLayer
from pqkv.cache.exact import PagedExactLayer
from pqkv.cache.layer import Geometry, Layer
from pqkv.cache.pool import PagePool
from pqkv.cache.restored import RestoredStore
from pqkv.cache.store import CodeSide, CodeStore, ContiguousCodeStore, PagedCodeStore
from pqkv.cache.table import PageTable
from pqkv.cache.turns import CodedQueries, ValueTurn
from pqkv.codec import Codebook, CodebookSet
from pqkv.codec.interface import Codec
from pqkv.config import CacheConfig
from pqkv.errors import CacheError
from pqkv.kernels import AttentionBackend, ChosenBackend, choose_backend

_log = logging.getLogger("pqkv")
_GIVEN = "given"  # a backend that the caller brought


@dataclass(frozen=True, slots=True)
class CacheMemory:
    """Bytes part by part. `pages` holds codes, or exact vectors in an exact cache, page slack included and pages that
    several sequences share once. `derived` is what backends made of the codebooks to be faster: not in `total`.
    """

    pages: int
    residual: int
    sinks: int
    tables: int
    codebooks: int
    spare: int = 0  # pages, or slack of contiguous rows, that wait for tokens: in `allocated`, not in `total`
    derived: int = 0

    @property
    def total(self) -> int:
        """All that is in use."""
        return self.pages + self.residual + self.sinks + self.tables + self.codebooks

    @property
    def allocated(self) -> int:
        """All that memory was taken for: what is in use, what waits for tokens, what backends made for themselves."""
        return self.total + self.spare + self.derived


class KVCache:
    """Keys and values of `num_layers` layers. With codebooks they are coded, without they are exact (paged). With any
    other codec they are what it restores, for measuring: see `RestoredStore`.

    Not tied to a model library: `layers[i].attend(query, keys, values, scale=...)` is all a model needs.
    """

    def __init__(
        self,
        config: CacheConfig,
        geometry: Geometry,
        num_layers: int,
        codebooks: CodebookSet | Codec | None = None,
        backend: AttentionBackend | None = None,
    ) -> None:
        if isinstance(codebooks, CodebookSet) and codebooks.num_layers != num_layers:
            raise CacheError(f"codebooks for {codebooks.num_layers} layers cannot serve {num_layers} layers")
        if isinstance(codebooks, Codec) and not config.paged:
            raise CacheError("a codec is measured on pages; use paged=True")
        if codebooks is None and not config.paged:
            raise CacheError("a contiguous exact cache is transformers' own DynamicCache; use paged=True or codebooks")
        self.config, self.geometry = config, geometry
        self.pool = PagePool(config.max_pages)
        self.table = PageTable(self.pool, geometry.num_sequences)
        self.codebooks = codebooks
        self.backend = (
            ChosenBackend(_GIVEN, backend)
            if backend is not None
            else choose_backend(
                config.backend, geometry.device, geometry.dtype, head_dim=geometry.head_dim, fallback=config.fallback
            )
        )
        if self.backend.note:
            _log.warning(self.backend.note)
        self.layers: list[Layer] = [self._layer(i, self.backend.run, geometry) for i in range(num_layers)]

    def fork(self, sequence: int) -> int:
        """Append a sequence that continues from `sequence`, sharing its sealed pages; returns its index."""
        count = len(self.layers[0].lengths)
        if not 0 <= sequence < count:
            raise CacheError(f"cannot fork sequence {sequence} of {count}")
        self.select([*range(count), sequence])
        return count

    def select(self, sequences: Sequence[int]) -> None:
        """Make sequence i what sequences[i] was: beams, forks, batch changes. Pages move once, in the table."""
        self._release()
        self.table.select(sequences)
        for layer in self.layers:
            layer.select(sequences)

    def crop(self, lengths: Sequence[int]) -> None:
        """Keep the first `lengths[b]` tokens of sequence b; raises `CacheError`, with nothing changed, where that
        would open a sealed page.
        """
        for layer in self.layers:
            layer.check_crop(lengths)
        for layer in self.layers:
            layer.crop(lengths)
        self._release()

    def reset(self) -> None:
        """Forget every token and release every page."""
        self.table.clear()
        for layer in self.layers:
            layer.reset()

    def memory(self) -> CacheMemory:
        """Bytes in use now: pages with content, exact parts as allocated, table entries, codebooks."""
        exact = [layer.exact_bytes() for layer in self.layers]
        pages = [layer.page_bytes() for layer in self.layers]
        return CacheMemory(
            pages=sum(used for used, _ in pages),
            residual=sum(residual for residual, _ in exact),
            sinks=sum(sinks for _, sinks in exact),
            tables=self.table.nbytes(),
            codebooks=self._fixed_bytes(),
            spare=sum(spare for _, spare in pages),
            derived=sum(layer.derived_bytes() for layer in self.layers),
        )

    def _fixed_bytes(self) -> int:
        if isinstance(self.codebooks, Codec):
            return self.codebooks.fixed_bytes()
        return self.codebooks.nbytes() if self.codebooks else 0

    def use(self, backend: ChosenBackend) -> None:
        """Attend with another backend from now on."""
        self.backend = backend
        for layer in self.layers:
            layer.backend = backend.run

    def place(self, index: int, device: torch.device) -> Layer:
        """Layer `index`, moved to `device` while it is empty: a model may be spread over several."""
        layer = self.layers[index]
        if layer.geometry.device != device:
            if any(layer.lengths):
                raise CacheError(f"layer {index} holds tokens on {layer.geometry.device}, the model brought {device}")
            geometry = replace(self.geometry, num_sequences=len(layer.lengths), device=device)
            chosen = self.backend
            if chosen.name != _GIVEN:
                chosen = choose_backend(
                    self.config.backend, device, geometry.dtype, head_dim=geometry.head_dim,
                    fallback=self.config.fallback,
                )  # fmt: skip
            if chosen.note and chosen.note != self.backend.note:
                _log.warning(chosen.note)
            observer = layer.observer
            layer = self.layers[index] = self._layer(index, chosen.run, geometry)
            layer.observer = observer
        return layer

    def _release(self) -> None:
        """Give back pages that no layer's tokens take: cropped ones, and those a step that failed had reserved. Two
        sequences must never share a page that is still to be sealed.
        """
        if self.config.paged:
            counts = zip(*(layer.page_counts() for layer in self.layers), strict=True)
            self.table.truncate([max(count) for count in counts])

    def _advance(self) -> None:
        """Give back pages that are behind the window of every layer: they advance one after another."""
        self.table.drop([min(firsts) for firsts in zip(*(layer.first_pages() for layer in self.layers), strict=True)])

    def _layer(self, index: int, backend: AttentionBackend, geometry: Geometry) -> Layer:
        if self.codebooks is None:
            return PagedExactLayer(self.table, self.config, geometry, backend, self._copy_page, self._advance)
        if isinstance(self.codebooks, Codec):
            restored = RestoredStore(self.table, self.codebooks, index, self.config, geometry)
            return CodedLayer(restored, self.config, geometry, backend, advanced=self._advance)
        keys, values = (
            book.map(lambda t: t.to(geometry.device))
            for book in (self.codebooks.keys[index], self.codebooks.values[index])
        )
        queries = CodedQueries.of(keys, self.config.sink_tokens, geometry.num_kv_heads, geometry.device)
        turn = ValueTurn.of(values, geometry.device)
        store = self._store(index, (keys, values.without_turn()), geometry)
        return CodedLayer(store, self.config, geometry, backend, queries, turn, self._advance)

    def _store(self, index: int, books: tuple[Codebook, Codebook], g: Geometry) -> CodeStore:
        c = self.config
        for book in books:
            heads = book.heads
            if book.head_dim != g.head_dim or heads not in (1, g.num_kv_heads):
                raise CacheError(
                    f"layer {index}: codebook for {heads} heads of {book.head_dim} elements "
                    f"cannot serve {g.num_kv_heads} KV heads of {g.head_dim}"
                )
        layouts = (c.key_layout, c.value_layout) if c.paged else ("row", "row")
        keys, values = (
            CodeSide(book, layout, g.num_kv_heads, c.page_size, g.device, c.sink_tokens)
            for book, layout in zip(books, layouts, strict=True)
        )
        if c.paged:
            return PagedCodeStore(self.table, keys, values)
        return ContiguousCodeStore(g.num_sequences, keys, values)

    def _copy_page(self, old: int, new: int) -> None:
        for layer in self.layers:
            assert isinstance(layer, PagedExactLayer)
            layer.copy_page(old, new)
