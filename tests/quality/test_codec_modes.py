"""Any codec through the real cache: token by token it is what the schedule says in one forward."""

import pytest
import torch
from models import random_ids, tiny_lm

from pqkv.cache import Geometry, KVCache
from pqkv.codec.catalog import CodecSpec
from pqkv.codec.interface import Sides
from pqkv.codec.product import ProductCodec
from pqkv.config import CacheConfig, CodecCalibration
from pqkv.errors import CacheError
from pqkv.lm.capture import capture
from pqkv.lm.rotary import layer_rotaries
from pqkv.quality.control import shuffled
from pqkv.quality.modes import run_coded, run_exact

CACHE = CacheConfig(page_size=8, residual=16, sink_tokens=3, backend="reference")
SPECS = [
    "composed:num_subspaces=8,nbits=5,iterations=2,mean=turning,metric=full,transform=klt",
    "composed:num_subspaces=8,nbits=5,iterations=2,rope=pre/composed:num_subspaces=8,nbits=4,gain=true,scope=universal",
]


@pytest.fixture(scope="module")
def samples(tiny):
    from dataclasses import replace

    found = capture(tiny, random_ids(512, seed=9).numpy(), 512, 0, moments=True, leave_out=3)
    return replace(found, rotary=layer_rotaries(tiny))


@pytest.fixture(scope="module", params=SPECS)
def codec(request, samples):
    spec = CodecSpec.parse(request.param)
    return spec.make(spec.learn(samples))


def test_token_by_token_is_the_schedule(tiny, codec):
    ids = random_ids(90, batch=2)
    expected = run_coded(tiny, ids, codec, CACHE, "exact-schedule")
    assert (run_exact(tiny, ids) - expected).abs().max() > 1e-3
    torch.testing.assert_close(run_coded(tiny, ids, codec, CACHE, "token"), expected, atol=1e-5, rtol=1e-5)


