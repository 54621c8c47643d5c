"""Mode decode: a prefill in one step, then the newest tokens one by one; a fault shows in these alone."""

import numpy as np
import pytest
import torch
from grids import run
from models import dynamic_logits, gap, random_ids, untouched
from transformers import DynamicCache

from pqkv.config import CacheConfig, EvalConfig
from pqkv.errors import ConfigError
from pqkv.kernels import choose_backend
from pqkv.lm.step import cache_argument
from pqkv.quality.modes import run_coded, run_decode
from pqkv.quality.prefills import Prefills, prefill
from pqkv.quality.recall import Question, RecallPrompt, answered
from pqkv.quality.summary import by_position

CPU = torch.device("cpu")


def test_exact_pages_decode_on_as_transformers_own_cache(tiny):
    ids = random_ids(90, batch=2)
    logits = run_decode(tiny, ids[:, 70:], prefill(tiny, ids[:, :70], None, CacheConfig()))
    assert gap(logits, dynamic_logits(tiny.model, ids, 1)[:, 70:]) < 1e-9


def test_codes_decode_on_as_a_chunk_and_then_tokens(tiny, books):
    """The prefill is exact attention; what it leaves in the cache is coded, as the newest tokens find it."""
    config = CacheConfig(page_size=16, residual=32)
    ids = random_ids(90)
    logits = run_decode(tiny, ids[:, 70:], prefill(tiny, ids[:, :70], books, config))
    # a first chunk of 70 tokens, then steps of one: the same cache through another driver
    chunked = run_coded(tiny, ids[:, :70], books, config, "chunk", chunk_size=70)
    assert chunked.shape[1] == 70
    from pqkv.lm import PQKVCache

    cache = PQKVCache(tiny.model.config, books, config)
    tiny.logits(ids[:, :70], cache)
    expected = torch.cat([tiny.logits(ids[:, i : i + 1], cache) for i in range(70, 90)], 1)
    assert gap(logits, expected) < 1e-12


def test_a_position_shift_is_what_the_model_is_told(tiny):
    ids = random_ids(60)
    shifted = run_decode(tiny, ids[:, 40:], prefill(tiny, ids[:, :40], None, CacheConfig()), position_shift=-1)
    plain, cache = untouched(tiny.model), DynamicCache(config=tiny.model.config)
    with torch.inference_mode():
        plain(ids[:, :40], **cache_argument(plain, cache))
        steps = [
            plain(ids[:, i : i + 1], **cache_argument(plain, cache), position_ids=torch.tensor([[i - 1]])).logits
            for i in range(40, 60)
        ]
    assert gap(shifted, torch.cat(steps, 1)) < 1e-9
    assert gap(shifted, dynamic_logits(tiny.model, ids)[:, 40:]) > 1e-6


def test_copies_of_a_prefill_do_not_touch_each_other(tiny):
    prefills, ids = Prefills(keep=True), random_ids(60)
    backend = choose_backend("reference", CPU, torch.float64)
    runs = [
        run_decode(tiny, ids[:, 50:], prefills(tiny, ids[:, :50], None, CacheConfig(), backend, "exact"))
        for _ in range(2)
    ]
    assert torch.equal(*runs)
    assert len(prefills._kept) == 1
    prefills(tiny, ids[:, :40], None, CacheConfig(), backend, "exact")
    assert len(prefills._kept) == 1  # of one context at a time


def test_the_cell_scores_the_newest_tokens_only(base):
    grid = {**base, "mode": ("decode",), "decode_tokens": 20, "metrics": ("perplexity", "kld", "softmax-mass")}
    (record,) = run(grid)
    assert record.config["decode_tokens"] == 20
    assert record.metrics["kld_mean"].n == 2 * 20
    assert [(row["start"], row["end"]) for row in record.tables["by_position"]] == [(130, 150)]
    assert len(record.samples["kld_by_step"]) == 20
    assert np.mean(record.samples["kld_by_step"]) == pytest.approx(record.metrics["kld_mean"].value)
    assert record.metrics["softmax_mass_error"].value < 1e-5
    assert record.metrics["logit_error"].n == 2 * 20
    (other,) = run({**base, "mode": ("token",)})
    assert "decode_tokens" not in other.config
    assert "logit_error" not in other.metrics


