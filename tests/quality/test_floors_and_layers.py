"""What the figures of codes are held beside: rounding alone, single layers, exact sinks in the worst case."""

import copy

import numpy as np
import pytest
import torch
from grids import run
from models import gap, random_ids, tiny_lm

from pqkv.config import CacheConfig, EvalConfig
from pqkv.errors import ConfigError
from pqkv.lm.plugin import Attended
from pqkv.quality.modes import run_coded, run_exact
from pqkv.quality.noise_floor import Floor, floors
from pqkv.quality.rounded import RoundedCache
from pqkv.record import RecordStore
from pqkv.report.heatmap import write_heatmaps
from pqkv.report.plots import plots_of
from pqkv.schedule import coded_share

SMALL = CacheConfig(page_size=16, residual=32)


def brute_all_coded(lm, ids, books, *, sinks=0, sides=None):
    """One forward of the plain model whose keys and values are replaced, layer by layer, as they are made."""
    model = copy.deepcopy(lm.model)
    model.set_attn_implementation("sdpa")
    from transformers.cache_utils import Cache, DynamicLayer

    class Replacing(DynamicLayer):
        def __init__(self, pair, chosen):
            super().__init__()
            self.pair, self.chosen = pair, chosen

        def update(self, keys, values, *args, **kwargs):
            found = []
            for book, coded, exact in zip(self.pair, self.chosen, (keys, values), strict=True):
                restored = book.decode(book.encode(exact)).to(exact.dtype) if coded else exact
                found.append(torch.cat([exact[:, :, :sinks], restored[:, :, sinks:]], 2))
            return super().update(*found)

    pairs = zip(books.keys, books.values, strict=True)
    layers = [Replacing(pair, (sides or [(True, True)] * 3)[i]) for i, pair in enumerate(pairs)]
    with torch.inference_mode():
        from pqkv.lm.step import cache_argument

        return model(ids, **cache_argument(model, Cache(layers=layers))).logits


@pytest.mark.parametrize("sinks", [0, 1, 4, 59])
def test_the_first_tokens_stay_exact_in_the_worst_case(tiny, books, sinks):
    ids = random_ids(60)
    got = run_coded(tiny, ids, books, SMALL, "all-coded", coded_sinks=sinks)
    assert gap(got, brute_all_coded(tiny, ids, books, sinks=sinks)) <= 1e-9
    if sinks:
        assert gap(got[:, :sinks], run_exact(tiny, ids)[:, :sinks]) <= 1e-12
        assert gap(got, run_coded(tiny, ids, books, SMALL, "all-coded")) > 1e-3


@pytest.mark.parametrize("sinks", [0, 1, 4, 59])
def test_exact_sinks_are_not_counted_as_codes(tiny, books, sinks):
    attended = Attended()
    run_coded(tiny, random_ids(60, batch=2), books, SMALL, "all-coded", coded_sinks=sinks, attended=attended)
    share = coded_share(
        "all-coded", 60, page_size=16, residual=32, sink_tokens=4, chunk_size=1, decode_tokens=1, coded_sinks=sinks
    )
    assert attended.coded_columns / attended.columns == pytest.approx(share)
    assert (sinks == 0) == (share == 1)


@pytest.mark.parametrize("mode", ["all-coded", "exact-schedule"])
@pytest.mark.parametrize("side", [(True, False), (False, True), (True, True)])
def test_one_layer_coded_alone_leaves_the_others_exact(tiny, books, mode, side):
    ids, sides = random_ids(60), [(False, False), side, (False, False)]
    got = run_coded(tiny, ids, books, SMALL, mode, sides=sides)
    if mode == "all-coded":
        assert gap(got, brute_all_coded(tiny, ids, books, sides=sides)) <= 1e-9
    assert gap(got, run_exact(tiny, ids)) > 1e-4
    assert gap(got, run_coded(tiny, ids, books, SMALL, mode)) > 1e-4
    nothing = run_coded(tiny, ids, books, SMALL, mode, sides=[(False, False)] * 3)
    assert gap(nothing, run_exact(tiny, ids)) <= 1e-12


def test_a_rounded_cache_rounds_keys_and_values_and_nothing_else(tiny):
    ids = random_ids(40)

    class Rounding:
        """Stands for a codebook whose codes are the narrow numbers."""

        def encode(self, vectors):
            return vectors.bfloat16()

        def decode(self, narrow):
            return narrow.double()

    rounding = type("Books", (), {"keys": [Rounding()] * 3, "values": [Rounding()] * 3})
    got = tiny.logits(ids, RoundedCache(tiny.model.config, torch.bfloat16))
    assert gap(got, brute_all_coded(tiny, ids, rounding)) <= 1e-9
    assert gap(got, run_exact(tiny, ids)) > 1e-4
    assert gap(tiny.logits(ids, RoundedCache(tiny.model.config, torch.float64)), run_exact(tiny, ids)) <= 1e-12


