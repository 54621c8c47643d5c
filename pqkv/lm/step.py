"""One forward of a transformers model on a cache, and the proof that the model used it."""

from __future__ import annotations

import inspect
from copy import copy
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pqkv.errors import CacheError
from pqkv.lm.plugin import Attended

if TYPE_CHECKING:
    from transformers import Cache


def cache_argument(model: nn.Module, cache: Cache | None) -> dict[str, Any]:
    """`cache` under the keyword by which the forward of `model`, and its `generate`, take one: `cache` from
    transformers 5.24 on, `past_key_values` before.
    """
    for forward in (model.forward, type(model).forward):  # a forward that was wrapped may not say what it takes
        names = inspect.signature(forward).parameters
        for name in ("cache", "past_key_values"):
            if name in names:
                return {name: cache}
    return {"cache": cache}


def forward(model: nn.Module, ids: Tensor, cache: Cache | None = None, **more: Any) -> Any:  # noqa: ANN401 - transformers' own
    """`model` on ids (B, T), a step on `cache` where there is one; returns transformers' output.

    Raises `CacheError` unless every layer that a pqkv cache codes attended through it exactly once: a forward that
    ignores its cache would give the figures of one that costs nothing.
    """
    attended: Attended | None = getattr(cache, "attended", None)
    before = copy(attended)
    out = model(input_ids=ids, use_cache=cache is not None, **cache_argument(model, cache), **more)
    if attended is not None and before is not None:
        calls, layers = attended.calls - before.calls, len(cache.coded_layers)  # type: ignore[union-attr] # has both
        if calls != layers:
            raise CacheError(
                f"the forward of {type(model).__name__} attended {calls} times through the cache it was given, not "
                f"once in each of its {layers} coded layers: no figure of it would be the cache's; "
                "check that pqkv serves this version of transformers (pqkv env) and that the model's code is its own"
            )
    return out
