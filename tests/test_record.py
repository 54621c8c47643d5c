"""Records: what is written comes back equal or not at all."""

import hashlib
import json
import math
import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pqkv.config import digest_of
from pqkv.errors import RecordError
from pqkv.metrics import METRICS, metric_info
from pqkv.record import (
    SCHEMA_VERSION,
    Metric,
    Record,
    RecordStore,
    load_records,
    read_record,
    utc_now,
)  # fmt: skip

CONFIG = {"model": "reference", "bits": 4, "context": 512}


def make(config=CONFIG, **changes):
    values = {
        "kind": "eval", "config": config, "digest": digest_of(config), "env": {"python": "3.11"},
        "git": {"commit": "abc", "dirty": False}, "seed": 0, "status": "ok", "error": None,
        "started_at": "2025-01-01T00:00:00+00:00", "seconds": 1.25,
        "metrics": {"kld_mean": Metric(value=0.1, low=0.05, high=0.2, unit="nats", n=8)},
        "tables": {"by_position": [{"start": 0, "end": 128, "kld_mean": 0.1, "perplexity": None}]},
        "samples": {"nll": [1.0, 2.5]}, "notes": ["backend cpu is missing: reference was used"],
    }  # fmt: skip
    return Record(**{**values, **changes})


def failed(**changes):
    return make(status="failed", error="OutOfPages: 3 pages are needed, 2 are free", metrics={}, **changes)


def seal(payload):
    """A file's bytes with a valid checksum, as another program could have written them."""
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return json.dumps({**payload, "checksum": hashlib.sha256(text.encode()).hexdigest()}).encode()


numbers = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(max_size=12)
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | numbers | texts
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)
metrics = st.builds(
    Metric, value=st.none() | numbers, low=st.none() | numbers, high=st.none() | numbers, unit=texts,
    n=st.none() | st.integers(0, 10**9),
)  # fmt: skip
records = st.builds(
    lambda config, outcome, **rest: make(config, status=outcome[0], error=outcome[1], **rest),
    config=st.dictionaries(texts, json_values, max_size=4),
    outcome=st.just(("ok", None)) | st.tuples(st.just("failed"), texts),
    env=st.dictionaries(texts, json_values, max_size=3),
    seed=st.integers(0, 2**31 - 1),
    seconds=st.floats(0, 1e6),
    metrics=st.dictionaries(st.sampled_from(sorted(METRICS)), metrics, max_size=4),
    tables=st.dictionaries(texts, st.lists(st.dictionaries(texts, scalars, max_size=3), max_size=3), max_size=2),
    samples=st.dictionaries(texts, st.lists(numbers, max_size=4), max_size=2),
    notes=st.lists(texts, max_size=2),
)


@settings(max_examples=60, deadline=None)
@given(records)
def test_a_written_record_reads_back_equal(tmp_path_factory, record):
    store = RecordStore(tmp_path_factory.mktemp("store"))
    assert read_record(store.write(record)) == record
    assert store.load_all() == [record]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    path = RecordStore(folder).write(make())
    return make(), path.read_bytes(), folder / "damaged.json"


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_changed_byte_is_refused_or_harmless(written, data):
    record, intact, path = written
    place = data.draw(st.integers(0, len(intact) - 1))
    value = data.draw(st.integers(0, 255))
    path.write_bytes(intact[:place] + bytes([value]) + intact[place + 1 :])
    assert_refused_or_equal(path, record)


def test_a_truncated_file_is_refused_at_every_length(written):
    record, intact, path = written
    for length in range(len(intact)):
        path.write_bytes(intact[:length])
        assert_refused_or_equal(path, record)


def assert_refused_or_equal(path, record):
    try:
        assert read_record(path) == record
    except RecordError as error:
        assert_one_line(error, str(path), "delete it and run again")


def assert_one_line(error, *parts):
    assert "\n" not in str(error)
    for part in parts:
        assert part in str(error)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["value", "low", "high"])
