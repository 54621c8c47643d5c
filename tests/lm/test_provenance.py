"""Codebooks say where they came from, come out the same every time, and serve no other model and no text they saw."""

import hashlib
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import tiny_lm, write_corpus

from pqkv.codec.codebook_file import load_codebooks, save_codebooks
from pqkv.config import TrainConfig
from pqkv.errors import CodebookError, ConfigError, ContaminationError, DataError
from pqkv.lm import load_model
from pqkv.lm.calibrate import calibrate
from pqkv.lm.contamination import check_contamination, identifying_documents
from pqkv.lm.defaults import cache_folder, default_codebooks
from pqkv.lm.train import check_codebooks, train
from pqkv.text import load_corpus, tokenize, windows

NAMES = [f"{i:02}.txt" for i in range(6)]


@pytest.fixture(scope="module")
def lm(tiny_folder):
    return load_model(str(tiny_folder))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("text") / "prose", NAMES)


@pytest.fixture(scope="module")
def config(corpus):
    return TrainConfig(
        data=str(corpus),
        num_subspaces=4,
        nbits=4,
        calibration_tokens=600,
        context=200,
        samples=300,
        iterations=3,
        seed=5,
    )


@pytest.fixture(scope="module")
def trained(lm, config):
    return train(lm, config)


def test_trainings_that_share_a_capture_give_the_bytes_of_trainings_that_make_their_own(lm, config, trained, tmp_path):
    shared = calibrate(lm, config.model_copy(update={"nbits": 2, "scope": "global", "iterations": 1}))
    for name, found in (("own", trained), ("shared", train(lm, config, calibrated=shared))):
        save_codebooks(tmp_path / name, *found)
    assert (tmp_path / "own").read_bytes() == (tmp_path / "shared").read_bytes()


def stream_of(lm, folder):
    return tokenize(load_corpus(str(folder), None, default="test"), lm.encode, lm.separator)


def test_the_header_tells_everything_about_model_text_and_training(lm, corpus, config, trained):
    _, header = trained
    stream = stream_of(lm, corpus)
    assert header.model.model_dump() == lm.identity()
    assert header.model.name == "tiny"  # and no path of the machine
    assert (header.num_layers, header.num_kv_heads, header.head_dim) == (2, 2, 16)
    assert (header.num_subspaces, header.nbits, header.scope, header.rope) == (4, 4, "head", "post")
    assert (header.channels, header.metric) == ("balanced", "query")
    assert (header.samples, header.iterations, header.seed) == (300, 3, 5)
    calibration = header.calibration
    assert (calibration.name, calibration.split, calibration.tokens, calibration.context) == ("prose", "all", 600, 200)
    assert calibration.sha256 == stream.corpus.sha256
    starts = windows(stream, 200, 3).starts
    touched = {int(np.searchsorted(stream.document_starts, t, "right")) - 1 for s in starts for t in range(s, s + 200)}
    texts = [(corpus / NAMES[i]).read_bytes() for i in sorted(touched)]
    assert calibration.documents == tuple(hashlib.sha256(text).hexdigest()[:16] for text in texts)
    assert 0 < len(calibration.documents) < len(NAMES)
    assert len(header.errors) == 2
    assert all(0 < error < 1 for pair in header.errors for error in pair)
    assert set(header.versions) == {"pqkv", "torch", "numba", "transformers"}


