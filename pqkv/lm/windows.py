"""Sliding windows that hide nothing: as long as a model's positions, or as what is attended to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pqkv.lm.positions import position_limit

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig


def effective_window(config: PreTrainedConfig, window: int | None) -> int | None:
    """`window`, or None where it is as long as all positions of the model: full attention by another name."""
    return None if window is None or window >= position_limit(config) else window


def causal_mask(
    *,
    kv_length: int,
    local_size: int | None = None,
    **given: Any,  # noqa: ANN401 - handed on to transformers, whose they are
) -> Tensor | None:
    """`sdpa_mask` of transformers, which writes a mask out as soon as `kv_length` reaches a window of `local_size`. One
    that holds all `kv_length` columns hides none of them: there the mask is None where it would be without a window.
    """
    from transformers.masking_utils import sdpa_mask

    hides = local_size is not None and kv_length > local_size
    mask: Tensor | None = sdpa_mask(kv_length=kv_length, local_size=local_size if hides else None, **given)
    return mask
