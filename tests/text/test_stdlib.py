import hashlib
import sysconfig
from pathlib import Path

import pytest

from pqkv.errors import DataError
from pqkv.text import load_corpus
from pqkv.text.stdlib import stdlib_documents


@pytest.fixture(scope="module")
def splits():
    return {split: load_corpus("stdlib", split, default="all") for split in ("calibration", "test", "all")}


def names(corpus):
    return {document.name for document in corpus.documents}


@pytest.mark.parametrize("path", ["json/decoder.py", "argparse.py", "asyncio/base_events.py", "typing.py"])
def test_a_module_lands_where_the_hash_of_its_path_says(splits, path):
    is_test = int(hashlib.sha256(path.encode()).hexdigest(), 16) % 10 == 0
    assert (path in names(splits["test"]), path in names(splits["calibration"])) == (is_test, not is_test)


def test_every_test_module_obeys_the_rule_and_there_are_some(splits):
    assert len(splits["test"].documents) > 20
    for name in names(splits["test"]):
        assert int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10 == 0


def test_calibration_and_test_are_disjoint_and_together_are_all(splits):
    assert not names(splits["calibration"]) & names(splits["test"])
    assert names(splits["calibration"]) | names(splits["test"]) == names(splits["all"])
    assert len(splits["calibration"].documents) + len(splits["test"].documents) == len(splits["all"].documents)
    seen = {document.digest for document in splits["calibration"].documents}
    assert seen.isdisjoint(document.digest for document in splits["test"].documents)


def test_the_default_split_is_what_the_caller_says(splits):
    assert load_corpus("stdlib", None, default="test").sha256 == splits["test"].sha256
    assert load_corpus("stdlib", None, default="calibration").split == "calibration"
    assert load_corpus("stdlib", "test", default="calibration").sha256 == splits["test"].sha256


def test_documents_are_sorted_sources_with_their_own_text(splits):
    ordered = [document.name for document in splits["all"].documents]
    assert ordered == sorted(ordered)
    assert all(name.endswith(".py") and "\\" not in name and not name.startswith("/") for name in ordered)
    decoder = next(document for document in splits["all"].documents if document.name == "json/decoder.py")
    assert decoder.text == Path(sysconfig.get_path("stdlib"), "json", "decoder.py").read_bytes().decode()


def test_packages_tests_caches_and_undecodable_sources_are_left_out(tmp_path):
    kept = ["a.py", "json/decoder.py", "testing/x.py", "unittest/case.py"]
    left = [
        "site-packages/p.py",
        "dist-packages/p.py",
        "json/__pycache__/c.py",
        "test/t.py",
        "lib/tests/t.py",
        "idlelib/idle_test/t.py",
        "data.txt",
    ]
    for name in kept + left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n")
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n")
    (tmp_path / "nul.py").write_bytes(b"# \0\n")
    assert [entry.key for entry in stdlib_documents(tmp_path)] == kept


def test_an_interpreter_without_sources_is_an_error_with_a_way_out(tmp_path):
    with pytest.raises(DataError, match="--data FILE"):
        list(stdlib_documents(tmp_path / "python311.zip"))