@pytest.mark.parametrize("scope", ["head", "global"])
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(lm, config, tmp_path, scope):
    files = []
    for number, seed in enumerate([5, 5, 6]):
        path = tmp_path / f"{number}.safetensors"
        save_codebooks(path, *train(lm, config.model_copy(update={"seed": seed, "scope": scope, "iterations": 2})))
        files.append(path.read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_progress_names_every_stage(lm, config):
    told = []
    train(lm, config.model_copy(update={"iterations": 1}), lambda *news: told.append(news))
    assert list(dict.fromkeys(stage for stage, _, _ in told)) == ["tokenize", "capture", "train keys", "train values"]
    assert told[-1][1:] == (2, 2)  # layers
    train(lm, config.model_copy(update={"iterations": 1, "recipe": "product"}), lambda *news: told.append(news))
    assert told[-1][1:] == (16, 16)  # subspaces: 2 layers x 2 heads x 4


def never(*_):
    pytest.fail("the model was run")


def test_too_few_vectors_for_the_centroids_are_known_from_the_flags():
    """In the words of the flags that were given."""
    cases = [
        ({"nbits": 12, "num_subspaces": 4, "samples": 300}, "raise --samples .300., or lower --nbits"),
        (
            {"samples": 100},
            "100 calibration vectors cannot train 256 .*raise --samples .100., or take fewer --bits",
        ),
        ({"bits": 3, "calibration_tokens": 50, "context": 10}, "raise --calibration-tokens .50., or take fewer --bits"),
    ]
    for values, message in cases:
        with pytest.raises(ConfigError, match=message):
            TrainConfig.parse(values)
    TrainConfig.parse({"bits": 3, "samples": 64, "calibration_tokens": 64, "context": 8})


def test_too_little_text_for_the_centroids_is_said_before_the_model_runs_over_it(lm, config, tmp_path):
    text = write_corpus(tmp_path / "short", ["1.txt"], words=60)
    wanted = config.model_copy(update={"data": str(text), "nbits": 8, "samples": 500, "calibration_tokens": 1000})
    told = []
    with pytest.raises(DataError, match=r"short gives \d+ calibration vectors .* cannot train 256 .* give more text"):
        train(lm, wanted, lambda stage, *_: told.append(stage))
    assert set(told) == {"tokenize"}


def test_calibration_windows_are_never_shorter_in_silence(lm, config, caplog, tmp_path):
    caplog.set_level(logging.WARNING, logger="pqkv")
    with pytest.raises(ConfigError, match="context 5000 is beyond the 2048 positions"):
        train(lm, config.model_copy(update={"context": 5000}), never)
    few = tiny_lm(dtype=torch.float32, vocab_size=4096, num_hidden_layers=2, max_position_embeddings=512)
    few = replace(few, tokenizer=lm.tokenizer)
    given = config.model_dump(exclude={"context", "calibration_tokens"})  # the default of 1,024 is more than it has
    _, header = train(few, TrainConfig(**given, calibration_tokens=1024))
    assert header.calibration.context == 512
    assert f"calibration windows of 512 tokens: {few.name} has no more positions" in caplog.text
    text = write_corpus(tmp_path / "short", ["1.txt"], words=300)
    _, header = train(lm, config.model_copy(update={"data": str(text), "context": 2000}))
    assert header.calibration.context < 2000
    assert f"calibration windows of {header.calibration.context} tokens, not 2000: short has no more" in caplog.text


def test_errors_are_centred_and_stand_in_the_queries_metric_too(trained):
    _, header = trained
    assert (header.version, header.recipe, header.calibration.leave_out) == (4, "pqkv", 4)
    assert len(header.query_errors) == len(header.errors) == 2
    assert all(0 < error < 1 for error in header.query_errors)
    assert list(header.query_errors) != [keys for keys, _ in header.errors]


def test_a_shape_that_does_not_divide_the_head_is_refused_before_anything_runs(lm, config):
    with pytest.raises(ConfigError, match="not divisible by num_subspaces 3"):
        train(lm, config.model_copy(update={"num_subspaces": 3}), lambda *_: pytest.fail("it ran"))


def test_codebooks_serve_the_model_they_were_trained_for_and_no_other(lm, trained):
    _, header = trained
    check_codebooks(header, lm, "own.safetensors")
    for more, message in (
        ({"seed": 1}, "other weights or settings"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e4}}, "other weights or settings"),
        ({"num_hidden_layers": 1}, r"\(2, 2, 16\).*\(1, 2, 16\)"),
        ({"num_key_value_heads": 4}, r"\(2, 4, 16\)"),
        ({"head_dim": 8}, r"\(2, 2, 8\)"),
    ):
        other = tiny_lm(dtype=torch.float32, **{"vocab_size": 4096, "num_hidden_layers": 2, **more})
        with pytest.raises(CodebookError, match=message) as caught:
            check_codebooks(header, other, "own.safetensors")
        assert str(caught.value).startswith("own.safetensors: ")


def contaminated(lm, header, folder, *, allowed=False, length=100):
    stream = stream_of(lm, folder)
    starts = windows(stream, length, None).starts
    return check_contamination(header.calibration, stream, starts, length, allowed=allowed)


def test_text_that_was_calibrated_on_is_refused_and_noted_where_allowed(lm, corpus, trained):
    with pytest.raises(ContaminationError, match=r"document\(s\) of prose/all .*--allow-contaminated"):
        contaminated(lm, trained[1], corpus)
    assert contaminated(lm, trained[1], corpus, allowed=True).startswith("contaminated: ")


def test_one_shared_document_under_another_name_in_another_corpus_is_found(lm, corpus, trained, tmp_path):
    other = write_corpus(tmp_path / "other", ["a.txt", "b.txt"], seed=1)
    (other / "c.txt").write_bytes((corpus / NAMES[0]).read_bytes())
    with pytest.raises(ContaminationError, match=r"^1 document\(s\) of other/all"):
        contaminated(lm, trained[1], other)


