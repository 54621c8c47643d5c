"""What each part of the composed codec would cost where it is served: bytes a token, bytes fixed, operations.

Operations are multiply-adds (or look-ups with an add) of one query head in one decoding step, as the formulas of
attention on codes have them: scores are gain * look-ups(F^-T q) + q . mean + bias(position), outputs F^-1 of the sum of
weighted centroids. `per_token` grows with the context, `per_step` does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pqkv.codec.composed import ComposedOptions
from pqkv.codec.geometry import code_geometry
from pqkv.codec.interface import Side
from pqkv.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one part: bytes a token and KV head, bytes fixed a layer and KV head, operations a query head."""

    part: str
    bytes_per_token: float
    fixed_bytes: int
    per_token: float
    per_step: int


def costs(options: ComposedOptions, side: Side, head_dim: int) -> list[Cost]:
    """Every part that the options turn on, for heads of `head_dim`. Raises `ConfigError` for what nobody would serve:
    keys as they are before rotary embedding would have to be turned one by one.
    """
    if options.rope == "pre" and side == "keys":
        raise ConfigError("keys before rotary embedding cannot be looked up: every one would have to be turned first")
    shape = options.shape(0)
    if shape is None:
        raise ConfigError("layer 0 is exact: its costs are those of exact vectors")
    D = head_dim
    M, nbits = code_geometry(shape, D)
    found = [Cost("codes", M * nbits / 8, _centroid_bytes(options, D, 2**nbits), M, D * 2**nbits)]
    if options.mean == "constant" or options.turning_pairs is not None:
        found.append(Cost("constant mean", 0, 4 * D, 0, D))  # the output, or the score, gets it once
    if options.mean == "turning":
        pairs = min(options.turning_pairs or D // 2, D // 2)
        found.append(Cost("mean that turns", 0, 8 * pairs, pairs / options.turning_every, 4 * pairs))
    if options.gain:
        found.append(Cost("gain", 1, 4, 1, 0))
    if options.transform == "hadamard" and options.metric == "none":
        found.append(Cost("Hadamard matrix", 0, 0, 0, D * int(math.log2(D & -D))))
    elif options.transform != "none" or options.metric == "full":
        found.append(Cost("frame", 0, 4 * D * D, 0, D * D))
    elif options.metric == "diagonal":
        found.append(Cost("weights", 0, 4 * D, 0, D))
    return found


def _centroid_bytes(options: ComposedOptions, head_dim: int, count: int) -> int:
    if options.scope == "universal":
        return 0  # one for all layers and heads
    return count * head_dim * 4 if options.centroids == "float32" else count * head_dim + 4 * head_dim