def test_floors_stand_beside_the_cells_on_the_same_windows(base, tmp_path):
    records = run({**base, "metrics": ("perplexity", "kld"), "noise_floor": True}, RecordStore(tmp_path))
    coded, *beside = records
    assert [record.config.get("floor") for record in records] == [
        None, "bfloat16 arithmetic", "float16 arithmetic", "bfloat16 cache", "float16 cache",
    ]  # fmt: skip
    kld = {record.config["floor"]: record.metrics["kld_mean"].value for record in beside}
    assert 0 < kld["float16 cache"] < kld["bfloat16 cache"] < kld["bfloat16 arithmetic"]
    assert kld["float16 arithmetic"] < kld["bfloat16 arithmetic"] < coded.metrics["kld_mean"].value
    for record in beside:
        assert record.metrics["kld_mean"].n == coded.metrics["kld_mean"].n
        assert len(record.samples["kld_mean"]) == 2
    assert beside[2].metrics["perplexity_exact"].value == pytest.approx(coded.metrics["perplexity_exact"].value)
    (plot,) = (plot for plot in plots_of(records) if plot.name == "kld_mean_by_context")
    assert {line.hue for line in plot.lines} > {"bfloat16 arithmetic", "float16 cache"}
    assert run({**base, "metrics": ("perplexity", "kld"), "noise_floor": True}, RecordStore(tmp_path)) == records


def test_the_arithmetic_floor_has_rounded_weights_on_both_sides():
    """Otherwise it would be the price of rounding weights, which no cache pays."""
    from pqkv.quality.noise_floor import _arithmetic

    wide = tiny_lm(dtype=torch.float32)
    (states, head), (narrow, narrow_head) = _arithmetic(wide, Floor("arithmetic", "bfloat16"))(random_ids(30))
    assert narrow.dtype == torch.bfloat16
    assert states.dtype == torch.float32
    rounded = copy.deepcopy(wide.model).bfloat16().float()
    with torch.inference_mode():
        expected = rounded(random_ids(30)).logits
    assert gap(head(states), expected) <= 1e-4
    assert gap(narrow_head(narrow).float(), expected) > 0
    assert gap(run_exact(wide, random_ids(30)), expected) > 1e-3  # rounding the weights is felt, and stands in neither


def test_a_floor_that_rounds_nothing_is_left_out():
    assert [f.label for f in floors(tiny_lm(dtype=torch.bfloat16))] == [
        "bfloat16 arithmetic", "float16 arithmetic", "float16 cache",
    ]  # fmt: skip


def test_layers_alone_have_records_of_their_own_and_a_picture(base, tmp_path):
    grid = {**base, "metrics": ("kld",), "mode": ("exact-schedule", "all-coded", "token"), "by_layer": True}
    records = run(grid, RecordStore(tmp_path))
    assert [record.kind for record in records] == ["eval", "eval-by-layer", "eval", "eval-by-layer", "eval"]
    for whole, layers in (records[:2], records[2:4]):
        rows = layers.tables["by_layer"]
        assert [row["layer"] for row in rows] == [0, 1]
        assert all(row[f"{side}_low"] <= row[side] <= row[f"{side}_high"] for row in rows for side in ("keys", "both"))
        assert all(row["keys"] > 0 and row["values"] > 0 for row in rows)
        assert layers.metrics["kld_mean"].value == pytest.approx(whole.metrics["kld_mean"].value, rel=1e-6)
        assert max(row["both"] for row in rows) < 3 * whole.metrics["kld_mean"].value
    (path, other) = write_heatmaps(records, tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path != other


@pytest.mark.parametrize("mode", ["exact-schedule", "token", "decode"])
def test_only_positions_past_the_given_one_are_scored(base, mode):
    grid = {**base, "mode": (mode,), "metrics": ("perplexity", "kld"), "decode_tokens": 40}
    whole, late = run(grid)[0], run({**grid, "score_after": 120})[0]
    assert (whole.config.get("score_after"), late.config["score_after"]) == (None, 120)
    first = 110 if mode == "decode" else 0
    scored = 40 if mode == "decode" else 149
    assert late.metrics["kld_mean"].n == 2 * (scored - (120 - first))
    assert whole.metrics["kld_mean"].n == 2 * scored
    assert late.tables["by_position"][0]["start"] == 120
    if mode == "decode":
        by_step = np.array(whole.samples["kld_by_step"])
        assert late.metrics["kld_mean"].value == pytest.approx(by_step[10:].mean(), rel=1e-6)


def test_what_would_leave_nothing_is_refused():
    for values, word in (
        ({"score_after": 511}, "score_after"), ({"coded_sinks": (600,), "mode": ("all-coded",)}, "coded_sinks"),
        ({"coded_sinks": (4,)}, "coded_sinks"), ({"coded_sinks": (-1,)}, "coded_sinks"),
        ({"by_layer": True, "mode": ("token",)}, "by_layer"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=word):
            EvalConfig.parse(values)


def test_worst_cases_with_and_without_sinks_are_told_apart_everywhere(base):
    records = run({**base, "metrics": ("kld",), "mode": ("all-coded",), "coded_sinks": (0, 4)})
    assert [record.config.get("coded_sinks") for record in records] == [None, 4]
    from pqkv_cli.verdict import _row

    assert [_row(record)[1] for record in records] == ["all-coded", "all-coded, 4 sinks"]
    (plot,) = (plot for plot in plots_of(records) if plot.name == "kld_mean_by_context")
    assert {line.marker for line in plot.lines} == {"all-coded", "all-coded, 4 sinks"}
