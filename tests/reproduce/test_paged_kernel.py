"""The experiment end to end: the matrix against brute force of its own, reductions by hand, verdicts."""

import csv

import numpy as np
import pytest

from pqkv.record import RecordStore
from pqkv.reproduce import Request, paged_kernel
from pqkv.reproduce.paged_kernel import Settings
from pqkv.reproduce.paged_kernel import checks as own
from pqkv.reproduce.paged_kernel.checks import TOLERANCE, cases_of, wave_rows
from pqkv.reproduce.paged_kernel.emulated import FAULTS, paged_attention, reduced, right
from pqkv.reproduce.paged_kernel.experiment import PARTS
from pqkv.reproduce.paged_kernel.sizes import race_rows
from pqkv.reproduce.parts import claims_of

SETTINGS = Settings(head_dims=(16,), block_size=4, pools=(4, 8), raced=(16, 32), race_heads=4, race_head_dim=32,
                    repeats=3)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paged-kernel")
    return list(paged_kernel.cells(SETTINGS, Request(RecordStore(folder)))), folder


@pytest.fixture(scope="module")
def claims(run):
    return {row["claim"]: row for row in claims_of(PARTS, run[0])}


def test_every_cell_ran(run):
    assert [record.error for record in run[0] if record.status != "ok"] == []


def test_the_kernel_without_a_fault_is_attention():
    for cases in cases_of(SETTINGS, 16).values():
        for case in cases:
            exact = right(case)
            assert np.isfinite(exact).all()
            np.testing.assert_allclose(paged_attention(case), exact, atol=1e-5)


def test_each_fault_is_what_it_is_called():
    (case,) = cases_of(SETTINGS, 16)["mqa"]
    n, heads, D = case.query.shape
    weights = np.exp(case.query[0, 1] @ case.keys[0, 0, 0] / D**0.5)  # of a row that sees itself alone
    np.testing.assert_allclose(paged_attention(case, "no maximum")[0, 1], case.values[0, 0, 0], rtol=1e-4)
    np.testing.assert_allclose(paged_attention(case, "no normalisation")[0], right(case)[0], atol=1e-5)  # one weight, 1
    assert weights > 0
    other = paged_attention(case, "wrong KV head")
    np.testing.assert_allclose(other[0, 1], case.values[0, 0, 1], rtol=1e-4)  # 1 % 2 in place of 1 // 4
    open_ended = paged_attention(case, "no causal mask")
    np.testing.assert_allclose(open_ended[-1], right(case)[-1], atol=1e-5)
    assert np.abs(open_ended[0] - right(case)[0]).max() > 0.1
    (several,) = cases_of(SETTINGS, 16)["multiple_blocks"]
    shifted = paged_attention(several, "offset + 1")
    np.testing.assert_allclose(shifted[0, 0], several.values[2, 1, 0], rtol=1e-4)  # the first token is in block 2
    identity = paged_attention(several, "identity table")
    np.testing.assert_allclose(identity[0, 0], several.values[0, 0, 0], rtol=1e-4)
    assert set(FAULTS) == {"none", "no normalisation", "no maximum", "identity table", "offset + 1", "offset - 1",
                           "wrong KV head", "no causal mask"}  # fmt: skip
    assert (n, heads) == (4, 8)


def test_the_matrix(run):
    seen = {(row["test"], row["fault"]): row["seen"] for row in own.test_rows(run[0])}
    assert len(seen) == 6 * len(FAULTS)
    assert not any(found for (test, fault), found in seen.items() if fault in ("none", "no maximum"))
    assert not any(found for (test, _), found in seen.items() if test in ("kernel_compilation", "invalid_input"))
    assert [test for (test, fault), found in seen.items() if fault == "identity table" and found] == ["multiple_blocks"]
    assert [test for (test, fault), found in seen.items() if fault == "wrong KV head" and found] == ["mqa"]


def test_reductions_by_hand():
    values = np.arange(1, 129, dtype=np.float32)
    right_sum = values.sum()
    assert reduced(values, 32, 32, largest=False)[0] == right_sum
    assert reduced(values, 64, 32, largest=False)[0] == right_sum
    assert reduced(values, 64, 64, largest=False)[0] == right_sum
    # lane ^ 32 is outside a wave of 32: a lane adds itself, and the first of every 64 writes twice its own wave's sum
    assert reduced(values, 32, 64, largest=False)[0] == 2 * (values[:32].sum() + values[64:96].sum())
    assert reduced(values, 32, 64, largest=True)[0] == 96
    assert reduced(values, 64, 64, largest=True)[0] == 128


def test_verdicts(run, claims):
    holds = {text: row["holds"] for text, row in claims.items()}
    assert holds["the tests pass a sound kernel, held to float64"] == "yes"
    assert holds["six comprehensive tests"] == "no"
    assert "6 of 7 faults; none sees no maximum" in claims["six comprehensive tests"]["ours"]
    assert holds["comprehensive input validation"] == "no"
    assert "let through 5 of 6" in claims["comprehensive input validation"]["ours"]
    assert holds["pqkv's indexed attention refuses each by name"] == "yes"
    assert claims["lines of the files"]["ours"] == "mod.rs 5 by its own line numbers, 955 in all"
    waves = {row: holds[row] for row in holds if row.startswith("a reduction for waves")}
    assert [row for row, held in waves.items() if held == "no"] == [
        "a reduction for waves of 64 on a device of 32 (an RX 7900 XT's default)"
    ]
    assert len(waves) == 4
    assert claims["an index and an offset for every position"]["ours"] == (
        "8 bytes a token where a table of blocks of 4 takes 1"
    )
    # two sides of 8 blocks of 4 x 8 heads x 64 channels in float32
    assert f"8 blocks {2 * 8 * 4 * 8 * 64 * 4 / 2**20:,.0f} MiB" in claims[
        "the fallback copies all blocks to the host"]["ours"]  # fmt: skip
    assert "68.7 GB a layer in fp16 of 128 channels, 34.4 with" in claims["a block for each (position, head)"]["ours"]


def test_what_is_raced_agrees(run):
    rows = race_rows(run[0])
    assert {row["tokens"] for row in rows} == {16, 32}
    assert len({row["way"] for row in rows}) == 3
    assert all(row["apart"] < TOLERANCE and row["median_ms"] > 0 for row in rows)


def test_waves_are_right_but_where_one_is_taken_for_two(run):
    for row in wave_rows(run[0]):
        wrong = (row["device_wave"], row["taken_wave"]) == (32, 64)
        if not wrong:
            assert row["times_right"] == pytest.approx(1, rel=1e-5)


def test_tables_and_pictures_come_from_records_alone(run, tmp_path):
    files = {path.name: path for path in paged_kernel.derive(RecordStore(run[1]).load_all(), tmp_path)}
    assert set(files) == {"claims.csv", "claims.md", "a_tests.csv", "c_waves.csv", "e_prefill.csv", "e_prefill.png"}
    with files["claims.csv"].open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["part"] for row in rows} == set("abcde")
    assert all((row["gpu"] == "") == ("NVIDIA" not in row["ours"]) for row in rows)


@pytest.mark.parametrize(
    ("given", "message"), [({"heads": 3}, "evenly"), ({"raced": ()}, "at least one"), ({"pools": (0,)}, "at least 1")]
)
def test_settings_that_make_no_sense_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Settings(**given)
