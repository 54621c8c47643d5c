"""Calibration windows stand where a cache's keys will, within what the model and its rotary factors allow."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import random_ids, tiny_lm, untouched, write_corpus
from transformers import DynamicCache

from pqkv.codec.training import relative_error, train_codebooks
from pqkv.config import TrainConfig
from pqkv.lm import load_model
from pqkv.lm.calibrate import calibrate, window_starts
from pqkv.lm.capture import capture
from pqkv.lm.step import cache_argument
from pqkv.lm.tokens import token_stream


@given(st.integers(1, 64), st.integers(1, 2000), st.integers(0, 20000), st.integers(0, 5))
def test_a_quarter_of_the_windows_begin_a_sequence_and_the_others_reach_all_positions(count, context, more, seed):
    starts = window_starts(count, context, context + more, seed)
    assert starts.shape == (count,)
    assert starts.min() == 0
    assert (starts == 0).sum() >= count / 4
    assert starts.max() == (more if count > 1 else 0)
    np.testing.assert_array_equal(np.sort(starts), np.sort(window_starts(count, context, context + more, seed + 1)))
    if more > 8 * count**2:
        assert (starts == 0).sum() == -(-count // 4)
        gaps = np.diff(np.unique(starts))
        assert (np.diff(gaps) >= -1).all()  # farther and farther apart


def test_places_in_the_text_and_positions_are_not_tied():
    assert not np.array_equal(window_starts(16, 8, 4096, 0), np.sort(window_starts(16, 8, 4096, 0)))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_keys_are_those_of_a_cache_at_the_positions_told(family):
    lm = tiny_lm(family)
    windows = random_ids(40, batch=3, seed=6).numpy()
    samples = capture(lm, windows, 120, seed=0, starts=np.array([700, 0, 31]))
    plain = untouched(lm.model)
    for i, start in enumerate((700, 0, 31)):
        cache = DynamicCache(config=plain.config)
        told = torch.arange(start, start + 40)[None]
        with torch.inference_mode():
            plain(torch.from_numpy(windows[i])[None], position_ids=told, **cache_argument(plain, cache))
        for k, layer in enumerate(lm.coded_layers):
            here = slice(40 * i, 40 * i + 40)
            for got, held in ((samples.keys, cache.layers[layer].keys), (samples.values, cache.layers[layer].values)):
                torch.testing.assert_close(got[k][:, here], held[0].float(), rtol=1e-5, atol=1e-5)


def test_codebooks_of_spread_windows_know_keys_that_those_of_windows_at_0_do_not():
    lm = tiny_lm("qwen2", dtype=torch.float32)
    with torch.no_grad():  # keys that stand out in one direction, as those of real models do, and turn with it
        lm.model.model.layers[0].self_attn.k_proj.bias.normal_(0, 4, generator=torch.Generator().manual_seed(0))
    windows, unseen = (random_ids(128, batch=n, seed=n).numpy() for n in (24, 4))
    far = capture(lm, unseen, 512, seed=0, starts=np.full(4, 1800)).keys[0]

    def error(starts):
        keys = capture(lm, windows, 3072, seed=0, starts=starts).keys[0]
        (book,) = train_codebooks([keys], 8, 6, scope="head", iterations=10, seed=0)
        return relative_error(book, far)

    assert error(window_starts(24, 128, 2048, 0)) < 0.5 * error(None)


@pytest.fixture(scope="module")
def lm(tiny_folder):
    return load_model(str(tiny_folder))


def config(folder, **more):
    values = {"num_subspaces": 4, "nbits": 2, "samples": 300, "iterations": 1, **more}
    return TrainConfig(data=str(folder), calibration_tokens=400, context=100, **values)


def positions_of(lm, folder, **more):
    return calibrate(lm, config(folder, **more)).text.positions


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("calibrate") / "prose", ["1.txt", "2.txt"])


def test_windows_reach_what_is_asked_for_and_no_more_than_the_model_has(lm, text):
    assert positions_of(lm, text) == lm.max_positions == 2048
    assert positions_of(lm, text, positions=500) == 500
    assert positions_of(lm, text, positions=10) == 100  # a window
    assert calibrate(lm, config(text, positions=100)).text.reach == 100


@pytest.mark.parametrize(
    ("rope", "context", "reach"),
    [
        ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}, 100, 512),
        ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}, 600, 600),  # factors of 600 tokens and no others
        (None, 100, 512),
    ],
)
def test_windows_stay_where_the_rotary_factors_are_those_of_their_length(lm, text, rope, context, reach):
    more = {} if rope is None else {"rope_parameters": rope}
    own = tiny_lm(dtype=torch.float32, vocab_size=4096, max_position_embeddings=512, **more)
    own = replace(own, tokenizer=lm.tokenizer)
    found = calibrate(own, config(text).model_copy(update={"context": context, "calibration_tokens": 4 * context}))
    assert found.text.positions == reach


def test_no_more_text_is_tokenized_than_windows_are_cut_from(lm, tmp_path, monkeypatch):
    folder = write_corpus(tmp_path / "much", [f"{i:03}.txt" for i in range(60)], words=4000)
    seen = []

    def counted(lm, corpus, form):
        seen.append(corpus)
        return token_stream(lm, corpus, form)

    monkeypatch.setattr("pqkv.lm.calibrate.token_stream", counted)
    text = calibrate(lm, config(folder)).text
    (corpus,) = seen
    characters = sum(len(document.text) for document in corpus.documents)
    assert 128 * 400 <= characters < 4 * 128 * 400
    names = [document.name for document in corpus.documents]
    assert 1 < len(names) < 60
    assert names[-1] > names[0] > "" and max(names) > "040"  # from all over the text
    assert text.sha256 != corpus.sha256  # the record names the whole
