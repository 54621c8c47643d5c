"""The one place where pqkv meets transformers' attention.

transformers gives an attention function no cache, only what the cache layer's `update` returned. So every layer of
pqkv returns a `View` as key and as value, and the attention function lets the view attend. A view records, decodes or
reads pages: the model does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from pqkv.cache.window import Window
from pqkv.errors import CacheError
from pqkv.lm.windows import causal_mask, effective_window

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "pqkv"


@dataclass(slots=True)
class Attended:
    """What the views of one cache did: `calls` of `attend` (one a coded layer and step), and of the columns that the
    query rows of these calls saw, how many there were and how many were `coded_columns`.

    transformers' forwards swallow keywords they do not know. A model that ignores its cache leaves `calls` at 0, and
    its figures would be those of a cache that costs nothing.
    """

    calls: int = 0
    columns: int = 0
    coded_columns: int = 0

    def saw(
        self,
        before: Sequence[int],
        coded: Sequence[int],
        rows: Sequence[int],
        window: Window | None = None,
        first_coded: int = 0,
    ) -> None:
        """Sequence b had `before[b]` tokens cached, `coded[b]` of them as codes, `first_coded` the first of these, and
        brought `rows[b]` causal rows.
        """
        for n, c, t in zip(before, coded, rows, strict=True):
            if window is None:
                self.columns += t * n + t * (t + 1) // 2
                self.coded_columns += t * c
            else:
                self.columns += sum(window.seen(row, 0, row + 1) for row in range(n, n + t))
                self.coded_columns += sum(window.seen(row, first_coded, first_coded + c) for row in range(n, n + t))

    def add(self, other: Attended) -> None:
        """Count what another one counted."""
        self.calls += other.calls
        self.columns += other.columns
        self.coded_columns += other.coded_columns

    def __sub__(self, earlier: Attended) -> Attended:
        return Attended(
            self.calls - earlier.calls, self.columns - earlier.columns, self.coded_columns - earlier.coded_columns
        )


class View:
    """What `update` hands to the attention function in place of key and value tensors. Every attention through it
    counts in `attended`, which the cache it came from shares with all its views.
    """

    def __init__(self, attended: Attended) -> None:
        self.attended = attended

    def attend(
        self, module: nn.Module, query: Tensor, mask: Tensor | None, *, scale: float, window: int | None
    ) -> Tensor:
        """Attention of query (B, Hq, T, D) -> (B, T, Hq, D); mask as `sdpa_mask` makes it, None is plain causal."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> NoReturn:
        # reached when another attention function takes a view for a tensor; AttributeError would hide the cause
        if name.startswith("__"):
            raise AttributeError(name)
        raise CacheError(
            "a pqkv cache was used under another attention implementation; call pqkv.lm.attach(model) first"
        )


def attach(model: PreTrainedModel) -> None:
    """Make `model` able to run on pqkv caches; it still runs on any other cache as under sdpa.

    Raises `ModelError` for families whose attention was not checked.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    from pqkv.lm.families import check_family

    check_family(type(model).__name__, model.config)
    # without a registered mask function the mask would silently be None
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, causal_mask)
    model.set_attn_implementation(ATTENTION)


def exact_attention(
    module: nn.Module, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """transformers' own sdpa attention: (B, Hq, T, D) -> (B, T, Hq, D)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    out: Tensor = sdpa_attention_forward(module, query, keys, values, mask, scaling=scale)[0]
    return out


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor | View,
    value: Tensor | View,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,  # noqa: ANN401 - handed on to transformers, whose they are
) -> tuple[Tensor, None]:
    if isinstance(key, View):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return _through_view(key, module, query, attention_mask, scale, sliding_window), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


@torch.compiler.disable
def _through_view(
    view: View, module: nn.Module, query: Tensor, mask: Tensor | None, scale: float, sliding_window: int | None
) -> Tensor:
    """What is compiled ends before it and goes on after it: pages change in place, kernels are not torch's."""
    window = effective_window(module.config, sliding_window)
    out = view.attend(module, query, mask, scale=scale, window=window)
    view.attended.calls += 1
    return out
