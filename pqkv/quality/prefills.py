"""Caches after a prefill, kept so that several backends can decode on from the very same one."""

from __future__ import annotations

import copy

from torch import Tensor

from pqkv.codec import CodebookSet
from pqkv.codec.interface import Codec
from pqkv.config import CacheConfig
from pqkv.kernels import ChosenBackend
from pqkv.lm import LanguageModel, PQKVCache, attach


def prefill(lm: LanguageModel, ids: Tensor, books: CodebookSet | Codec | None, config: CacheConfig) -> PQKVCache:
    """A cache that holds ids (B, T), taken in one step: exact attention among themselves, as a prefill does it."""
    attach(lm.model)
    cache = PQKVCache(lm.model.config, books, config)
    lm.states(ids, cache, newest=1)
    return cache


class Prefills:
    """Prefilled caches of the newest context that was asked for. Where they are kept, each call returns a copy."""

    def __init__(self, *, keep: bool) -> None:
        self._keep = keep
        self._kept: dict[tuple[bytes, str, str], PQKVCache] = {}
        self._length = 0

    def clear(self) -> None:
        """Keep nothing of what was asked for so far."""
        self._kept = {}

    def __call__(
        self,
        lm: LanguageModel,
        ids: Tensor,
        books: CodebookSet | Codec | None,
        config: CacheConfig,
        backend: ChosenBackend,
        coding: str,
    ) -> PQKVCache:
        """The cache of ids (B, T) under `config` and `books`, which `coding` names, to decode on with `backend`."""
        if ids.shape[1] != self._length:
            self._kept, self._length = {}, ids.shape[1]
        # a prefill asks no backend: the caches of all of them are the same
        neutral = config.model_copy(update={"backend": "auto"})
        key = (ids.cpu().numpy().tobytes(), coding, neutral.digest())
        found = self._kept.get(key)
        if found is None:
            found = prefill(lm, ids, books, neutral)
            if self._keep:
                self._kept[key] = found
        if self._keep:
            found = copy.deepcopy(found)
        assert found.kv is not None
        found.kv.use(backend)
        return found
