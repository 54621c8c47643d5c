"""Recipes of `composed` as codebooks that pages and kernels serve."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pqkv.codec.catalog import CodecSpec
from pqkv.codec.codebook import Codebook, CodebookSet
from pqkv.codec.composed import Composed, ComposedOptions
from pqkv.codec.transforms import hadamard
from pqkv.errors import ConfigError


def refusal(options: ComposedOptions, side: str) -> str | None:
    """What of these options no kernel serves, or None."""
    keys = side == "keys"
    reasons = {
        "rope=pre: a score would turn every key that is read": options.rope == "pre",
        "turning_every: kernels turn with every token, which costs no more": options.turning_every > 1,
        "grouping=unequal: kernels have subspaces of one length": options.grouping == "unequal",
        "stages: kernels look up one centroid for each subspace": options.stages > 1,
        "layer_bits of 0: exact layers among coded ones": 0 in options.layer_bits,
        "gain of keys: it costs a byte and loses more than it gains": keys and options.gain,
        "mean and metric of values: they gain nothing, and a turn of values must be orthogonal": not keys
        and (options.mean != "none" or options.metric != "none"),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def served_options(spec: CodecSpec) -> dict[str, ComposedOptions]:
    """What a codec is of keys and of values. Raises `ConfigError` for one that pages and kernels do not serve."""
    found = {}
    for side, part in (("keys", spec.keys), ("values", spec.values)):
        options = part.options
        if not isinstance(options, ComposedOptions):
            raise ConfigError(
                f"{side}: {part.name} is measured and not served; pages and kernels hold codes of composed"
            )
        if problem := refusal(options, side):
            raise ConfigError(f"{side}: {problem} is measured by the lab and not served")
        found[side] = options
    return found


def served_books(
    keys: ComposedOptions, key_state: Mapping[str, Tensor], values: ComposedOptions, value_state: Mapping[str, Tensor],
    num_layers: int, *, half: bool = True,
) -> CodebookSet:  # fmt: skip
    """The codebooks of what `Composed.learn` learnt for both sides. Frames are kept in float16 where they are `half`:
    what codes stand for is made with the rounded one, by whoever restores them and by whoever looks them up.

    Raises `ConfigError` for options that are not served.
    """
    for side, options in (("keys", keys), ("values", values)):
        if problem := refusal(options, side):
            raise ConfigError(f"{side}: {problem} is measured by the lab and not served")
    sides = []
    for side, options, state in (("keys", keys, key_state), ("values", values, value_state)):
        codec = Composed(options, side, state)
        sides.append(tuple(_book(codec, layer, half) for layer in range(num_layers)))
    return CodebookSet(*sides)


def _book(codec: Composed, layer: int, half: bool) -> Codebook:
    options = codec.options
    back = codec.of_layer(layer, "back").double()
    heads, D, _ = back.shape
    parts: dict[str, Tensor] = {}
    by_hadamard = False
    if options.transform != "none" or options.metric != "none":
        by_hadamard, parts = _frame(back, half=half, orthogonal=options.metric == "none")
    elif not torch.equal(back, torch.eye(D).double().expand(heads, D, D)):
        parts = {"channels": _order(back)}
    if options.gain:
        parts["middle_gain"] = codec.of_layer(layer, "middle_gain").float()
    frequencies: tuple[float, ...] = ()
    if options.mean != "none":
        mean, turning, frequencies = _means(codec, layer)
        parts |= mean | turning
    if options.scope == "universal":
        parts["centroids"] = codec.universal_centroids(layer, D)
    else:
        parts["centroids"] = codec.of_layer(layer, "centroids")
        if options.centroids == "int8":
            parts["scales"] = codec.of_layer(layer, "scales")
    if "channels" in parts:  # each head has its own order, and with it a codebook, if of the same centroids
        for name in {"centroids", "scales"} & parts.keys():
            parts[name] = parts[name].expand(heads, *parts[name].shape[1:])
    return Codebook(**parts, frequencies=frequencies, hadamard=by_hadamard)


def _frame(back: Tensor, *, half: bool, orthogonal: bool) -> tuple[bool, dict[str, Tensor]]:
    """F and its inverse (Hkv, D, D), or whether F is the Hadamard matrix, with the order of its rows."""
    D = back.shape[-1]
    rows = (back.mT @ hadamard(D)).round(decimals=4)  # F H, of an orthogonal F: an order of channels, if it is one of H
    if torch.equal(rows.abs().sum(-1), torch.ones_like(rows[..., 0])) and bool((rows.amax(-1) == 1).all()):
        order = rows.argmax(-1)
        natural = torch.equal(order, torch.arange(D).expand_as(order))
        return True, {} if natural else {"channels": order}
    dtype = torch.float16 if half else torch.float32
    kept = back.to(dtype)
    inverse = (
        kept.mT.clone(memory_format=torch.contiguous_format)
        if orthogonal
        else torch.linalg.inv(kept.double()).to(dtype)
    )
    return False, {"frame": inverse, "back": kept}


def _order(back: Tensor) -> Tensor:
    """(H, D): which channel stands where, of the inverse of a permutation."""
    return back.argmax(-2)


def _means(codec: Composed, layer: int) -> tuple[dict[str, Tensor], dict[str, Tensor], tuple[float, ...]]:
    """`mean` and `turning` of a codebook, as far as they are not 0, with the frequencies."""
    constant, turning = codec.of_layer(layer, "mean").float(), codec.of_layer(layer, "turning_mean").float()
    frequencies = codec.of_layer(layer, "frequencies")
    R = 2 * len(frequencies)
    constant = torch.cat([constant[:, :R], constant[:, R:] + turning[:, R:]], -1)  # what has no pair does not turn
    found: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}
    if constant.any():
        found[0]["mean"] = constant
    if not turning[:, :R].any():
        return *found, ()
    found[1]["turning"] = turning[:, :R].contiguous()
    return *found, tuple(frequencies.tolist())