def test_a_metric_that_is_not_finite_is_refused_by_name(part, value):
    with pytest.raises(RecordError, match=f"metric kld_mean: {part}"):
        make(metrics={"kld_mean": Metric(**{"value": 1.0, part: value})})


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"samples": {"nll": [1.0, math.nan]}}, r"samples\.nll\[1\]"),
        ({"tables": {"by_depth": [{"recall": math.inf}]}}, r"tables\.by_depth\[0\]\.recall"),
        ({"env": {"load": math.nan}}, r"env\.load"),
        ({"seconds": math.inf}, "seconds"),
        ({"env": {"gpu": object()}}, r"env\.gpu is object"),
        ({"tables": {"layers": [{1: 2}]}}, r"tables\.layers\[0\] has the key 1"),
    ],
)
def test_what_json_cannot_hold_is_refused_by_place(change, where):
    with pytest.raises(RecordError, match=where):
        make(**change)


def test_numbers_that_became_bad_after_construction_are_refused_on_writing(tmp_path):
    record = make()
    record.samples["nll"].append(math.nan)
    with pytest.raises(RecordError, match=r"samples\.nll"):
        RecordStore(tmp_path).write(record)
    assert list(tmp_path.iterdir()) == []


def test_numpy_values_and_tuples_become_plain_json(tmp_path):
    record = make(
        metrics={"recall": Metric(value=np.float32(0.5))},
        tables={"layers": [{"layer": np.int64(3), "mse": np.float32(0.25)}]},
        samples={"nll": np.array([1.0, 2.0])},
        env={"shape": (1, 2)},
    )
    assert record.tables == {"layers": [{"layer": 3, "mse": 0.25}]}
    assert record.env == {"shape": [1, 2]}
    assert read_record(RecordStore(tmp_path).write(record)) == record


def test_unknown_metrics_are_refused_and_any_k_of_agreement_is_known():
    with pytest.raises(RecordError, match="unknown metric 'perplexty'"):
        make(metrics={"perplexty": Metric(value=1.0)})
    assert make(metrics={"agreement_at_3": Metric(value=1.0)})
    assert metric_info("agreement_at_3").direction == "higher"
    for name in ("agreement_at_0", "agreement_at_", "agreement_at_01", "agreement_at_1 "):
        with pytest.raises(RecordError):
            metric_info(name)


def test_unknown_keys_are_refused():
    with pytest.raises(ValidationError):
        make(colour="blue")
    with pytest.raises(ValidationError):
        Metric(value=1.0, mean=2.0)


def test_a_failure_states_its_error_and_a_success_has_none():
    with pytest.raises(RecordError, match="states its error"):
        make(status="failed")
    with pytest.raises(RecordError, match="states its error"):
        make(error="something")


def test_an_error_that_quotes_an_undecodable_name_can_be_recorded(tmp_path):
    record = make(status="failed", error="cannot read \udcff.txt")
    assert read_record(RecordStore(tmp_path).write(record)).error == "cannot read \\udcff.txt"


@pytest.mark.parametrize("text", ["2025-01-01T00:00:00", "2025-01-01T00:00:00+02:00", "yesterday", ""])
def test_a_time_that_is_not_utc_is_refused(text):
    with pytest.raises(RecordError, match="UTC"):
        make(started_at=text)


def test_utc_now_is_accepted():
    assert make(started_at=utc_now())


def test_a_digest_that_is_not_of_its_config_is_refused(tmp_path):
    with pytest.raises(RecordError, match="digest"):
        make(digest="0" * 12)
    path = tmp_path / "a.json"
    payload = make().model_dump()
    path.write_bytes(seal(payload))
    assert read_record(path) == make()
    path.write_bytes(seal({**payload, "config": {**CONFIG, "bits": 2}}))
    with pytest.raises(RecordError) as caught:
        read_record(path)
    assert_one_line(caught.value, str(path), "digest", "delete it and run again")


