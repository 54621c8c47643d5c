"""The experiment end to end on a random model of head_dim 16: cells, tables, claims."""

import csv
from pathlib import Path

import numpy as np
import pytest
from models import sealed, write_corpus

from pqkv.config import CacheConfig
from pqkv.record import RecordStore
from pqkv.reproduce import Request, million
from pqkv.reproduce.million import experiment, pages, quality
from pqkv.reproduce.million.memory import rows_b
from pqkv.reproduce.million.pages import flush_rows, rows_e, slot_rows
from pqkv.reproduce.million.quality import errors_h, rows_a, rows_h
from pqkv.reproduce.million.settings import Settings

NAMES = [f"{i:02}.txt" for i in range(4)]
LAYERS, HEADS, DIM = 2, 2, 16
LENGTHS = (50, 200, 4000)
RAGGED = {"sequences": 3, "shortest": 150, "longest": 300, "seed": 0}


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder):
    """(records, folder) of a run that was told of one text that is not there."""
    folder = tmp_path_factory.mktemp("million")
    text = str(write_corpus(folder / "prose", NAMES))
    settings = Settings(
        model=str(tiny_folder), data=("missing.txt",), contexts=(220,), windows=2, shapes=((8, 4), (16, 4)),
        opq_shapes=((8, 4),), opq_contexts=(220,), calibration=str(write_corpus(folder / "calibration", NAMES, seed=1)),
        calibration_tokens=1000, calibration_context=200, samples=500, iterations=2, memory_shapes=((16, 4),),
        memory_models=("llama-3.1-8b",), lengths=LENGTHS, verify_up_to=200, page_shape=(16, 4), page_context=220,
        page_windows=2, page_sizes=(64, 128), residuals=(64, 128), prompt=140, decoded=128,
        ragged=(RAGGED["shortest"], RAGGED["longest"]), sequences=RAGGED["sequences"], pool_pages=(10, 100),
        pool_calls=100, pool_growths=1,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PQKV_CACHE", str(folder / "cache"))
        for module in (quality, pages):
            patch.setattr(module, "STDLIB", text)  # the standard library takes seconds to tokenize
        request = Request(RecordStore(folder / "results"), parts=("a", "b", "e", "h"))
        yield list(million.cells(settings, request)), folder / "results"


@pytest.fixture(scope="module")
def derived(run):
    folder = run[1]
    return {path.name: path for path in million.derive(RecordStore(folder).load_all(), folder)}


def table(path):
    with Path(path).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_text_that_is_not_there_fails_alone(run):
    records, folder = run
    failed = [record for record in records if record.status == "failed"]
    assert {(r.config["part"], r.config["mode"]) for r in failed} == {
        (part, mode) for part in "ah" for mode in ("all-coded", "exact-schedule")
    }
    assert all("missing.txt" in record.error for record in failed)
    assert not list(folder.glob("*.failure.json"))
    assert {"eval", "million-memory", "million-flushes", "million-slots", "million-allocation"} <= {
        record.kind for record in records if record.status == "ok"
    }


def test_both_settings_stand_beside_each_other_at_the_same_bits(run):
    rows = rows_a(run[0])
    assert [(row["setting"], row["mode"], row["bits"]) for row in rows] == [
        ("MILLION", "all-coded", 2), ("MILLION", "all-coded", 4),
        ("ours", "exact-schedule", 2), ("ours", "exact-schedule", 4),
    ]  # fmt: skip
    assert {row["sink_tokens"] for row in rows if row["setting"] == "MILLION"} == {0}
    assert {row["sink_tokens"] for row in rows if row["setting"] == "ours"} == {4}
    (exact,) = {row["perplexity_exact"] for row in rows}
    assert exact > 1
    assert all(row["kld_mean"] > 0 for row in rows if row["setting"] == "MILLION")


def test_every_kind_of_channels_stands_in_the_comparison(run):
    rows = rows_h(run[0])
    assert {(row["setting"], row["mode"]) for row in rows} == {
        ("neighbours", "exact-schedule"), ("OPQ", "exact-schedule"), ("balanced", "exact-schedule"),
        ("OPQ, queries' metric", "exact-schedule"), ("ours", "exact-schedule"),
        ("MILLION", "all-coded"), ("MILLION with OPQ", "all-coded"),
    }  # fmt: skip
    assert {row["bits"] for row in rows} == {2}
    kld = {row["setting"]: row["kld_mean"] for row in rows}
    assert len(set(kld.values())) == len(kld)
    errors = {row["setting"]: row for row in errors_h(run[0]) if row["bits"] == 2}
    assert set(errors) == set(kld)
    assert all(0 < row["keys_centred"] < 1 and 0 < row["values_centred"] < 1 for row in errors.values())


def bytes_by_hand(setting, tokens, layers, heads, dim):
    """4 bits, 16 entries: two codes to a byte; exact parts in bfloat16, centroids in float32."""
    ours = setting == "ours"
    sinks = 4 if ours else 0
    coded = sealed(tokens, CacheConfig(sink_tokens=sinks))
    codes = coded * 2 * layers * heads * dim // 2
    exact = 2 * layers * heads * dim * 2 * (128 + sinks)
    # ours: an order of channels for keys and values, weights for keys, a codebook a head; MILLION: two in all
    books = 2 * layers * heads * (16 * dim * 4 + dim * 8) + layers * heads * dim * 4 if ours else 2 * 16 * dim * 4
    return codes + exact + books + (4 * coded // 64 if ours else 0)


def test_memory_is_what_can_be_counted_by_hand_and_what_a_filled_cache_holds(run):
    rows = rows_b(run[0])
    geometries = {"tiny": (LAYERS, HEADS, DIM), "llama-3.1-8b": (32, 8, 128)}
    assert {(r["model"], r["setting"], r["tokens"]) for r in rows} == {
        (model, setting, tokens) for model in geometries for setting in ("MILLION", "ours") for tokens in LENGTHS
    }
    for row in rows:
        geometry = geometries[row["model"]]
        assert row["bytes_computed"] == bytes_by_hand(row["setting"], row["tokens"], *geometry)
        assert row["share"] == row["bytes_computed"] / (4 * row["tokens"] * np.prod(geometry))
        assert row["effective_bits"] == pytest.approx(16 * row["share"])
        filled = row["tokens"] <= 200
        assert row["bytes_measured"] == row["bytes_computed_for_them"]
        assert (row["bytes_measured"] is not None) == filled
        if filled:  # whole pages are all that codes take, so nothing waits but the pages that a pool grows by
            assert row["bytes_allocated"] >= row["bytes_measured"]
        if filled and row["model"] == "tiny":
            assert (row["layers_measured"], row["bytes_measured"]) == (LAYERS, row["bytes_computed"])
    assert not [note for r in run[0] if r.kind == "million-memory" for note in r.notes]


def test_flushes_are_those_of_a_window_that_is_played_through(run):
    found = {(row["page_size"], row["residual"]): row["flushes"] for row in flush_rows(run[0])}
    for (size, residual), flushes in found.items():
        config = CacheConfig(page_size=size, residual=residual)
        assert flushes == (sealed(268, config) - sealed(140, config)) // size
    assert found == {(64, 64): 2, (64, 128): 2, (128, 128): 1}  # the residual alone halves nothing
    assert [(r["page_size"], r["residual"], r["flushes"]) for r in rows_e(run[0])] == [
        (64, 64, 2), (64, 128, 2), (128, 128, 1)
    ]  # fmt: skip


def test_slots_without_a_token_are_those_that_counting_by_hand_finds(run):
    rows = {(row["cache"], row["page_size"]): row for row in slot_rows(run[0])}
    lengths = np.random.default_rng(0).integers(150, 301, 3)
    assert set(rows) == {("coded", 64), ("coded", 128), ("exact", 64), ("exact", 128)}
    for (cache, size), row in rows.items():
        assert row["tokens"] == lengths.sum()
        if cache == "exact":
            slots = sum(-(-n // size) * size for n in lengths)
            assert row["unused_in_pages"] == pytest.approx(1 - lengths.sum() / slots)
            assert row["unused_in_residual"] is None
        else:
            config = CacheConfig(page_size=size)
            coded = [sealed(n, config) for n in lengths.tolist()]
            slots = sum(coded)
            assert row["unused_in_pages"] == 0
            held = sum(n - 4 - c for n, c in zip(lengths.tolist(), coded, strict=True))
            assert row["unused_in_residual"] == pytest.approx(1 - held / (3 * 128))
        assert row["slots_in_pages"] == slots
        assert row["free_of_pool"] == 1 - slots / size / row["pool_pages"]


def test_claims_name_their_part_and_say_whether_they_hold(derived):
    rows = table(derived["claims.csv"])
    assert {row["part"] for row in rows} == set("abeh")
    assert {row["holds"] for row in rows} <= {"yes", "no", "not known"}
    by_claim = {row["claim"]: row for row in rows}
    halved = by_claim["a residual of 128 halves the flushes of one of 64, pages of 64"]
    assert (halved["theirs"], halved["ours"][:5], halved["holds"]) == ("0.5x", "1.00x", "no")
    assert by_claim["pages of 128 halve the flushes of pages of 64, residual 128"]["holds"] == "yes"
    assert by_claim["a pool of 2.44 MB"]["holds"] == "no"
    assert by_claim["a pool of 2.44 MB"]["ours"].startswith(
        "1,000 x 8 x 64 bytes are 0.488 MiB; 2.44 MiB are 5.0 times"
    )


def test_tables_and_pictures_come_from_records_alone_in_any_order(run, derived, tmp_path, monkeypatch):
    records = RecordStore(run[1]).load_all()
    again = million.derive(records[::-1], tmp_path)
    assert {path.name for path in again} == set(derived)
    assert all(path.read_bytes() == derived[path.name].read_bytes() for path in again)
    assert {f"{name}.csv" for name in (
        "a_quality", "a_outliers", "b_memory", "e_pages", "e_flushes", "e_slots", "e_allocation", "e_pool_sizes",
        "h_opq", "h_errors",
    )} | {f"{name}.png" for name in (
        "a_kld_mean", "a_perplexity_ratio", "b_memory", "e_kld_mean", "e_effective_bits", "e_flushes_per_token",
        "e_allocation", "h_opq_kld",
    )} <= set(derived)  # fmt: skip


def test_records_of_some_parts_make_the_tables_of_those(run, tmp_path, monkeypatch):
    only = [record for record in run[0] if record.kind == "million-allocation"]
    assert {path.name for path in million.derive(only, tmp_path)} == {
        "claims.csv", "claims.md", "e_allocation.csv", "e_allocation.png"
    }  # fmt: skip


def test_only_the_parts_that_are_asked_for_run(tmp_path, monkeypatch):
    ran = []

    def fake(letter):
        return experiment.Part(letter, lambda lab: ran.append(letter) or iter(()), lambda records: [])

    monkeypatch.setattr(experiment, "PARTS", tuple(map(fake, "abc")))
    for parts in ((), ("b",), ("c", "a")):
        assert list(million.cells(Settings(), Request(RecordStore(tmp_path), parts=parts))) == []
    assert ran == ["a", "b", "c", "b", "a", "c"]
    assert million.LETTERS == "abcdefghij"
