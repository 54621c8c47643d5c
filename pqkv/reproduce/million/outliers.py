"""Part a of `million`: outliers. Keys and values of the model with one channel made larger, or single tokens; what
MILLION's codes and integers of 4 bits leave of the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from math import gcd
from typing import Any

import torch
from torch import Tensor

from pqkv.codec.interface import SideCodec
from pqkv.codec.peers.integer import Integer, IntegerOptions
from pqkv.codec.peers.kivi import Kivi, KiviOptions
from pqkv.codec.peers.million import Million, MillionOptions
from pqkv.codec.planes import pack_planes
from pqkv.codec.samples import Samples
from pqkv.record import Record
from pqkv.reproduce.million.lab import CLAIMED_BITS, MILLION, Lab
from pqkv.reproduce.tables import Row, claim, newest, table_rows

OUTLIERS = "million-outliers"
CHANNEL, TOKEN = "channel", "token"
PRODUCT, BY_TOKEN, KIVI = "MILLION's codes", "int4 a token", "KIVI at 4 bits"
_APART = 64  # tokens from one that is larger to the next: no two in a group of tokens that share a scale
THEIRS = "handles outliers better than uniform quantization"


def outlier_part(lab: Lab) -> Iterator[Record]:
    """A channel of every head made larger, in what is calibrated with too; tokens made larger, which it never saw."""
    s, dim = lab.settings, lab.lm.head_dim
    training = lab.training(MILLION, (CLAIMED_BITS * dim // 8, 8))
    for scale in s.outlier_scales:
        config = {**lab.about(training), "part": "a", "outlier": scale, "channel": dim // 2}
        lab.request.report(f"a: outliers of {scale:g} times", 0, 1)
        yield lab.cell(OUTLIERS, config, partial(_measure, lab, config))


def outlier_rows(records: Sequence[Record]) -> list[Row]:
    """Squared error over energy, by what is larger and how many times."""
    kept = ("model", "side", "outlier_is", "outlier", "way", "code_bits", "error", "samples")
    rows = [{key: row[key] for key in kept} for row in table_rows(records, OUTLIERS, "errors")]
    return newest(rows, "model", "side", "outlier_is", "way", "outlier", most="samples")


def outlier_finding(records: Sequence[Record]) -> list[Row]:
    """Product codes beside each way of rounding, for keys and for values: better at every size of the outlier."""
    rows, found = outlier_rows(records), []
    for model, side, kind in dict.fromkeys((r["model"], r["side"], r["outlier_is"]) for r in rows):
        own = [row for row in rows if (row["model"], row["side"], row["outlier_is"]) == (model, side, kind)]
        by_way: dict[str, dict[float, Row]] = {}
        for row in own:
            by_way.setdefault(row["way"], {})[row["outlier"]] = row
        product = by_way.pop(PRODUCT)
        what = (
            "a channel, error of the others"
            if kind == CHANNEL
            else "single tokens unlike any in calibration, their own error"
        )
        for way, other in by_way.items():
            larger = [scale for scale in product if scale > 1 and scale in other]
            said = ", ".join(f"{scale:g}x {_pair(product[scale], other[scale])}" for scale in sorted(product))
            bits = next(iter(other.values()))["code_bits"]
            found.append(
                claim(
                    f"outliers in {what}: {side}, codes at {CLAIMED_BITS} bits against {way}", THEIRS,
                    f"squared error {said}; {way} takes {bits:g} bits",
                    all(product[scale]["error"] < other[scale]["error"] for scale in larger) if larger else None,
                    model,
                )
            )  # fmt: skip
    return found


def _pair(product: Row, other: Row) -> str:
    return f"{product['error']:.2g} to {other['error']:.2g}"


def _measure(lab: Lab, config: dict[str, Any]) -> dict[str, Any]:
    found, scale = lab.calibrated, config["outlier"]
    count = found.samples.keys[0].shape[1]
    shuffle = torch.randperm(count, generator=torch.Generator().manual_seed(config["seed"]))
    kept, rest = shuffle[found.held_out :], shuffle[: found.held_out]
    rows = []
    for side in ("keys", "values"):
        layers = [layer[:, kept] for layer in found.samples.of(side)]
        tested = [layer[:, rest] for layer in found.samples.of(side)]
        channel = torch.arange(lab.lm.head_dim) == config["channel"]
        token = torch.arange(found.held_out) % _APART == _APART // 2
        by_channel, by_token = (1 + (scale - 1) * place.float() for place in (channel, token[:, None]))
        everything = token | ~token, channel | ~channel
        for kind, codecs, factors, (tokens, channels) in (
            (CHANNEL, _codecs(config, side, [layer * by_channel for layer in layers]), by_channel,
             (everything[0], ~channel)),
            (TOKEN, _codecs(config, side, layers), by_token, (token, everything[1])),
        ):  # fmt: skip
            for way, codec in codecs.items():
                if (way, kind) == (KIVI, TOKEN):  # which spoils the tokens that share its scale, not itself
                    continue
                error, bits = _error(codec, [layer * factors for layer in tested], tokens, channels)
                rows.append({"side": side, "outlier_is": kind, "way": way, "code_bits": bits, "error": error})
    return {"tables": {"errors": rows}}


def _codecs(config: dict[str, Any], side: str, layers: list[Tensor]) -> dict[str, SideCodec]:
    """MILLION's codes learnt from these layers, and two ways of rounding that learn nothing."""
    options = MillionOptions(num_subspaces=config["num_subspaces"], nbits=config["nbits"],
                             iterations=config["iterations"])  # fmt: skip
    keys, values = (layers if name == side else [] for name in ("keys", "values"))
    samples = Samples(keys, values, ())
    state = Million.learn(options, side, samples, config["seed"])
    return {
        PRODUCT: Million(options, side, state),
        BY_TOKEN: Integer(IntegerOptions(bits=CLAIMED_BITS, group=None), side, {}),
        KIVI: Kivi(KiviOptions(bits=CLAIMED_BITS, group=gcd(32, layers[0].shape[-1])), side, {}),
    }


def _error(codec: SideCodec, layers: list[Tensor], tokens: Tensor, channels: Tensor) -> tuple[float, float]:
    """Squared error of these tokens (N,) and channels (D,) over their energy, mean over layers, and bits an element."""
    errors, taken, elements = [], 0, 0
    for i, layer in enumerate(layers):
        vectors = layer[None]  # (1, Hkv, N, D)
        places = torch.arange(vectors.shape[2])
        planes = codec.encode(i, vectors, places)
        gap, energy = (part[:, :, tokens][..., channels].square().sum()
                       for part in (codec.decode(i, planes, places) - vectors, vectors))  # fmt: skip
        errors.append(float(gap / energy))
        taken += sum(len(packed.data) for packed in pack_planes(planes).values())
        elements += vectors.numel()
    return sum(errors) / len(errors), 8 * taken / elements
