"""The experiment end to end on small shapes; its listings by hand; each defect of the pseudocode seen."""

import csv

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pqkv.record import RecordStore
from pqkv.reproduce import Request, attention_variants
from pqkv.reproduce.attention_variants import Settings
from pqkv.reproduce.attention_variants.experiment import PARTS
from pqkv.reproduce.attention_variants.flash import DEFECTS, exact, online, reported_kernel, standard
from pqkv.reproduce.attention_variants.listings import compressed, scaling_factor, shifted
from pqkv.reproduce.attention_variants.sharing import repeated, sharing_rows
from pqkv.reproduce.attention_variants.softmax import TOLERANCE, memory_rows
from pqkv.reproduce.parts import claims_of
from pqkv.speed.baselines import grouped_sdpa


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attention-variants")
    given = Settings(layers=2, heads=8, kv_heads=(8, 2, 1), head_dim=16, lengths=(256, 1024), defect_lengths=(40, 256),
                     kernel_lengths=(1, 32, 33), shared_lengths=(64, 128), repeats=3)  # fmt: skip
    return list(attention_variants.cells(given, Request(RecordStore(folder), parts=tuple("abc")))), folder


@pytest.fixture(scope="module")
def claims(run):
    return {row["claim"]: row for row in claims_of({name: PARTS[name] for name in "abc"}, run[0])}


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 90), st.integers(1, 40), st.integers(0, 5))
def test_standard_and_online_are_attention(rows, block, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (3 * torch.randn(rows, 8, generator=generator) for _ in range(3))
    right = torch.stack([
        (k[: i + 1].double() @ q[i].double() / 8**0.5).softmax(0) @ v[: i + 1].double() for i in range(rows)
    ])  # fmt: skip
    assert torch.allclose(exact(q, k, v), right, atol=1e-9)
    for found in (standard(q, k, v), online(q, k, v, block)):
        assert torch.allclose(found.double(), right, atol=2e-5)


@pytest.mark.parametrize("defect", [d for d in DEFECTS if d != "none"])
def test_each_defect_shows(defect):
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(200, 16, generator=generator) for _ in range(3)]
    found = online(*drawn, block=64, defect=defect)
    assert (found - exact(*drawn)).abs().max() > 0.01


def test_the_kernel_as_listed():
    generator = np.random.default_rng(0)
    query, keys, values = generator.standard_normal(32), *generator.standard_normal((2, 64, 32))
    one, wrong = reported_kernel(query, keys[:1], values[:1], 32)
    assert one[0] == pytest.approx(values[0, 0])  # thread 0 alone has a token, and loads its channel 0
    assert np.isnan(one[1:]).all()
    assert wrong == ["__syncthreads inside the branch kv_idx < kv_size"]
    # 32 tokens: K_shared is the diagonal, one score for all, V_shared its diagonal with weight 1
    whole, wrong = reported_kernel(query, keys[:32], values[:32], 32)
    np.testing.assert_allclose(whole, np.diagonal(values[:32]))
    assert wrong == []
    # two blocks: every thread weighs each block's diagonal by its one score, and rescales nothing
    both, _ = reported_kernel(query, keys, values, 32)
    scores = [query @ np.diagonal(keys[i : i + 32]) / 32**0.5 for i in (0, 32)]
    first, second = np.exp(0.0), np.exp(scores[1] - max(scores))
    mixed = first * np.diagonal(values[:32]) + second * np.diagonal(values[32:])
    np.testing.assert_allclose(both, mixed / (first + second))
    _, wrong = reported_kernel(query, keys, values, 128)
    assert wrong[0].startswith("128 threads write scores_shared[32], and each token counts 4 times")


def test_the_window_that_shifts():
    rows, head = shifted(1000, 100, 1024)
    assert head == 948
    assert rows[:924].tolist() == list(range(76, 1000))
    assert (rows[924:948] == -1).all()
    assert shifted(10, 5, 1024)[1] == 15
    with pytest.raises(ValueError, match="memmove of -952 rows"):
        shifted(0, 3000, 1024)


