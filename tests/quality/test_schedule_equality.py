"""One forward stands for token-by-token decoding: `exact-schedule` equals `token`, and both equal the brute force."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    brute_all_coded,
    brute_coded,
    dynamic_logits,
    gap,
    random_ids,
    restored,
    sampled_books,
    sealed,
    tiny_lm,
    tiny_model,
)

from pqkv.config import CacheConfig
from pqkv.errors import CacheError, ConfigError
from pqkv.lm.step import cache_argument
from pqkv.quality.modes import run_coded, run_exact
from pqkv.quality.schedule import ScheduleCache, tiles

MATTERS = 0.1  # codes move logits of the tiny model by units


@pytest.fixture(scope="module")
def books6(tiny):
    return sampled_books(tiny, 4, 6, seed=1)


@pytest.fixture(scope="module")
def ids():
    return random_ids(700)


@pytest.fixture(scope="module")
def exact(tiny, ids):
    return dynamic_logits(tiny.model, ids)


@pytest.fixture(scope="module")
def schedules(tiny, books, books6, ids):
    return {
        nbits: run_coded(tiny, ids, own, CacheConfig(), "exact-schedule") for nbits, own in ((8, books), (6, books6))
    }


LAYOUTS = {
    "transposed": {},
    "row/transposed": {"key_layout": "row"},
    "transposed/row": {"value_layout": "row"},
    "row": {"key_layout": "row", "value_layout": "row"},
    "contiguous": {"paged": False},
}


@pytest.mark.parametrize("nbits", [8, 6])
def test_schedule_equals_the_brute_force_over_700_tokens(tiny, books, books6, ids, exact, schedules, nbits):
    config = CacheConfig()
    assert (config.page_size, config.residual, config.sink_tokens) == (64, 128, 4)
    assert sealed(699, config) == 576  # nine pages
    expected = brute_coded(tiny, ids, books if nbits == 8 else books6, config)
    assert gap(schedules[nbits], expected) <= 1e-9
    assert gap(schedules[nbits], exact) > MATTERS


@pytest.mark.parametrize(("nbits", "layout"), [(8, "transposed"), (6, "row/transposed"), (6, "contiguous")])
def test_token_mode_equals_the_schedule_over_700_tokens(tiny, books, books6, ids, exact, schedules, nbits, layout):
    own = books if nbits == 8 else books6
    tokens = run_coded(tiny, ids, own, CacheConfig(**LAYOUTS[layout]), "token")
    assert gap(tokens, schedules[nbits]) <= 1e-9
    assert gap(tokens, exact) > MATTERS
    assert gap(schedules[8], schedules[6]) > MATTERS


@pytest.mark.once  # layouts lie below what transformers calls; three of them run with every version above
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("nbits", [8, 6])
def test_every_layout_equals_the_schedule(tiny, books, books6, nbits, layout):
    own = books if nbits == 8 else books6
    ids = random_ids(100, batch=2, seed=3)
    config = CacheConfig(page_size=16, residual=32, sink_tokens=3, **LAYOUTS[layout])
    schedule = run_coded(tiny, ids, own, config, "exact-schedule")
    assert gap(run_coded(tiny, ids, own, config, "token"), schedule) <= 1e-9
    assert gap(run_exact(tiny, ids), schedule) > MATTERS


@pytest.mark.once  # sizes of pages and of what stays exact are pqkv's own, as layouts are
@pytest.mark.parametrize(
    ("page", "residual", "sinks"),
    [
        (8, 8, 0),
        (8, 8, 4),
        (8, 20, 0),
        (8, 21, 5),
        (1, 1, 0),
        (1, 5, 2),
        (16, 16, 1),
        (7, 10, 3),
        (16, 200, 4),
        (8, 8, 200),
    ],
)
def test_any_shape_of_cache_equals_the_schedule_and_the_brute_force(tiny, books, page, residual, sinks):
    ids = random_ids(60, seed=page)
    config = CacheConfig(page_size=page, residual=residual, sink_tokens=sinks)
    schedule = run_coded(tiny, ids, books, config, "exact-schedule")
    assert gap(run_coded(tiny, ids, books, config, "token"), schedule) <= 1e-9
    assert gap(brute_coded(tiny, ids, books, config), schedule) <= 1e-9
    if sealed(59, config):
        assert gap(run_exact(tiny, ids), schedule) > 1e-3
    else:
        assert gap(run_exact(tiny, ids), schedule) <= 1e-12


@pytest.mark.once  # when pages fill is pqkv's own count; 700 tokens flush often with every version
@pytest.mark.parametrize("length", [1, 19, 20, 21, 27, 28, 29])
def test_lengths_at_the_first_flushes(tiny, books, length):
    """With S=4, R=16, P=8 row 20 is the first to see codes, row 28 the first to see a second page."""
    ids = random_ids(length, seed=2)
    config = CacheConfig(page_size=8, residual=16, sink_tokens=4)
    schedule = run_coded(tiny, ids, books, config, "exact-schedule")
    assert gap(brute_coded(tiny, ids, books, config), schedule) <= 1e-9
    assert gap(run_coded(tiny, ids, books, config, "token"), schedule) <= 1e-9
    moved = (schedule - run_exact(tiny, ids)).abs().amax((0, 2)) > 1e-6
    assert moved.tolist() == [t >= 20 for t in range(length)]


@pytest.mark.parametrize("size", [1, 5, 16, 23, 100])
def test_a_chunk_sees_as_coded_what_was_coded_when_it_began(tiny, books, size):
    ids = random_ids(100, seed=8)
    config = CacheConfig(page_size=8, residual=16, sink_tokens=2)
    chunks = run_coded(tiny, ids, books, config, "chunk", chunk_size=size)
    assert gap(chunks, brute_coded(tiny, ids, books, config, size)) <= 1e-9
    schedule = run_coded(tiny, ids, books, config, "exact-schedule")
    if size == 1:
        assert gap(chunks, schedule) <= 1e-9
    elif size == 100:
        assert gap(chunks, run_exact(tiny, ids)) <= 1e-12  # one chunk is all exact
    else:
        assert gap(chunks, schedule) > 1e-3


@pytest.mark.parametrize(("length", "batch"), [(90, 3), (700, 1)])
def test_all_coded_is_a_plain_model_on_decoded_keys_and_values(tiny, books, length, batch):
    ids = random_ids(length, batch=batch)
    got = run_coded(tiny, ids, books, CacheConfig(), "all-coded")
    assert gap(got, brute_all_coded(tiny, ids, books)) <= 1e-9
    # the first row sees only itself, and itself is coded: no sinks, no residual
    assert gap(got[:, 0], run_exact(tiny, ids)[:, 0]) > 1e-2


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_every_supported_family_runs_on_codes_as_the_brute_force_does(family):
    lm = tiny_lm(family, **({"sliding_window": None} if family == "mistral" else {}))
    own, ids = sampled_books(lm), random_ids(60)
    config = CacheConfig(page_size=8, residual=16, sink_tokens=2)
    expected = brute_coded(lm, ids, own, config)
    assert gap(run_coded(lm, ids, own, config, "exact-schedule"), expected) <= 1e-9
    assert gap(run_coded(lm, ids, own, config, "token"), expected) <= 1e-9
    assert gap(dynamic_logits(lm.model, ids), expected) > MATTERS


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_run_in_every_mode_alike(dtype):
    """Rounding of the activations is all that is left between the modes."""
    lm = tiny_lm(dtype=dtype)
    own, ids = sampled_books(lm), random_ids(60)
    config = CacheConfig(page_size=8, residual=16, sink_tokens=2)
    schedule, token = (run_coded(lm, ids, own, config, mode).double() for mode in ("exact-schedule", "token"))
    exact = run_exact(lm, ids).double()
    assert (schedule - token).abs().mean() < 0.2 * (schedule - exact).abs().mean()
    coded = run_coded(lm, ids, own, config, "all-coded")
    assert coded.dtype == dtype
    assert gap(coded.double(), exact) > MATTERS


@pytest.mark.once  # no model
@settings(max_examples=200, deadline=None)
@given(length=st.integers(1, 400), page=st.integers(1, 64), extra=st.integers(0, 100), sinks=st.integers(0, 40))
def test_tiles_partition_the_rows_by_what_they_see_as_coded(length, page, extra, sinks):
    config = CacheConfig(page_size=page, residual=page + extra, sink_tokens=sinks)
    rows = [(t, coded) for start, end, coded in tiles(length, config) for t in range(start, end)]
    assert [t for t, _ in rows] == list(range(length))
    coded = expected = 0
    for t, got in rows:
        while t - sinks - coded >= config.residual:
            coded += page
        expected = coded
        assert got == expected


def test_the_exact_cache_has_no_schedule(tiny):
    for mode in ("exact-schedule", "all-coded"):
        with pytest.raises(ConfigError, match="the exact cache runs in mode token, chunk or decode"):
            run_coded(tiny, random_ids(5), None, CacheConfig(), mode)


@pytest.mark.parametrize("size", [1, 7])
def test_the_exact_cache_taken_stepwise_is_the_exact_model(tiny, size):
    ids = random_ids(80, batch=2)
    config = CacheConfig(page_size=8, residual=8)
    got = run_coded(tiny, ids, None, config, "chunk", chunk_size=size)
    assert gap(got, dynamic_logits(tiny.model, ids)) <= 1e-9
    assert gap(run_exact(tiny, ids), dynamic_logits(tiny.model, ids)) <= 1e-9


def test_steps_are_told(tiny, books):
    told = []
    run_coded(tiny, random_ids(23), books, CacheConfig(), "chunk", chunk_size=10, step=lambda *news: told.append(news))
    assert told == [(10, 23), (20, 23), (23, 23)]


def test_a_schedule_refuses_padding_and_a_second_forward(tiny, books):
    run_exact(tiny, random_ids(2))  # attached
    mask, shape = torch.ones(1, 10, dtype=torch.long), tiny.model.config
    mask[0, 0] = 0
    with pytest.raises(CacheError, match="without padding"), torch.inference_mode():
        tiny.model(
            random_ids(10),
            attention_mask=mask,
            **cache_argument(tiny.model, ScheduleCache(shape, books, CacheConfig())),
        )
    cache = ScheduleCache(shape, books, CacheConfig())
    tiny.logits(random_ids(10), cache)
    with pytest.raises(CacheError, match="one forward"):
        tiny.logits(random_ids(10), cache)
    with pytest.raises(CacheError, match="codebooks for 3 layers cannot serve 2 of 2 layers of the model"):
        ScheduleCache(tiny_model(num_hidden_layers=2).config, books, CacheConfig())


def test_the_brute_force_decodes_as_the_codebook_does(tiny, books, books6):
    """Held apart on purpose: the reference of these tests shares no code with the codec."""
    vectors = torch.randn(2, 2, 30, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for book in (*books.keys, *books6.values):
        assert gap(book.decode(book.encode(vectors)), restored(book, vectors)) == 0


def test_rows_before_the_first_code_are_attended_to_in_parts(tiny, books):
    """A window that is as long as the residual would need a mask of its square; in parts it is the same attention."""
    from pqkv.quality.schedule import TILE_ROWS

    ids, config = random_ids(TILE_ROWS + 90), CacheConfig(page_size=8, residual=TILE_ROWS + 40, sink_tokens=2)
    masks = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def seen(*args, attn_mask=None, **more):
        masks.append(attn_mask.shape)
        return attention(*args, attn_mask=attn_mask, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pqkv.lm.causal.F.scaled_dot_product_attention", seen)
        schedule = run_coded(tiny, ids, books, config, "exact-schedule")
    assert max(rows for rows, _ in masks) == 2 * TILE_ROWS  # two query heads on a KV head
    first = TILE_ROWS + 42
    assert gap(schedule[:, :first], run_exact(tiny, ids)[:, :first]) <= 1e-9
    assert gap(schedule[:, first:], run_exact(tiny, ids)[:, first:]) > 1e-4
