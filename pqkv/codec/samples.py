"""What codecs learn from: vectors of calibration text, where they stood, and what meets them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pqkv.codec.rotary import Rotary


@dataclass(frozen=True, slots=True)
class Samples:
    """Post-RoPE keys and values per coded layer, each (Hkv, N, D) float32, as a cache would be given them, and the root
    mean square of the queries that meet each KV head, (Hkv, D) per layer.

    What only some codecs ask for is None unless it was captured: `positions` (N,) of the sampled tokens and the layers'
    `rotary`; `query_moments` (Hkv, D, D), the mean of q q^T over tokens and the query heads of a group; `outputs`
    (Hkv, D, D), the sum over the group of W^T W with W the output projection of a head, so that e^T W^T W e is what an
    error e of a value does to the layer's output; `key_gradients` and `value_gradients` (Hkv, N, D), gradients of the
    text's negative log-likelihood by these keys and values. They have their signs: squared they are the diagonal of the
    empirical Fisher information, in the frame in which they are squared, so rotary embedding is taken off before.
    """

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    queries: tuple[Tensor, ...]
    positions: Tensor | None = None
    rotary: tuple[Rotary, ...] | None = None
    query_moments: tuple[Tensor, ...] | None = None
    outputs: tuple[Tensor, ...] | None = None
    key_gradients: tuple[Tensor, ...] | None = None
    value_gradients: tuple[Tensor, ...] | None = None

    def of(self, side: str) -> Sequence[Tensor]:
        """Vectors of `keys` or `values`."""
        return self.keys if side == "keys" else self.values

    def metric(self, side: str) -> tuple[Tensor, ...] | None:
        """What an error of this side costs, (Hkv, D, D) per layer: e^T A e."""
        return self.query_moments if side == "keys" else self.outputs
