"""The composed codec: what is kept is what is restored, each part does what it says, and none needs another."""

import itertools

import pytest
import torch

from pqkv.codec.catalog import CodecSpec
from pqkv.codec.composed import Composed, ComposedOptions
from pqkv.codec.planes import pack_planes, unpack_planes
from pqkv.codec.rotary import Rotary
from pqkv.codec.samples import Samples
from pqkv.errors import ConfigError

LAYERS, H, N, D = 2, 2, 600, 16
ROTARY = Rotary(torch.logspace(0, -3, D // 2, dtype=torch.float64))


@pytest.fixture(scope="module")
def samples():
    """Keys with a mean that turns and channels of unlike spread, values with heavy tails."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.randint(0, 4000, (N,), generator=generator)
    spread = torch.logspace(0, -1.5, D)
    keys = [torch.randn(H, N, D, generator=generator) * spread + 3 * spread for _ in range(LAYERS)]
    values = [torch.randn(H, N, D, generator=generator) * torch.rand(H, N, 1, generator=generator).exp() ** 2 + 1
              for _ in range(LAYERS)]  # fmt: skip
    mixing = torch.randn(LAYERS, H, D, D, generator=generator) / D**0.5
    moments = tuple(m @ m.mT + 0.1 * torch.eye(D) for m in mixing)
    return Samples(
        keys=tuple(ROTARY.turn(k, positions) for k in keys),
        values=tuple(values),
        queries=tuple(m.diagonal(dim1=-2, dim2=-1).sqrt() for m in moments),
        positions=positions,
        rotary=(ROTARY,) * LAYERS,
        query_moments=moments,
        outputs=moments,
    )


def made(samples, side="keys", **options):
    return Composed.learnt(
        ComposedOptions.parse({"num_subspaces": 8, "nbits": 5, "iterations": 4, **options}), side, samples
    )


def error(codec, samples, side="keys", layer=0):
    vectors = samples.of(side)[layer][None]
    return (codec.restore(layer, vectors, samples.positions) - vectors)[0].double()


EVERY = [
    dict(zip(("mean", "gain", "metric", "transform", "scope"), chosen, strict=True))
    for chosen in itertools.product(
        ("none", "constant", "turning"),
        (False, True),
        ("none", "full"),
        ("none", "klt"),
        ("head", "layer", "universal"),
    )
    if chosen[4] != "universal" or chosen[1]
] + [
    {"metric": "diagonal", "transform": "hadamard"}, {"transform": "oscar"}, {"transform": "opq"},
    {"centroids": "int8"}, {"rope": "pre", "metric": "full"}, {"mean": "turning", "turning_pairs": 2},
    {"mean": "turning", "turning_every": 16}, {"grouping": "adjacent"}, {"stages": 2, "metric": "full"},
    {"grouping": "unequal", "metric": "full", "mean": "turning", "gain": True, "centroids": "int8"},
    {"num_subspaces": None, "nbits": None, "layer_bits": (4, 0)},
]  # fmt: skip


@pytest.mark.parametrize("options", EVERY, ids=str)
def test_bytes_hold_all_that_is_restored(samples, options):
    codec = made(samples, **options)
    for layer, tokens in ((0, 1), (1, 37)):
        vectors, positions = samples.keys[layer][None, :, :tokens], samples.positions[:tokens]
        packed = pack_planes(codec.encode(layer, vectors, positions))
        restored = codec.decode(layer, unpack_planes(packed), positions)
        assert torch.equal(restored, codec.restore(layer, vectors, positions))
        assert restored.isfinite().all()
        shape = codec.options.shape(layer)
        bits = 8 * sum(len(plane.data) for plane in packed.values()) / vectors.numel()
        expected = 32 if shape is None else (shape.bits or 8 * 5 / D) + 8 * codec.options.gain / D
        assert expected <= bits <= expected + 8 / vectors.numel() + 1e-9  # one byte is begun at most


def test_one_code_is_the_nearest_centroid_in_the_metric(samples):
    """Brute force: no other code of any subspace makes e^T A e smaller, as its root is part of the frame."""
    codec = made(samples, metric="full", transform="klt", mean="turning")
    vectors, positions = samples.keys[0][None, :, :5], samples.positions[:5]
    planes = codec.encode(0, vectors, positions)
    metric = samples.query_moments[0].double()

    def loss(codes):
        changed = {"codes": type(planes["codes"])(codes, 5)}
        e = (codec.decode(0, changed, positions) - vectors).double()
        return torch.einsum("bhtd,hde,bhte->bht", e, metric, e)

    best = loss(planes["codes"].values)
    for m, c in itertools.product(range(8), range(32)):
        codes = planes["codes"].values.clone()
        codes[..., m] = c
        # axes that nobody looks at are coded as if a little were, so a change may gain next to nothing
        assert (loss(codes) >= best * (1 - 1e-2) - 1e-6).all()


def test_a_mean_that_turns_is_found_and_taken_out(samples):
    codec = made(samples, mean="turning")
    still = ROTARY.take_off(samples.keys[0].double(), samples.positions).mean(1)
    assert torch.allclose(codec.of_layer(0, "turning_mean").double(), still, atol=1e-5)
    turned, constant = (error(made(samples, mean=mean), samples).square().mean() for mean in ("turning", "constant"))
    assert turned < 0.7 * constant


def test_few_pairs_turn_as_told_and_the_rest_keeps_its_constant_mean(samples):
    codec = made(samples, mean="turning", turning_pairs=2)
    turning, constant = codec.of_layer(0, "turning_mean"), codec.of_layer(0, "mean")
    pairs = (turning != 0)[:, : D // 2]
    assert torch.equal(pairs, (turning != 0)[:, D // 2 :])
    assert (pairs.sum(-1) == 2).all()
    assert ((turning != 0) ^ (constant != 0)).all()
    whole = error(made(samples, mean="turning"), samples).square().mean()
    none = error(made(samples, mean="constant"), samples).square().mean()
    assert whole < error(codec, samples).square().mean() < none


@pytest.mark.parametrize("side", ["keys", "values"])
def test_the_metric_lowers_what_it_measures_and_nothing_else(samples, side):
    metric = samples.metric(side)[0].double()
    plain, full = (
        torch.einsum(
            "htd,hde,hte->", e := error(made(samples, side, transform="klt", metric=m), samples, side), metric, e
        )
        for m in ("none", "full")
    )
    assert full < 0.9 * plain


def test_a_gain_makes_errors_follow_the_length(samples):
    vectors = samples.values[0]
    scaled = {0.05: vectors * 0.05, 20.0: vectors * 20.0}
    codec = made(samples, "values", gain=True, transform="hadamard", scope="universal", mean="none")
    ratios = [float((codec.restore(0, x[None], samples.positions)[0] - x).norm() / x.norm()) for x in scaled.values()]
    assert max(ratios) < 0.3
    assert ratios[0] == pytest.approx(ratios[1], rel=0.1)


def test_a_vector_of_zeros_comes_back_as_next_to_nothing(samples):
    codec = made(samples, "values", gain=True, transform="hadamard", scope="universal", mean="none")
    zeros = torch.zeros(1, H, 3, D)
    assert codec.restore(0, zeros, samples.positions[:3]).abs().max() < 0.02


def test_subspaces_of_unequal_length_deal_out_bits_as_balanced_ones_do_among_their_channels(samples):
    """Neighbours of like spread want unequal lengths; a loud and a quiet channel together share their bits anyway."""
    errors = [
        float(error(made(samples, mean="turning", grouping=g), samples).square().mean())
        for g in ("balanced", "unequal", "adjacent")
    ]
    assert errors[0] < errors[1] < 0.9 * errors[2]
    codec = made(samples, mean="turning", grouping="unequal")
    back = codec.of_layer(0, "back")
    assert back.shape[-1] > D  # filled up to the longest
    assert ((back != 0).sum(-1) >= 1).all()  # every channel stands somewhere


def test_sums_of_two_centroids_err_less_than_codes_of_half_the_length(samples):
    for side in ("keys", "values"):
        alone, sums = (error(made(samples, side, grouping="adjacent", stages=n), samples, side) for n in (1, 2))
        assert sums.square().mean() < 0.97 * alone.square().mean()


def test_what_no_digest_held_before_changes_none():
    options = ComposedOptions()
    assert "stages" not in options.model_dump(mode="json")
    assert ComposedOptions(stages=2).model_dump(mode="json")["stages"] == 2
    assert options.digest() != ComposedOptions(stages=2).digest()


def test_int8_centroids_hold_a_hundred_and_twenty_seventh_of_a_channel(samples):
    exact, rounded = made(samples), made(samples, centroids="int8")
    a, b = exact._centroids(0, H, D), rounded._centroids(0, H, D)
    assert rounded.of_layer(0, "centroids").dtype == torch.int8
    assert ((a - b).abs() <= a.abs().amax(-2, keepdim=True) / 254 * 1.001).all()
    assert rounded.fixed_bytes() < exact.fixed_bytes()


def test_universal_centroids_are_kept_once_and_depend_on_no_sample(samples):
    codec = made(samples, gain=True, scope="universal")
    assert [name for name in codec.state if "centroids" in name] == []
    other = made(Samples(keys=tuple(-k for k in samples.keys), values=samples.values, queries=samples.queries,
                         positions=samples.positions, rotary=samples.rotary), gain=True, scope="universal")  # fmt: skip
    assert torch.equal(codec.state["universal.2.5"], other.state["universal.2.5"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rope": "pre", "mean": "turning"}, "no mean turns"),
        ({"scope": "universal"}, "take gain=true"),
        ({"scope": "universal", "gain": True, "grouping": "unequal"}, "of one length"),
        ({"stages": 2, "centroids": "int8"}, "for each head in float32"),
        ({"bits": 4, "nbits": 8, "num_subspaces": 4}, "not both"),
        ({"transform": "fourier"}, "transform"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ComposedOptions.parse(options)


def test_codes_that_are_no_multiple_of_their_stages_are_refused(samples):
    with pytest.raises(ConfigError, match="no multiple of stages=3"):
        made(samples, stages=3)


def test_what_samples_do_not_hold_is_told(samples):
    bare = Samples(keys=samples.keys, values=samples.values, queries=samples.queries)
    for options, message in (({"mean": "turning"}, "positions"), ({"metric": "full"}, "what their errors cost"),
                             ({"transform": "oscar"}, "moments"), ({"rope": "pre"}, "rotary")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            made(bare, **options)


def test_specifications_are_read_as_they_are_written():
    text = "composed:bits=4,mean=turning,metric=full/composed:layer_bits=4+3+2,gain=true,scope=universal"
    spec = CodecSpec.parse(text)
    assert str(spec) == text
    assert CodecSpec.parse(str(spec)) == spec
    assert str(CodecSpec.parse("composed/composed")) == "composed"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kivy", "no codec 'kivy'; there are exact, composed"), ("composed:bits", "no option=value"),
        ("composed:bots=3", "unknown key 'bots'"), ("exact/exact/exact", "one part, or keys/values"),
        ("", "no codec ''"),
        ("composed:bits=5", "no default geometry for 5 bits; pick 6, 4, 3"),
        ("composed:layer_bits=4+0+5", "for 5 bits"),
        ("predicted:first_bits=7", "for 7 bits"),
    ],
)  # fmt: skip
def test_specifications_that_say_nothing_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        CodecSpec.parse(text)
