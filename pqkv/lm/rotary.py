"""The rotary embedding of every coded layer, held to the keys that the model itself makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pqkv.codec.rotary import Rotary
from pqkv.errors import ModelError
from pqkv.lm.capture import capture
from pqkv.lm.model import LanguageModel

_TOKENS, _AHEAD = 8, 37  # a short text, told to stand at 0 and so far ahead
_ROUNDINGS = 32  # of the type, as a part of keys' length: float32 leaves 2, a wrong pair all of it


def layer_rotaries(lm: LanguageModel) -> tuple[Rotary, ...]:
    """What positions do to the keys of each coded layer.

    The same tokens are run at two places. Attention sees distances only, so keys before rotary embedding are the same
    at both, and those after it show whether it is understood: turned back they must be equal. Layers whose keys do not
    change have no rotary embedding (SmolLM3 has some). Raises `ModelError` for a layer that is neither.
    """
    ids = np.random.default_rng(0).integers(1, lm.embedding_rows, (1, _TOKENS))
    here, ahead = (capture(lm, ids, _TOKENS, 0, starts=np.array([start])) for start in (0, _AHEAD))
    known = [Rotary(torch.empty(0).double()), *_frequencies(lm)]
    close = _ROUNDINGS * max(torch.finfo(dtype).eps for dtype in (lm.dtype, torch.float32))  # samples are float32
    found = []
    for layer, before, after in zip(lm.coded_layers, here.keys, ahead.keys, strict=True):
        fitting = (rotary for rotary in known if _apart(rotary, before, after) < close)
        rotary = next(fitting, None)
        if rotary is None:
            raise ModelError(
                f"the rotary embedding of {lm.name}'s layer {layer} is not one that codecs can take off keys (pairs of "
                "channels half a head apart): take a codec that does not look at positions"
            )
        found.append(rotary)
    return tuple(found)


def _frequencies(lm: LanguageModel) -> list[Rotary]:
    """Every set of inverse frequencies that the model keeps."""
    decoder: Any = lm.model.get_decoder()  # type: ignore[operator] # of PreTrainedModel
    kept = [
        buffer
        for module in decoder.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name.endswith("inv_freq") and "original" not in name
    ]
    return [Rotary(buffer.detach().double().cpu()) for buffer in kept]


def _apart(rotary: Rotary, before: Tensor, after: Tensor) -> float:
    """How far keys are from what they were before they moved ahead, over their length."""
    if 2 * rotary.pairs > before.shape[-1]:
        return torch.inf
    taken_off = rotary.take_off(after.double(), torch.full((after.shape[1],), _AHEAD))
    return float((taken_off - before).norm() / before.norm())