def test_a_shared_document_outside_the_windows_does_not_count(lm, corpus, trained, tmp_path):
    other = write_corpus(tmp_path / "other", ["a.txt"], seed=1)
    (other / "z.txt").write_bytes((corpus / NAMES[0]).read_bytes())
    stream = stream_of(lm, other)
    assert check_contamination(trained[1].calibration, stream, np.array([0]), 100, allowed=False) is None
    with pytest.raises(ContaminationError):
        check_contamination(trained[1].calibration, stream, np.array([0, len(stream.tokens) - 100]), 100, allowed=False)


def test_disjoint_texts_are_clean(lm, trained, tmp_path):
    assert contaminated(lm, trained[1], write_corpus(tmp_path / "other", ["00.txt", "b.txt"], seed=1)) is None


def test_other_windows_of_the_calibration_text_are_not_called_clean(lm, corpus, trained):
    stream = stream_of(lm, corpus)
    seen = set(trained[1].calibration.documents)
    unseen = [
        start
        for i, start in enumerate(stream.document_starts)
        if stream.corpus.documents[i].digest not in seen and start + 100 <= len(stream.tokens)
    ]
    with pytest.raises(ContaminationError, match="is the very text"):
        check_contamination(trained[1].calibration, stream, np.array(unseen[:1]), 100, allowed=False)


def test_short_documents_that_everybody_has_do_not_count(lm, config, tmp_path):
    folders = [write_corpus(tmp_path / name, [f"{name}.txt"], seed=name) for name in ("one", "two")]
    for folder in folders:
        (folder / "empty_module.txt").write_text("MIT License.\n" * 10, encoding="utf-8")  # 130 characters
    update = {"data": str(folders[0]), "context": 100, "calibration_tokens": 10_000, "iterations": 1}
    _, header = train(lm, config.model_copy(update=update))
    assert len(header.calibration.documents) == 1
    assert contaminated(lm, header, folders[1]) is None
    # at the length that identifies, the very same text counts
    for folder in folders:
        (folder / "empty_module.txt").write_text("x" * 256, encoding="utf-8")
    _, header = train(lm, config.model_copy(update=update))
    with pytest.raises(ContaminationError, match=r"^1 document\(s\)"):
        contaminated(lm, header, folders[1], length=50)


def test_identifying_documents_are_those_the_windows_touch(lm, corpus):
    stream = stream_of(lm, corpus)
    second = int(stream.document_starts[1])
    digests = [document.digest for document in stream.corpus.documents]
    assert identifying_documents(stream, np.array([second - 1]), 1) == (digests[0],)
    assert identifying_documents(stream, np.array([second - 1]), 2) == (digests[0], digests[1])


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("PQKV_CACHE", raising=False)
    assert cache_folder() == tmp_path / "xdg" / "pqkv"
    monkeypatch.setenv("PQKV_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("PQKV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "codebooks"


def test_default_codebooks_are_trained_once_and_reused(lm, config, own_cache):
    first, header, path = default_codebooks(lm, config)
    assert list(own_cache.iterdir()) == [path]
    stamp = path.stat().st_mtime_ns
    again, same, where = default_codebooks(lm, config, lambda *_: pytest.fail("trained again"))
    assert (where, path.stat().st_mtime_ns) == (path, stamp)
    assert same == header
    assert torch.equal(again.keys[1].centroids, first.keys[1].centroids)


def test_default_codebooks_of_other_settings_or_models_have_their_own_file(lm, config, own_cache):
    for settings in (config, config.model_copy(update={"seed": 6}), config.model_copy(update={"scope": "layer"})):
        default_codebooks(lm, settings.model_copy(update={"iterations": 1}))
    default_codebooks(tiny_lm_of(lm), config.model_copy(update={"iterations": 1}))
    assert len(list(own_cache.iterdir())) == 4


def tiny_lm_of(lm):
    """Other weights with the same tokenizer."""
    from models import tiny_model

    from pqkv.lm.load import describe

    model = tiny_model(dtype=torch.float32, vocab_size=4096, num_hidden_layers=2, seed=1)
    return describe("tiny", model, lm.tokenizer)


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "of another model"])
def test_a_damaged_default_file_is_trained_again(lm, config, own_cache, damage):
    _, _, path = default_codebooks(lm, config)
    good = path.read_bytes()
    if damage == "of another model":
        save_codebooks(path, *train(tiny_lm_of(lm), config))
    else:
        path.write_bytes(good[:-10] if damage == "truncated" else good[:-1] + bytes([good[-1] ^ 1]))
    assert path.read_bytes() != good
    stages = []
    _, _, again = default_codebooks(lm, config, lambda stage, *_: stages.append(stage))
    assert "capture" in stages
    assert again.read_bytes() == good
    load_codebooks(path)
