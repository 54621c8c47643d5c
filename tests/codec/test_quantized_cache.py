"""`int`, `kivi` and `fp8` restore what transformers' own `QuantizedCache` hands a model.

What differs there. The first call of a model is given exact vectors. Scales have the model's dtype, here float32, and
ours are float16: numbers halfway between two integers may fall either way. Whenever the window is full the whole
cache is quantized again; here a token is coded once, and the two agree as what was rounded is rounded to itself. quanto
groups by memory, so a group of 64 spans tokens and heads where head_dim is smaller, and tokens of other heads where
groups of tokens do not divide their number: the cases below are the ones where it does what its options say. Its
keys by channel (axis -1) are KIVI's.
"""

from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from models import random_ids, tiny_model, untouched
from transformers.cache_utils import QuantizedCache

from pqkv.codec.catalog import CodecSpec
from pqkv.codec.samples import Samples
from pqkv.lm.step import cache_argument

PREFILL, WINDOW = 64, 32


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch):
    """quanto takes its integers apart in C++, which it would compile here first, for half a minute."""
    if find_spec("optimum.quanto") is not None:
        from optimum.quanto.library.extensions import get_extension

        monkeypatch.setattr(get_extension("quanto_cpp"), "_lib", SimpleNamespace(unpack=unpacked))


def unpacked(packed, bits):
    """Integers of 2 or 4 bits from bytes, as quanto packs them: the lowest bits of all first."""
    return torch.cat([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)])


class Watched:
    """A layer's `update`, and what went in and came out each step."""

    def __init__(self, layer):
        self.update, self.given, self.handed_out = layer.update, [], []
        layer.update = self

    def __call__(self, keys, values, *args, **kwargs):
        out = self.update(keys, values, *args, **kwargs)
        self.given.append((keys.clone(), values.clone()))
        self.handed_out.append(tuple(part.clone() for part in out))
        return out


def run(sizes, backend, **options):
    """Steps of `sizes` tokens through a random Llama with heads of 64 channels."""
    model = untouched(tiny_model(dtype=torch.float32, head_dim=64, num_hidden_layers=2))
    cache = QuantizedCache(backend, model.config, **options)
    layers = [Watched(layer) for layer in cache.layers]
    ids = random_ids(sum(sizes), batch=2)
    start = 0
    with torch.inference_mode():
        for size in sizes:
            model(ids[:, start : start + size], **cache_argument(model, cache))
            start += size
    return layers


def predicted(codec, layer, given):
    """What a step is handed: the coded tokens, the window, its own."""
    held, window, out = None, None, []
    for index, step in enumerate(given):
        parts = [step] if held is None else [held, *([] if window is None else [window]), step]
        whole = tuple(torch.cat([part[side] for part in parts], 2) for side in range(2))
        out.append(whole)
        window = step if window is None else tuple(torch.cat([window[s], step[s]], 2) for s in range(2))
        if index == 0 or window[0].shape[2] >= WINDOW:
            held, window = codec.restore(layer, *whole, torch.arange(whole[0].shape[2])), None
    return out


def steps_of(x, axis, group, bits):
    """The distance between two levels of each element's group."""
    groups = x.unflatten(-1, (-1, group)) if axis == 0 else x.unflatten(2, (-1, group)).movedim(3, -1)
    reach = (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)).expand_as(groups) / (2**bits - 1)
    return reach.flatten(-2) if axis == 0 else reach.movedim(-1, 3).flatten(2, 3)


@pytest.mark.parametrize("sizes", [[PREFILL] + [1] * 40, [PREFILL, 32, 32, 32], [PREFILL, 16, 8, 8, 16, 16, 5]])
@pytest.mark.parametrize(("text", "axis", "group", "bits"), [
    ("int:bits=4", 0, 64, 4), ("int:bits=2", 0, 64, 2), ("int:bits=4,group=32", 0, 32, 4),
    ("kivi:bits=2", -1, 32, 2), ("kivi:bits=4", -1, 32, 4),
])  # fmt: skip
def test_a_model_is_handed_what_transformers_hands_it(text, axis, group, bits, sizes):
    pytest.importorskip("optimum.quanto", reason="optimum-quanto is what QuantizedCache rounds with")
    layers = run(sizes, "quanto", nbits=bits, axis_key=axis, axis_value=0, q_group_size=group, residual_length=WINDOW)
    codec = CodecSpec.parse(text).make({})
    for number, layer in enumerate(layers):
        for step, (theirs, ours) in enumerate(
            zip(layer.handed_out, predicted(codec, number, layer.given), strict=True)
        ):
            exact = [torch.cat([part[side] for part in layer.given[: step + 1]], 2) for side in range(2)]
            coded = 0 if step == 0 else PREFILL + sum(sizes[1:step]) // WINDOW * WINDOW
            for side, along in ((0, axis), (1, 0)):
                assert torch.equal(theirs[side][:, :, coded:], exact[side][:, :, coded:])
                assert torch.equal(ours[side][:, :, coded:], exact[side][:, :, coded:])
                if coded:
                    gaps = (theirs[side] - ours[side])[:, :, :coded].abs()
                    gaps = gaps / steps_of(exact[side][:, :, :coded], along, group, bits)
                    assert gaps.max() < 1.02  # one level
                    assert (gaps > 0.02).float().mean() < 0.005


@pytest.mark.parametrize(("text", "axis", "group", "bits"), [("int:bits=4", 0, 64, 4), ("kivi:bits=2", -1, 32, 2)])
def test_coding_once_is_what_quantizing_again_and_again_comes_to(text, axis, group, bits):
    """Five times over, against the exact tokens coded at once."""
    pytest.importorskip("optimum.quanto", reason="optimum-quanto is what QuantizedCache rounds with")
    sizes = [PREFILL] + [WINDOW] * 5 + [1]
    layers = run(sizes, "quanto", nbits=bits, axis_key=axis, axis_value=0, q_group_size=group, residual_length=WINDOW)
    codec = CodecSpec.parse(text).make({})
    for number, layer in enumerate(layers):
        exact = [torch.cat([part[side] for part in layer.given[:-1]], 2) for side in range(2)]
        ours = codec.restore(number, *exact, torch.arange(exact[0].shape[2]))
        for side, along in ((0, axis), (1, 0)):
            gaps = (layer.handed_out[-1][side][:, :, :-1] - ours[side]).abs()
            gaps = gaps / steps_of(exact[side], along, group, bits)
            assert gaps.max() < 1.02
            assert (gaps > 0.02).float().mean() < 0.005


@pytest.mark.parametrize("sizes", [[PREFILL] + [1] * 20, [PREFILL, 32, 7]])
def test_fp8_with_the_prefills_scale_is_that_of_transformers(sizes):
    """It takes its scale from the first call's keys and values, and keeps it; coded are all tokens, its own too."""
    layers = run(sizes, "fp8")
    first = [layer.given[0] for layer in layers]
    sides = [tuple(pair[side].transpose(0, 1).flatten(1, 2) for pair in first) for side in range(2)]
    spec = CodecSpec.parse("fp8")
    codec = spec.make(spec.learn(Samples(sides[0], sides[1], tuple(torch.ones(2, 64) for _ in layers))))
    for number, layer in enumerate(layers):
        exact = [torch.cat([part[side] for part in layer.given], 2) for side in range(2)]
        ours = codec.restore(number, *exact, torch.arange(exact[0].shape[2]))
        for found, expected in zip(ours, layer.handed_out[-1], strict=True):
            assert torch.equal(found, expected)