def test_figures_that_are_no_numbers_are_left_empty_and_said(base):
    grid = {key: value for key, value in base.items() if key != "codebooks"}
    (record,) = run({
        **grid, "bits": (0,), "mode": ("decode",), "decode_tokens": 20, "backend": "fault:block-granular-length/nan",
    })  # fmt: skip
    assert record.status == "ok"
    assert record.metrics["perplexity_ratio"].value is None
    assert record.metrics["softmax_mass_error"].value is None
    assert record.metrics["agreement_at_1"].value == 0
    assert "kld_by_step" not in record.samples
    assert any(note.startswith("not a finite number: ") and "kld_mean" in note for note in record.notes)


def test_a_fault_keeps_its_full_name_in_the_record(base):
    grid = {key: value for key, value in base.items() if key != "codebooks"}
    grid |= {"bits": (0,), "mode": ("decode",), "decode_tokens": 20, "metrics": ("kld",)}
    (sound,) = run({**grid, "backend": "fault:none"})
    (faulty,) = run({**grid, "backend": "fault:warp-max"})
    assert (sound.config["backend"], faulty.config["backend"]) == ("fault:none/128", "fault:warp-max/128")
    assert sound.metrics["kld_mean"].value < 1e-7 < faulty.metrics["kld_mean"].value
    assert sound.metrics["logit_error"].value < 1e-5 < faulty.metrics["logit_error"].value
    for record in (sound, faulty):
        assert len(record.samples["logit_error"]) == 2
        assert max(record.samples["logit_error"]) == record.metrics["logit_error"].value


def test_a_context_must_be_longer_than_what_is_decoded():
    with pytest.raises(ConfigError, match="every context must be longer"):
        EvalConfig.parse({"mode": ("decode",), "context": (64,), "bits": (0,)})


def test_only_questions_that_the_newest_tokens_answer_count():
    prompt = RecallPrompt(np.arange(100), (Question(0.1, 60, 64), Question(0.5, 81, 85), Question(0.9, 95, 99)))
    kept = prompt.answered_by(20)
    assert [q.depth for q in kept.questions] == [0.5, 0.9]
    logits = torch.nn.functional.one_hot(torch.arange(81, 101), 101).float()  # row t predicts t + 1
    assert [right for _, right, _ in answered(kept, logits)] == [True, True]
    logits[95 - 1 - 80] = 0
    assert [right for _, right, _ in answered(kept, logits)] == [True, False]


def test_buckets_begin_where_scoring_does(tiny):
    from pqkv.quality.measures import compare

    exact, coded = (torch.randn(63, 50, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    found = compare(exact, coded, torch.zeros(63, dtype=torch.long), (1,))
    rows = by_position([found], 480)
    assert [(r["start"], r["end"], r["positions"]) for r in rows] == [(480, 512, 32), (512, 543, 31)]
    assert rows[1]["kld_mean"] == pytest.approx(float(found.kld[32:].mean()))


def test_the_last_step_counts(base, monkeypatch):
    """A fault that begins with the last token of the context shows in the KLD."""
    from pqkv.kernels.faults import FAULTS, Fault
    from pqkv.kernels.faults.backend import FaultyAttention

    fault = Fault("shared-memory-2048/dropped", "", room=149)
    assert fault.name in {found.name for found in FAULTS.values()}
    grid = {key: value for key, value in base.items() if key != "codebooks"}
    grid |= {"bits": (0,), "mode": ("decode",), "decode_tokens": 20, "metrics": ("perplexity", "kld")}

    def spoiled(fault):
        def choose(name, device, dtype, **more):
            chosen = choose_backend("fault:none/32", device, dtype)
            return type(chosen)(chosen.name, FaultyAttention(fault, chosen.run))

        monkeypatch.setattr("pqkv.quality.jobs.choose_backend", choose)
        (record,) = run({**grid, "backend": "fault:none/32"})
        return record.samples["kld_by_step"]

    steps, sound = spoiled(fault), spoiled(FAULTS["fault:none/128"])
    assert steps[:-1] == sound[:-1]
    assert steps[-1] > 2 * sound[-1]


@pytest.mark.parametrize(("backend", "mode"), [("fault:rope-minus-one", "token"), ("fault:warp-max", "chunk")])
def test_a_fault_is_refused_where_it_would_do_nothing(backend, mode):
    with pytest.raises(ConfigError, match=f"is a fault of decoding and mode {mode} does not"):
        run({"backend": backend, "mode": (mode,), "bits": (0,)})