def test_another_schema_version_is_refused_with_its_number(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(seal({**make().model_dump(), "schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(RecordError, match=f"schema version {SCHEMA_VERSION + 1}"):
        read_record(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"{" * 100_000, b'{"seconds": NaN}', b'{"seconds": 1e999}', b"1" * 5000],
    ids=["empty", "no keys", "list", "null", "not utf-8", "deep", "NaN", "overflow", "huge integer"],
)
def test_a_foreign_file_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(RecordError) as caught:
        read_record(path)
    assert_one_line(caught.value, str(path), "delete it and run again")


def test_a_sealed_file_with_a_missing_key_names_the_key(tmp_path):
    path = tmp_path / "a.json"
    payload = make().model_dump()
    del payload["seconds"]
    path.write_bytes(seal(payload))
    with pytest.raises(RecordError, match="seconds"):
        read_record(path)


def test_find_returns_successes_only(tmp_path):
    store = RecordStore(tmp_path / "new" / "folder")
    digest = make().digest
    assert store.find(digest) is None
    store.write(failed())
    assert store.find(digest) is None
    store.write(make())
    assert store.find(digest) == make()


def test_a_success_removes_the_failure_and_a_failure_keeps_the_success(tmp_path):
    store = RecordStore(tmp_path)
    failure = store.write(failed())
    assert failure.name == f"{failed().digest}.failure.json"
    success = store.write(make())
    assert success == store.path(make().digest)
    assert list(tmp_path.iterdir()) == [success]
    store.write(failed())
    assert store.find(make().digest) == make()
    assert {record.status for record in store.load_all()} == {"ok", "failed"}


def test_a_record_under_another_digest_is_refused(tmp_path):
    store = RecordStore(tmp_path)
    other = make({"bits": 2})
    store.write(make()).rename(store.path(other.digest))
    with pytest.raises(RecordError, match=make().digest):
        store.find(other.digest)


@pytest.mark.parametrize("digest", ["", "../../../etc", "ABCDEFABCDEF", "0" * 13])
def test_a_name_that_is_no_digest_never_becomes_a_path(tmp_path, digest):
    with pytest.raises(RecordError, match="not a digest"):
        RecordStore(tmp_path).path(digest)


def test_load_all_is_sorted_by_file_name_and_sees_no_other_files(tmp_path):
    store = RecordStore(tmp_path)
    assert RecordStore(tmp_path / "absent").load_all() == []
    for bits in range(6):
        store.write(make({"bits": bits}))
    (tmp_path / "summary.json").write_text("not a record")
    (tmp_path / f".{'0' * 12}.json.1-2.tmp").write_text("left by a crash")
    digests = [record.digest for record in store.load_all()]
    assert digests == sorted(digest_of({"bits": bits}) for bits in range(6))


def test_load_all_refuses_a_folder_with_a_damaged_record(tmp_path):
    store = RecordStore(tmp_path)
    path = store.write(make())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RecordError, match="delete it and run again"):
        store.load_all()
    with pytest.raises(RecordError, match="delete it and run again"):
        store.find(make().digest)


def test_load_records_searches_folders_and_counts_each_file_once(tmp_path):
    one = RecordStore(tmp_path / "a" / "b").write(make())
    two = RecordStore(tmp_path / "c").write(make({"bits": 2}))
    copy = tmp_path / "copy of a record.json"
    copy.write_bytes(one.read_bytes())
    assert load_records(tmp_path) == [make(), make({"bits": 2})]
    assert load_records([two, tmp_path]) == [make({"bits": 2}), make()]
    assert load_records(str(copy)) == [make()]
    with pytest.raises(RecordError, match="no record or folder"):
        load_records(tmp_path / "absent")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    with pytest.raises(RecordError) as caught:
        RecordStore(blocker / "results").write(make())
    assert_one_line(caught.value, str(blocker), "cannot write")
    assert blocker.read_text() == "in the way"


def test_a_disk_that_fills_up_leaves_the_old_record_and_nothing_else(tmp_path):
    store = RecordStore(tmp_path)
    path = store.write(make())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))  # the kernel refuses the 65th byte of any file
    try:
        with pytest.raises(RecordError) as caught:
            store.write(make(seconds=9.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_one_line(caught.value, str(path), "cannot write")
    assert list(tmp_path.iterdir()) == [path]
    assert read_record(path) == make()


def test_an_interrupt_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        RecordStore(tmp_path).write(make())
    assert list(tmp_path.iterdir()) == []


def test_whether_a_folder_takes_records_is_known_before_there_are_any(tmp_path):
    store = RecordStore(tmp_path / "new" / "folder")
    store.check_writable()
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot write"):
        RecordStore(tmp_path / "file" / "folder").check_writable()


def test_an_unreadable_path_is_one_line(tmp_path):
    for path in (tmp_path, tmp_path / "absent.json", tmp_path / "null\0byte"):
        with pytest.raises(RecordError, match="cannot read the record"):
            read_record(path)


def test_every_metric_says_what_it_is():
    for name, info in METRICS.items():
        assert metric_info(name) is info
        assert info.description and info.label
        assert info.direction in ("lower", "higher", "none")
