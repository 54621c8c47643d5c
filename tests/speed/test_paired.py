"""Ways of a step in one run: what is timed is what was asked for, and every part of a round is kept."""

import pytest
import torch

from pqkv.config import BenchConfig
from pqkv.errors import KernelError
from pqkv.speed import bench as bench_module
from pqkv.speed import paired, timing
from pqkv.speed.check import relative_error
from pqkv.speed.dequantized import dequantized
from pqkv.speed.paired import DEQUANTIZED, Way, paired_grid, strongest
from pqkv.speed.synthetic import decode_inputs

TINY = {"heads": 4, "kv_heads": 2, "head_dim": 16, "lengths": (300,), "repeats": 7, "backend": "cpu", "page_size": 16,
        "residual": 32, "num_subspaces": 8, "nbits": 8, "served": ()}  # fmt: skip
# what test_breakdown compiles for its parts serves here too: pages of 32 tokens are read as those of 16 are
WAYS = {"pages of 32": Way(given={"page_size": 32}), "tables": Way("cpu-tables")}
pytestmark = pytest.mark.xdist_group("numba")


@pytest.fixture(autouse=True)
def little_cache(monkeypatch):
    monkeypatch.setattr(timing, "last_level_cache", lambda *_: 4096)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr(bench_module, "copy_bandwidth", lambda **_: 2.0)


def run(ways=WAYS):
    (record,) = paired_grid(BenchConfig.parse(TINY), "test", ways)
    return record


def test_every_part_of_every_way_has_a_time_of_every_round():
    record = run()
    assert (record.status, record.config["mode"]) == ("ok", "paired test, batch 1")
    parts = {way: [name.split(": ")[1] for name in record.samples if name.startswith(f"{way}: ")] for way in WAYS}
    assert {"whole step", "query", "scores", "values"} < set(parts["pages of 32"])
    assert {"whole step", "key tables", "scores", "values"} < set(parts["tables"])
    assert {len(times) for times in record.samples.values()} == {7}
    assert DEQUANTIZED in record.samples
    assert strongest(record) in {"sdpa float32", "sdpa bfloat16", "matmul float32", "matmul bfloat16"}


def test_a_way_is_taken_with_what_it_was_given(monkeypatch):
    seen = []
    inputs = paired.decode_inputs
    monkeypatch.setattr(paired, "decode_inputs", lambda config, *of: seen.append(config) or inputs(config, *of))
    record = run()
    assert {c.page_size for c in seen} == {16, 32}
    wholes = {row["way"]: row for row in record.tables["ways"] if row["part"] == "whole step"}
    for way, asked in WAYS.items():
        config = BenchConfig.parse(TINY).model_copy(update=dict(asked.given))
        read = decode_inputs(config, 300, 1, (8, 8), config.seed).read
        moved = read / (wholes[way]["median_ms"] * 1e-3) / 1e9
        assert wholes[way]["bandwidth_fraction"] == pytest.approx(moved / 2.0)


@pytest.mark.parametrize("shape", [(8, 8), (4, 6), (16, 4)])
@pytest.mark.parametrize("layout", ["row", "transposed"])
def test_decoding_first_is_the_same_attention(shape, layout):
    config = BenchConfig.parse(TINY | {"key_layout": layout, "value_layout": layout, "ragged": True})
    for context in (300, 20):  # 20 tokens: none in pages
        case = decode_inputs(config, context, 2, shape, 0)
        assert relative_error(dequantized, case, 0.25, None) < 2e-6


def test_decoding_first_refuses_what_it_does_not_decode():
    served = decode_inputs(BenchConfig.parse(TINY | {"served": ("gains",)}), 300, 1, (8, 8), 0)
    with pytest.raises(KernelError, match="codes alone"):
        dequantized(served.query, served.pages, None, None, scale=1.0)
    with pytest.raises(KernelError, match="without a window"):
        dequantized(served.query, served.pages, None, None, scale=1.0, window=3)


def test_a_wrong_way_is_not_timed(monkeypatch):
    right = paired.get_backend("cpu-tables")
    wrong = lambda *given, **how: tuple(1.01 * part for part in right(*given, **how))
    monkeypatch.setattr(paired, "get_backend", lambda name: wrong)
    record = run()
    assert (record.status, "wrong result" in record.error) == ("failed", True)
