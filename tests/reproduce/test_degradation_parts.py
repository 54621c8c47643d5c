"""Parts b to d of `quality-degradation`: listings by hand, positions told to a model, rounding held to float64."""

import numpy as np
import pytest
import torch
from models import random_ids

from pqkv.errors import ModelError
from pqkv.quality.modes import run_exact
from pqkv.record import RecordStore
from pqkv.reproduce import Request
from pqkv.reproduce.quality_degradation import Settings, cells
from pqkv.reproduce.quality_degradation import listing as b
from pqkv.reproduce.quality_degradation import positions as c
from pqkv.reproduce.quality_degradation.experiment import PARTS
from pqkv.reproduce.quality_degradation.reduction import block_reduced, warp_reduced

SETTINGS = Settings(contexts=(24, 40), decode_tokens=8, float64_windows=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    store = RecordStore(tmp_path_factory.mktemp("parts"))
    return list(cells(SETTINGS, Request(store, parts=("b", "c", "d"))))


@pytest.fixture(scope="module")
def claims(run):
    return {row["claim"]: row for part in PARTS.values() for row in part.finding(run)}


def test_every_cell_ran(run):
    assert [record.error for record in run if record.status != "ok"] == []
    assert len(run) == 2 + 1 + 2


@pytest.mark.parametrize("threads", [32, 64, 512, 1024])
def test_the_listed_reduction_takes_in_what_no_warp_wrote(threads):
    values = np.random.default_rng(threads).standard_normal(threads).astype(np.float32)
    memory = np.linspace(-3, 9, 32, dtype=np.float32)
    left = memory[threads // 32 :]  # of the lanes that no warp stands for
    assert block_reduced(values, memory, "maximum") == max([values.max(), *left])
    assert block_reduced(values, memory, "sum") == pytest.approx(values.sum() + left.sum(), rel=1e-4, abs=1e-4)
    poisoned = np.full(32, np.nan, np.float32)
    assert block_reduced(values, poisoned, "maximum") == values.max()  # fmaxf drops it
    assert np.isnan(block_reduced(values, poisoned, "sum")) == (threads < 1024)
    assert memory[0] == np.float32(-3)  # what is given is not written to


def test_lanes_but_the_first_hold_parts_of_the_reduction():
    """`__shfl_down_sync` brings each lane what lies above it alone."""
    held = warp_reduced(np.arange(32, dtype=np.float32)[::-1], "maximum")
    assert held[0] == 31
    assert held[31] == 0
    ones = warp_reduced(np.ones(32, np.float32), "sum")
    assert ones[0] == 32


def test_garbage_matters_where_it_ends_a_softmax(run):
    wrong = {(row["threads"], row["reduction"], row["held"]): row["wrong"] for row in b.reduction_rows(run)}
    for threads in (32, 512):
        assert wrong[threads, "maximum", "the largest + 110"]  # exp of less than -104 is 0 in float32
        assert wrong[threads, "maximum", "infinity"]
        assert not wrong[threads, "maximum", "the largest + 80"]  # a maximum cancels
        assert not wrong[threads, "maximum", "NaN"]
        assert wrong[threads, "sum", "the largest - 50"]
    assert not any(found for (threads, _, _), found in wrong.items() if threads == 1024)
    assert not any(found for (_, _, held), found in wrong.items() if held == "cleared")


def test_one_warp_has_neither_of_two_defects(run):
    wrong = {(row["block"], row["reduction"], row["context"]): row["wrong"] for row in b.block_rows(run)}
    assert not any(found for (block, _, _), found in wrong.items() if block == 32)
    of_two = {context: found for (block, what, context), found in wrong.items() if (block, what) == (64, "maximum")}
    assert [context for context, found in of_two.items() if found] == [33, 64, 129, 700]
    assert all(found for (block, what, _), found in wrong.items() if block > 32 and what == "sum")


@pytest.mark.parametrize(("limit", "head_dim"), [(48 << 10, 128), (227 << 10, 128), (48 << 10, 64)])
def test_the_longest_context_is_the_last_that_fits(limit, head_dim):
    found = b.most_tokens(limit, head_dim)
    assert b.shared_bytes(found, head_dim) <= limit < b.shared_bytes(found + 1, head_dim)
    assert b.most_tokens(limit, head_dim, static=128) == found - 32


def test_the_buffer_of_the_report(claims):
    said = claims["a buffer as long as the longest context mends the overflow"]
    assert "12,160 tokens in the 48 KiB" in said["ours"]
    assert "57,984 in the 227 KiB" in said["ours"]
    assert said["holds"] == "no"


def test_a_buffer_that_held_every_position_would_be_a_repair(run, monkeypatch):
    monkeypatch.setattr(b, "_POSITIONS", 57_984)
    assert b.finding_b(run)[-1]["holds"] == "yes"
    monkeypatch.setattr(b, "_POSITIONS", 57_985)
    assert b.finding_b(run)[-1]["holds"] == "no"


def test_verdicts(claims):
    assert claims["issues 2 and 4 in blocks of 32 threads"]["holds"] == "no"
    assert claims["the repaired block-level maximum is right"]["holds"] == "no"
    assert claims["the repaired block-level sum is right"]["holds"] == "no"
    assert claims["with block_max cleared before it, it is"]["holds"] == "yes"
    assert claims["prefill's last and decode's first token stand side by side, as in transformers"]["holds"] == "yes"
    off = claims["cos_cache.narrow(0, pos - 1, 1) in decoding is off by one"]
    assert off["holds"] == "not known"
    assert "the listing does not say what pos counts" in off["ours"]
    assert claims["an error that counts as damage is no rounding"]["holds"] == "yes"


def test_positions_of_a_prefill_and_its_steps(run):
    rows = {row["way"]: row for row in c.position_rows(run)}
    for way in (c.OWN, c.THEIRS):
        row = rows[way]
        assert (row["prefill_last"], row["decode_first"], row["decode_last"]) == (15, 16, 23)
        assert row["consecutive"]
    assert (rows[c.SHIFTED]["prefill_last"], rows[c.SHIFTED]["decode_first"]) == (15, 15)
    assert rows[c.OWN]["error"] < 1e-5
    assert rows[c.SHIFTED]["error"] > 1e-2


def test_positions_that_drift_apart_are_no_agreement(run):
    def changed(**how):
        (record,) = [r for r in run if r.kind == c.POSITIONS]
        rows = [row | (how if row["way"] == c.OWN else {}) for row in record.tables["positions"]]
        return c.finding_c([record.model_copy(update={"tables": {"positions": rows}})])[0]["holds"]

    assert changed() == "yes"
    assert changed(decode_first=15) == "no"
    assert changed(consecutive=False) == "no"
    assert changed(prefill_last=16, decode_first=17, decode_last=24) == "no"
    assert changed(error=0.1) == "no"


def test_what_is_told_is_what_the_rotary_embedding_gets(tiny):
    ids = random_ids(6)
    with c.told(tiny.model) as told:
        tiny.states(ids)
        tiny.states(ids, positions=torch.arange(3, 9))
    tiny.states(ids)
    assert told == [list(range(6)), list(range(3, 9))]


def test_a_model_without_one_rotary_embedding_is_refused():
    class Bare(torch.nn.Module):
        def get_decoder(self):
            return self

    with pytest.raises(ModelError, match="Bare has no rotary embedding"), c.told(Bare()):
        pass


def test_rounding_is_that_of_the_model_in_float64(run, reference):
    """By whole logits, as transformers makes them, on the windows of the record."""
    import copy

    from pqkv.lm.tokens import token_form, token_stream
    from pqkv.text import load_corpus, windows

    found = {r.config["context"]: r for r in run if r.kind == "degradation-float64"}
    form = token_form(reference, "auto", parse_special=False)
    stream = token_stream(reference, load_corpus("stdlib", None, default="test"), form)
    ids = torch.from_numpy(windows(stream, 41, 1).tokens[:, :40])
    narrow = run_exact(reference, ids)[0, -8:].double()
    with torch.inference_mode():
        wide = copy.deepcopy(reference.model).double()(input_ids=ids).logits[0, -8:]
    expected = ((narrow - wide).abs().amax(-1) / wide.abs().amax(-1)).max().item()
    assert found[40].samples["logit_error"] == [pytest.approx(expected, rel=0.2)]
    assert 1e-8 < expected < 1e-5