def test_codes_count_from_where_pages_stand(tiny, codec):
    """Chunks seal several pages at once, and those behind them at other positions: the same pages come of it."""
    ids = random_ids(90)
    caches = []
    for size in (1, 40):
        from pqkv.lm import PQKVCache, attach

        attach(tiny.model)
        cache = PQKVCache(tiny.model.config, codec, CACHE)
        for start in range(0, 90, size):
            tiny.states(ids[:, start : start + size], cache)
        caches.append(cache.kv.layers[0])
    tokens = [layer.store.tokens(torch.tensor(layer.coded, dtype=torch.int32)) for layer in caches]
    for side in ("keys", "values"):
        pages = [getattr(t, side).pages[t.page_table[0, : caches[0].coded[0] // 8].long()] for t in tokens]
        # the first layer's keys depend on no other token, whatever the steps were
        torch.testing.assert_close(pages[0], pages[1], atol=1e-6, rtol=1e-6)


def test_codebooks_are_a_codec_like_any_other(tiny, books):
    ids = random_ids(70)
    for mode in ("exact-schedule", "all-coded", "token"):
        as_books, as_codec = (run_coded(tiny, ids, codes, CACHE, mode) for codes in (books, ProductCodec(books)))
        torch.testing.assert_close(as_books, as_codec, atol=1e-5, rtol=1e-5)


def test_only_the_side_that_is_coded_differs(tiny, samples):
    spec = CodecSpec.parse(SPECS[0] + "/exact")
    codec = spec.make(spec.learn(samples))
    keys, values = (torch.randn(1, 2, 20, 16, dtype=torch.float64) for _ in range(2))
    restored = codec.restore(0, keys, values, torch.arange(20))
    assert torch.equal(restored[1], values)
    assert not torch.allclose(restored[0].double(), keys)


def test_bytes_are_counted_while_it_runs(tiny, codec):
    from pqkv.codec.sizes import CodedSizes, nominal_bits

    sizes = CodedSizes()
    counted = run_coded(tiny, random_ids(67), codec, CACHE, "all-coded", coded_sinks=3, sizes=sizes)
    assert sizes.elements == 3 * 64 * 2 * 16
    assert sizes.bits == pytest.approx(nominal_bits(codec, 3, 2, 16))
    torch.testing.assert_close(counted, run_coded(tiny, random_ids(67), codec, CACHE, "all-coded", coded_sinks=3))


def test_the_control_deals_a_codec_out_to_the_wrong_tokens(tiny, codec):
    ids = random_ids(90)
    exact, coded, control = run_exact(tiny, ids), *(
        run_coded(tiny, ids, c, CACHE, "all-coded") for c in (codec, shuffled(codec))
    )  # fmt: skip
    assert (control - exact).abs().mean() > 1.5 * (coded - exact).abs().mean()


class Grouped(Sides):
    """Codes 16 tokens at a time."""

    def __init__(self, inner):
        super().__init__(inner.keys, inner.values)
        self.group = 16


class Below(Sides):
    """Looks at the layer below."""

    looks_below = True


@pytest.mark.parametrize("mode", ["exact-schedule", "token"])
def test_groups_that_pages_do_not_hold_are_refused(tiny, codec, mode):
    with pytest.raises(CacheError, match="pages of 8 tokens cannot hold groups of 16"):
        run_coded(tiny, random_ids(40), Grouped(codec), CACHE, mode)


def test_a_codec_that_looks_below_has_no_pages(tiny, codec):
    below = Below(codec.keys, codec.values)
    run_coded(tiny, random_ids(40), below, CACHE, "exact-schedule")
    with pytest.raises(CacheError, match="looks at the layer below"):
        run_coded(tiny, random_ids(40), below, CACHE, "token")


def test_a_codec_wants_pages():
    geometry = Geometry(1, 2, 16, torch.float32, torch.device("cpu"))
    spec = CodecSpec.parse("exact")
    with pytest.raises(CacheError, match="measured on pages"):
        KVCache(CacheConfig(paged=False, key_layout="row", value_layout="row"), geometry, 1, spec.make({}))


def test_what_is_learnt_is_kept_and_what_is_damaged_is_learnt_again(tmp_path, monkeypatch):
    from pqkv.lm import codecs

    monkeypatch.setenv("PQKV_CACHE", str(tmp_path))
    lm = tiny_lm(dtype=torch.float32)
    calls = []

    def made(lm, config, progress=None, *, gradients=False):
        from dataclasses import replace

        from pqkv.codec.codebook_file import Calibration
        from pqkv.lm.calibrate import Calibrated

        calls.append(config)
        found = replace(capture(lm, random_ids(300, seed=9).numpy(), 300, config.seed, moments=True),
                        rotary=layer_rotaries(lm))  # fmt: skip
        text = Calibration(name="made", split="all", sha256="0", tokens=300, context=300, documents=())
        return Calibrated(found, 0, text)

    monkeypatch.setattr(codecs, "calibrate_codecs", made)
    specs = [CodecSpec.parse(text) for text in (SPECS[0], SPECS[0] + "/exact", "exact")]
    first = codecs.learnt_codecs(lm, specs, CodecCalibration())
    files = sorted((tmp_path / "codecs").iterdir())
    assert len(calls) == 1
    assert len(files) == 2  # keys once, values once
    assert [one.calibration is None for one in first] == [False, False, True]
    again = codecs.learnt_codecs(lm, specs, CodecCalibration())
    assert len(calls) == 1
    assert [one.digest for one in first] == [one.digest for one in again]
    x = torch.randn(1, 2, 9, 16)
    restored = [one.codec.restore(1, x, x, torch.arange(9)) for one in (first[0], again[0])]
    assert all(map(torch.equal, *restored))
    assert {one.digest for one in codecs.learnt_codecs(lm, specs, CodecCalibration(seed=1))}.isdisjoint(
        {first[0].digest, first[1].digest}
    )
    assert len(calls) == 2
    data = bytearray(files[0].read_bytes())
    data[-20] ^= 1
    files[0].write_bytes(data)
    files[1].write_bytes(b"")
    codecs.learnt_codecs(lm, specs, CodecCalibration())
    assert len(calls) == 3
    assert files[0].read_bytes() != bytes(data)
    kept = {one.spec: one.digest for one in codecs.learnt_codecs(lm, specs, CodecCalibration())}
    monkeypatch.setattr(specs[0].keys.kind, "recipe", 1)  # learns differently from now on
    later = {one.spec: one.digest for one in codecs.learnt_codecs(lm, specs, CodecCalibration())}
    assert len(calls) == 4
    assert [spec for spec in specs if later[spec] == kept[spec]] == [specs[2]]
    assert len(list((tmp_path / "codecs").iterdir())) == 2 * len(files) + 2  # those of seed 1 among them
