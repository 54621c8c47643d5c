"""`eval` with a beginning of sequence, text that spells control tokens, and records that say so."""

from pathlib import Path

import numpy as np
import pytest
import torch
from grids import run, trained
from models import tiny_model, write_corpus
from tokenizers_made import spaced

from pqkv.codec.codebook_file import load_codebooks, save_codebooks
from pqkv.config import EvalConfig
from pqkv.lm import load_model
from pqkv.lm.tokens import TokenForm
from pqkv.quality.recall import build_prompts
from pqkv.record import RecordStore
from pqkv.text import load_corpus, tokenize, windows

NAMES = [f"{i}.txt" for i in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("begun") / "model"
    tiny_model(dtype=torch.float32, vocab_size=160, num_hidden_layers=2).save_pretrained(folder)
    spaced().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lm(folder):
    return load_model(str(folder))


@pytest.fixture(scope="module")
def base(folder, lm, tmp_path_factory):
    place = tmp_path_factory.mktemp("begun-text")
    text, calibration = write_corpus(place / "prose", NAMES), write_corpus(place / "other", NAMES, seed=1)
    return {
        "model": str(folder), "data": str(text), "codebooks": (trained(lm, place / "books", calibration),),
        "context": (150,), "windows": 2, "page_size": 16, "residual": 32,
        "backend": "reference",  # no kernel knows how a sequence began: none is compiled for this
        "metrics": ("perplexity", "kld"),
    }  # fmt: skip


def nll_by_hand(lm, data, context, count, bos):
    """Mean NLL of the targets of plain windows, each behind a beginning of sequence, from plain forwards."""
    stream = tokenize(load_corpus(data, None, default="test"), lm.encode, lm.separator)
    found = []
    for window in windows(stream, context, count).tokens:
        ids = torch.tensor(np.append(bos, window) if bos is not None else window)[None]
        with torch.inference_mode():
            logits = lm.model(ids).logits[0]
        skip = int(bos is not None)
        log_q = logits[skip:-1].float().log_softmax(-1)
        found.append(float(-log_q.gather(1, torch.tensor(window)[1:, None]).mean()))
    return found


@pytest.mark.parametrize(("bos", "token"), [("auto", 1), ("always", 1), ("never", None)])
def test_the_exact_perplexity_is_that_of_windows_that_begin_so(base, lm, bos, token):
    (record,) = run({**base, "bos": bos})
    expected = nll_by_hand(lm, base["data"], 150, 2, token)
    assert record.samples["nll_exact"] == pytest.approx(expected, abs=1e-5)
    assert record.config.get("bos") == token
    assert record.tables["text"][0]["bos_id"] == token
    assert record.tables["text"][0]["separator"] == "</s>"


@pytest.mark.parametrize("mode", ["exact-schedule", "token", "chunk", "decode", "all-coded"])
def test_every_mode_scores_the_same_targets_with_and_without(base, mode):
    given = {**base, "mode": (mode,), "decode_tokens": 20}
    found = [run({**given, "bos": bos})[0] for bos in ("always", "never")]
    assert found[0].metrics["kld_mean"].n == found[1].metrics["kld_mean"].n
    assert found[0].digest != found[1].digest
    assert found[0].metrics["perplexity"].value != found[1].metrics["perplexity"].value
    again = run({**given, "bos": "always"})[0]
    assert again.metrics == found[0].metrics


def test_schedule_and_token_agree_behind_a_beginning(base):
    schedule, token = (run({**base, "mode": (mode,), "bos": "always"})[0] for mode in ("exact-schedule", "token"))
    for name in ("perplexity", "perplexity_exact", "kld_mean"):
        assert token.metrics[name].value == pytest.approx(schedule.metrics[name].value, rel=2e-4)


def test_codebooks_that_were_calibrated_the_other_way_are_named(base):
    (record,) = run({**base, "bos": "never"})
    assert any("began with token 1" in note and "begin with no beginning-of-sequence" in note for note in record.notes)
    (same,) = run(base)
    assert not any("beginning-of-sequence" in note for note in same.notes)
    _, header = load_codebooks(Path(base["codebooks"][0]))
    assert header.calibration.bos == 1


def test_codebooks_of_version_1_began_with_nothing(base, lm, tmp_path):
    learnt_from = Path(base["codebooks"][0]).parent / "other"
    books, header = load_codebooks(Path(trained(lm, tmp_path / "product", learnt_from, recipe="product")))
    old = header.model_copy(update={"version": 1, "query_errors": ()})
    save_codebooks(tmp_path / "old", books, old)
    (record,) = run({**base, "codebooks": (str(tmp_path / "old"),)})
    assert any("began with no beginning-of-sequence token" in note for note in record.notes)


def test_text_that_spells_control_tokens_is_another_cell_when_they_are_parsed(base, lm, tmp_path):
    text = write_corpus(tmp_path / "marked", NAMES)
    for name in NAMES:
        (text / name).write_text((text / name).read_text() + " </s> and on it goes", encoding="utf-8")
    marked = {**base, "data": str(text)}
    store = RecordStore(tmp_path / "records")
    (plain,), (parsed,) = run(marked, store), run({**marked, "parse_special": True}, store)
    assert plain.digest != parsed.digest
    assert (plain.config["special_tokens"], "special_tokens" in parsed.config) == ("text", False)
    assert plain.tables["text"][0]["special_strings"] == "text"
    assert plain.metrics["perplexity_exact"].value != parsed.metrics["perplexity_exact"].value
    (same,), (either,) = run(base), run({**base, "parse_special": True})
    assert same.digest == either.digest  # no such string: no difference


def test_recall_prompts_begin_once_and_ask_where_they_say(lm):
    filler = np.tile(np.arange(3, 153), (2, 4))[:, :600]
    for window, prompt in zip(filler, build_prompts(lm, filler, 0, TokenForm(bos=1)), strict=True):
        assert (prompt.ids[0], len(prompt.ids)) == (1, len(window))
        assert (prompt.ids == 1).sum() == 1
        for question in prompt.questions:
            assert lm.tokenizer.decode(prompt.ids[question.start : question.end]).strip().isdigit()


def test_records_of_a_text_without_beginning_are_found_again(base, tmp_path):
    """The configuration of a cell that does what was always done has no key that came later."""
    (record,) = run({**base, "bos": "never"}, RecordStore(tmp_path))
    assert not {"bos", "special_tokens", "recall_pieces"} & set(record.config)


def test_an_unknown_word_for_bos_is_refused():
    from pqkv.errors import ConfigError

    with pytest.raises(ConfigError, match="bos"):
        EvalConfig.parse({"bos": "sometimes"})


def test_contexts_past_the_calibrated_positions_are_named(base, tmp_path):
    books, header = load_codebooks(Path(base["codebooks"][0]))
    assert header.calibration.reach == 2048
    near = header.model_copy(update={"calibration": header.calibration.model_copy(update={"positions": 149})})
    save_codebooks(tmp_path / "near", books, near)
    (record,) = run({**base, "codebooks": (str(tmp_path / "near"),)})
    assert any("positions up to 149" in note and "--positions 150" in note for note in record.notes)
    (record,) = run(base)
    assert not any("--positions" in note for note in record.notes)