def test_the_factor_and_the_choice():
    assert scaling_factor(2048, 1e4, 2.0, 2048, 128) == 1.0
    assert scaling_factor(2049, 1e4, 2.0, 2048, 128) == pytest.approx(2.0 ** (-2 / 128), rel=1e-4)
    assert scaling_factor(4096, 5e5, 2.0, 2048, 128) == scaling_factor(4096, 1e4, 2.0, 2048, 128)
    tokens, importance = np.array([10, 11, 12, 13]), np.array([0.1, 0.9, 0.3, 0.5])
    assert compressed(tokens, importance, 2).tolist() == [11, 13]
    assert compressed(tokens, importance, 4).tolist() == [10, 11, 12, 13]
    assert compressed(tokens, importance, 6).tolist() == [10, 10, 10, 11, 12, 13]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_repeated_heads_are_grouped_rows(kv_heads):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, kv_heads, 4 // kv_heads, 8, generator=generator)
    keys, values = (torch.randn(1, kv_heads, 20, 8, generator=generator) for _ in range(2))
    assert torch.allclose(
        repeated(query, keys, values).flatten(), grouped_sdpa(query, keys, values).flatten(), atol=1e-6
    )


def test_every_cell_ran(run):
    assert [record.error for record in run[0] if record.status != "ok"] == []


def test_bytes_are_those_of_the_operations(run):
    peak = {(row["way"], row["rows"]): row["peak_bytes"] for row in memory_rows(run[0])}
    scores = 1024 * 1024 * 4
    assert 2 * scores <= peak["standard", 1024] <= 4 * scores
    assert peak["online", 1024] < scores / 4
    assert peak["sdpa", 1024] is None  # what a fused operation takes inside is not seen


def test_verdicts(claims):
    holds = {text: row["holds"] for text, row in claims.items()}
    assert holds["flash attention needs O(N) bytes in place of O(N^2)"] == "yes"
    assert holds["flash attention saves 50% of the memory"] == "no"
    assert holds["the online softmax, written right"] == "yes"
    assert all(holds[f"its pseudocode: {d}"] == "no" for d in DEFECTS if d != "none")
    assert holds["its CUDA kernel, 32 threads"] == holds["its CUDA kernel, 128 threads"] == "no"
    assert "keeps 924, leaves the head at 948 in place of 1,024" in claims[
        "llama_kv_cache_update_swa keeps the newest tokens"]["ours"]  # fmt: skip
    assert "moves 948 rows of which 24 were never written" in claims[
        "llama_kv_cache_update_swa keeps the newest tokens"]["ours"]  # fmt: skip
    assert claims["a window of 1,024: token 1500 sees [476 ... 1500]"]["ours"] == "1,025 tokens; 1,024 begin at 477"
    assert "537 MB a token" in claims["shifting a window is how a fixed cache is kept"]["ours"]
    assert holds["yarn_get_scaling_factor extends RoPE"] == "no"
    assert "[0, 0, 0, 0, 1, 2, 3, 4]" in claims["compress_context keeps the most important tokens"]["ours"]


def test_the_report_shapes_come_to_the_bytes_that_are_claimed(tmp_path):
    records = list(attention_variants.cells(Settings(), Request(RecordStore(tmp_path), parts=("b",))))
    rows = {row["claim"]: row["ours"] for row in claims_of(PARTS, records)}
    scores = rows["16 MB of scores a layer at 2,048 tokens, 512 MB of a model"]
    assert scores.startswith("16 MiB are one head's; a layer of 32 heads takes 512 MiB, all 32 layers at once 16 GiB")
    assert scores.endswith("256 KiB a layer")
    shared = rows["GQA saves 75% of the cache"]
    for said in ("32 KV heads 2,048 MiB, 0.0% less", "8 KV heads 512 MiB, 75.0% less", "4 KV heads 256 MiB, 87.5% less",
                 "1 KV heads 64 MiB, 96.9% less"):  # fmt: skip
        assert said in shared


def test_tables_and_pictures_come_from_records_alone(run, tmp_path):
    files = {path.name: path for path in attention_variants.derive(RecordStore(run[1]).load_all(), tmp_path)}
    assert {
        "claims.csv",
        "claims.md",
        "a_memory.csv",
        "a_defects.csv",
        "a_kernel.csv",
        "c_sharing.csv",
        "a_memory.png",
    } == set(files)
    with files["claims.csv"].open(encoding="utf-8") as file:
        assert {row["part"] for row in csv.DictReader(file)} == set("abc")
    assert {row["tokens"] for row in sharing_rows(run[0])} == {64, 128}
    assert TOLERANCE == 2e-5


@pytest.mark.parametrize(("change", "message"), [({"kv_heads": (5,)}, "evenly"), ({"lengths": ()}, "at least one")])
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Settings(**change)
