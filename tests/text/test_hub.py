import dataclasses
import gzip
import json
import os
import subprocess
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pqkv.errors import DataError
from pqkv.text import HUB_SETS, Document, hub_documents, load_corpus

WIKITEXT_CARD = """---
configs:
- config_name: wikitext-2-raw-v1
  data_files:
  - split: train
    path: wikitext-2-raw-v1/train-*
  - split: test
    path: wikitext-2-raw-v1/test-*
- config_name: wikitext-103-raw-v1
  data_files:
  - split: train
    path: wikitext-103-raw-v1/train-*
---
"""


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def local(name, folder, **changes):
    return dataclasses.replace(HUB_SETS[name], repository=str(folder), **changes)


def write_parquet(path, column, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: texts}), path)


def in_another_interpreter(program, folder):
    """Run `program` in `folder`; the client of the hub reads its environment once, when it is imported."""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", program], check=False, env=env, cwd=folder, capture_output=True, text=True
    )


def write_shard(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ({"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "http://example.org"} for text in texts)
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


@pytest.fixture
def wikitext(tmp_path):
    folder = tmp_path / "wikitext"
    write_parquet(folder / "wikitext-2-raw-v1/train-00000-of-00001.parquet", "text", ["", " = A = \n", "seen \n"])
    write_parquet(folder / "wikitext-2-raw-v1/test-00000-of-00001.parquet", "text", ["", " = B = \n", "unseen \n"])
    write_parquet(folder / "wikitext-103-raw-v1/train-00000-of-00001.parquet", "text", ["the large one"])
    (folder / "README.md").write_text(WIKITEXT_CARD)
    return local("wikitext2", folder)


@pytest.fixture
def c4(tmp_path):
    folder = tmp_path / "c4"
    write_shard(folder / "en/c4-train.00000-of-01024.json.gz", [f"seen {number}" for number in range(20)])
    write_shard(folder / "en/c4-train.00001-of-01024.json.gz", ["the wrong shard"])
    write_shard(folder / "en/c4-validation.00000-of-00008.json.gz", ["unseen 0", "unseen 1"])
    return local("c4", folder)


def test_wikitext2_is_one_document_of_all_rows_joined_by_blank_lines(wikitext):
    assert hub_documents(wikitext, "test") == (Document("wikitext2/test", "\n\n = B = \n\n\nunseen \n"),)
    assert hub_documents(wikitext, "calibration") == (Document("wikitext2/train", "\n\n = A = \n\n\nseen \n"),)


def test_ptb_is_one_document_of_all_sentences_joined_by_spaces(tmp_path):
    write_parquet(tmp_path / "ptb/penn_treebank/train/0000.parquet", "sentence", ["a b", "c <unk>"])
    write_parquet(tmp_path / "ptb/penn_treebank/validation/0000.parquet", "sentence", ["neither"])
    write_parquet(tmp_path / "ptb/penn_treebank/test/0000.parquet", "sentence", ["d", "e f"])
    spec = local("ptb", tmp_path / "ptb")
    assert hub_documents(spec, "test") == (Document("ptb/test", "d e f"),)
    assert hub_documents(spec, "calibration") == (Document("ptb/train", "a b c <unk>"),)


def test_c4_is_one_document_a_row_of_one_shard_each_for_calibration_and_test(c4):
    assert [document.text for document in hub_documents(c4, "calibration")] == [f"seen {n}" for n in range(20)]
    assert hub_documents(c4, "test") == (
        Document("c4/validation:0", "unseen 0"),
        Document("c4/validation:1", "unseen 1"),
    )
    assert len(hub_documents(c4, "all")) == 22


def test_a_streamed_set_stops_at_its_bound_and_stores_nothing(c4, tmp_path):
    bounded = hub_documents(dataclasses.replace(c4, at_most=3), "calibration")
    assert [document.text for document in bounded] == ["seen 0", "seen 1", "seen 2"]
    assert not list((tmp_path / "cache").rglob("*.arrow"))


PG19_CARD = """---
dataset_info:
  features:
  - name: text
    dtype: string
  splits:
  - name: train
    num_examples: 28602
  - name: validation
    num_examples: 50
  - name: test
    num_examples: 100
---
"""


def test_pg19_takes_a_bounded_number_of_books_of_one_shard(tmp_path):
    data = tmp_path / "pg19/data"
    write_parquet(data / "train-00000-of-00023-5263dc.parquet", "text", [f"book {n}" for n in range(30)])
    (data / "train-00001-of-00023-2b13c6.parquet").write_bytes(b"a shard that must not be opened")
    write_parquet(data / "test-00000-of-00001-29a571.parquet", "text", ["a book apart"])
    (tmp_path / "pg19/README.md").write_text(PG19_CARD)
    spec = local("pg19", tmp_path / "pg19")
    books = hub_documents(spec, "calibration")
    assert [document.text for document in books] == [f"book {n}" for n in range(spec.at_most)]
    assert hub_documents(spec, "test") == (Document("pg19/test:0", "a book apart"),)


def test_only_sets_of_json_are_streamed():
    for spec in HUB_SETS.values():
        assert not (spec.streaming and any(pattern.endswith(".parquet") for _, pattern in spec.files))
        assert not (spec.streaming and not spec.files)


def test_an_interpreter_that_read_part_of_a_stream_exits_in_peace(tmp_path):
    write_shard(tmp_path / "c4/en/c4-train.00000-of-01024.json.gz", [str(n) * 20_000 for n in range(2000)])
    program = """
import dataclasses
from pqkv.text import HUB_SETS, hub_documents
print(len(hub_documents(dataclasses.replace(HUB_SETS["c4"], repository="c4", at_most=3), "calibration")))
"""
    run = in_another_interpreter(program, tmp_path)
    assert (run.returncode, run.stdout, run.stderr) == (0, "3\n", "")


@pytest.mark.parametrize("name", ["wikitext2", "ptb"])
def test_sets_that_are_one_text_a_split_refuse_all(name):
    with pytest.raises(DataError, match=f"{name} has no split all.*calibration or test"):
        load_corpus(name, "all", default="test")


def test_a_named_set_is_loaded_with_the_default_split_and_its_own_name(wikitext, monkeypatch):
    monkeypatch.setitem(HUB_SETS, "wikitext2", wikitext)
    corpus = load_corpus("wikitext2", None, default="test")
    assert (corpus.name, corpus.split, len(corpus.documents)) == ("wikitext2", "test", 1)
    assert "unseen" in corpus.documents[0].text
    assert "unseen" not in load_corpus("wikitext2", "calibration", default="test").documents[0].text


def test_rows_without_text_are_left_out_of_a_corpus(c4, monkeypatch, tmp_path):
    write_shard(tmp_path / "c4/en/c4-validation.00000-of-00008.json.gz", ["", "kept", " \n"])
    monkeypatch.setitem(HUB_SETS, "c4", c4)
    assert load_corpus("c4", "test", default="all").documents == (Document("c4/validation:1", "kept"),)


def test_a_known_name_wins_over_a_file_of_that_name(wikitext, monkeypatch, tmp_path):
    monkeypatch.setitem(HUB_SETS, "wikitext2", wikitext)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "work/wikitext2").write_text("a file")
    assert load_corpus("wikitext2", "test", default="all").documents[0].text != "a file"
    assert load_corpus("./wikitext2", None, default="test").documents[0].text == "a file"


def test_a_set_without_its_column_or_its_files_is_an_error_with_a_way_out(wikitext, tmp_path):
    for spec in (
        dataclasses.replace(wikitext, column="sentence"),
        dataclasses.replace(wikitext, config="wikitext-9"),
        local("c4", tmp_path / "wikitext"),
    ):
        with pytest.raises(DataError, match="--data FILE") as caught:
            hub_documents(spec, "test")
        assert "\n" not in str(caught.value)
        assert spec.name in str(caught.value)


def test_progress_bars_are_silent_while_loading_and_back_afterwards(wikitext, capfd):
    assert not datasets.utils.are_progress_bars_disabled()
    hub_documents(wikitext, "test")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert not datasets.utils.are_progress_bars_disabled()


def test_without_a_hub_the_error_says_what_was_tried_and_takes_a_local_file(tmp_path):
    program = """
from pqkv.errors import DataError
from pqkv.text import load_corpus
for name in ("wikitext2", "ptb", "c4", "pg19"):
    try:
        load_corpus(name, None, default="test")
    except DataError as error:
        print(error)
"""
    run = in_another_interpreter(program, tmp_path)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == 4
    for line, spec in zip(lines, HUB_SETS.values(), strict=True):
        assert line.startswith(f"{spec.name} ({spec.repository}, split {spec.test}): ")
        assert "hub could not be reached" in line
        assert "--data FILE" in line
