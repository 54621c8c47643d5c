"""The experiment end to end on a small shape: what was counted, what is claimed of it, what a failed step leaves."""

import csv

import pytest

from pqkv.record import RecordStore
from pqkv.reproduce import Request, incremental_decode
from pqkv.reproduce.incremental_decode import Settings
from pqkv.reproduce.incremental_decode.experiment import PARTS
from pqkv.reproduce.incremental_decode.race import REPORTED, race_rows
from pqkv.reproduce.incremental_decode.state import size_rows
from pqkv.reproduce.incremental_decode.steps import RESIDENT, TOLERANCE, TRIP, step_rows
from pqkv.reproduce.parts import claims_of

SHAPE = {"layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 32, "max_len": 48}
LENGTHS = (1, 31, 32, 33, 48)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(records, folder)."""
    folder = tmp_path_factory.mktemp("incremental")
    settings = Settings(**SHAPE, lengths=LENGTHS, raced=(32, 64, 128), repeats=3)
    return list(incremental_decode.cells(settings, Request(RecordStore(folder)))), folder


@pytest.fixture(scope="module")
def claims(run):
    return {row["claim"]: row for row in claims_of(PARTS, run[0])}


def test_every_cell_ran(run):
    assert [record.error for record in run[0] if record.status != "ok"] == []


def test_what_a_step_moves_is_what_its_listing_says(run):
    rows = {(row["decoder"], row["length"]): row for row in step_rows(run[0]) if row["device"] == "cpu"}
    assert set(rows) == {(name, n) for name in (TRIP, RESIDENT) for n in LENGTHS}
    H, Hkv, D, layers = 4, 2, 32, 3
    for length in LENGTHS:
        trip, resident = rows[TRIP, length], rows[RESIDENT, length]
        back = 2 * length * H * D * 4
        above = 4 * length * H * D * 4 if length >= D else 0  # Q, K, V up and the output down
        assert trip["bytes_per_token"] == layers * (back + above + 2 * H * D * 4)
        assert trip["copies_per_token"] == layers * (4 * H + (4 if length >= D else 0))
        assert resident["bytes_per_token"] == layers * 4 * (2 * Hkv * D + 2 * H * D)
        assert resident["copies_per_token"] == layers * (2 * Hkv + 2)
        assert (resident["allocations"], resident["synchronizations"], resident["launches"]) == (2, 1, 1)
        assert trip["launches"] == (length >= D)
        assert max(trip["error"], resident["error"]) <= TOLERANCE


def test_caches_take_what_their_tensors_take(run):
    sizes = {(row["cache"], row["length"]): row["bytes"] for row in size_rows(run[0])}
    token = 3 * 2 * 2 * 32 * 4  # layers, sides, KV heads, channels, bytes
    assert sizes["static", 1] == sizes["static", 48] == 48 * token
    assert sizes["static, a KV head for each query head", 33] == 2 * 48 * token
    assert sizes["growing (DynamicCache)", 33] == 33 * token
    assert 64 * token <= sizes["paged, 64 tokens a page", 33] <= 64 * token + 1000


def test_verdicts(claims):
    holds = {text: row["holds"] for text, row in claims.items()}
    assert holds["the bytes derived from the listings are those that were copied"] == "yes"
    assert holds["PAR-018: only the new K/V vectors are transferred to the GPU"] == "no"
    assert holds["PAR-020 eliminates the transfer"] == "yes"
    assert holds["PAR-018 serves grouped KV heads"] == "no"
    for decoder in (TRIP, RESIDENT):
        assert holds[f"{decoder}: a step whose launch fails can be tried again"] == "no"
        assert holds[f"{decoder}: a step whose copy between key and value fails can be tried again"] == "yes"
        assert holds[f"{decoder}: a token past max_len changes nothing"] == "yes"
    assert holds["a full static store of pqkv's changes nothing"] == "yes"
    assert "36 tokens where there are 36" in claims[
        "PAR-020: a step whose copy between key and value fails can be tried again"]["ours"]  # fmt: skip
    assert claims["PAR-020: a step whose launch fails can be tried again"]["ours"] == "37 tokens where there are 36"
    # (L D + D L (L + 1) / 2) / L of 31 tokens, D 32
    assert claims["PAR-018: exponentials below head_dim tokens"]["ours"].startswith("543 for each that one row needs")


def test_every_way_was_raced_at_every_length_it_can_be(run):
    rows = race_rows(run[0])
    assert {row["way"] for row in rows if row["length"] == 32} == {
        *REPORTED.values(),
        "split",
        "sdpa on a static store",
    }
    assert {row["length"] for row in rows} == {32, 64, 128}
    assert all(row["median_ms"] > 0 for row in rows)


def test_tables_and_pictures_come_from_records_alone(run, tmp_path):
    files = {path.name: path for path in incremental_decode.derive(RecordStore(run[1]).load_all(), tmp_path)}
    assert {"claims.csv", "claims.md", "a_steps.csv", "b_sizes.csv", "c_race.csv", "a_bytes.png", "c_race.png"} == set(
        files
    )
    with files["claims.csv"].open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["part"] for row in rows} == set("abc")
    assert all((row["gpu"] == "") == ("NVIDIA" not in row["ours"]) for row in rows)
    assert {row["holds"] for row in rows} == {"yes", "no", "not known", "not measurable here", "nothing claimed"}


@pytest.mark.parametrize(
    ("given", "message"),
    [({"lengths": (5000,)}, "more than max_len"), ({"kv_heads": 5}, "evenly"), ({"raced": ()}, "at least one")],
)
def test_settings_that_make_no_sense_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Settings(**given)
