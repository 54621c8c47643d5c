"""The parts that ask a model: end to end on the bundled one and short text; their pieces beside transformers' own."""

import csv

import pytest
import torch
from models import random_ids, tiny_lm, untouched

from pqkv.record import RecordStore
from pqkv.reproduce import Request, attention_variants
from pqkv.reproduce.attention_variants import Settings
from pqkv.reproduce.attention_variants.experiment import MODEL_LETTERS, PARTS
from pqkv.reproduce.attention_variants.kept import FIRST, important, kept_rows
from pqkv.reproduce.attention_variants.listings import scaling_factor
from pqkv.reproduce.attention_variants.reach import KINDS, REPORTED, LessonRotary, reach_rows, reaching
from pqkv.reproduce.attention_variants.stacked import stacked_rows
from pqkv.reproduce.attention_variants.windows import depth_rows, window_rows
from pqkv.reproduce.paired import paired_ratio
from pqkv.reproduce.parts import claims_of

pytestmark = pytest.mark.xdist_group("attention-variants-models")  # one process runs the cells, not each its own


GIVEN = Settings(
    text_context=256, text_windows=1, windows=(32,), window_bits=(0,), trained=64, reach_times=(1, 2),
    reach_windows=2, kept_context=128, kept_windows=4, keep_shares=(0.25,), kept_bits=(), decode_tokens=8,
    pooled_context=64, heads=8, head_dim=64, stacked_lengths=(256,), stacked_window=64, repeats=3,
)  # fmt: skip


def cells(folder, parts):
    return list(attention_variants.cells(GIVEN, Request(RecordStore(folder), parts=tuple(parts))))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attention-variants")
    return cells(folder, "defg"), folder


@pytest.fixture(scope="module")
def claims(run):
    return claims_of({name: PARTS[name] for name in "defg"}, run[0])


def test_every_cell_ran_and_every_part_has_claims(run, claims):
    records, folder = run
    assert all(record.status == "ok" for record in records), [r.error for r in records if r.status != "ok"]
    assert {row["part"] for row in claims} == set("defg")
    assert all(row["model"] == "reference" for row in claims if row["part"] in MODEL_LETTERS)
    attention_variants.derive(records, folder)
    for name in ("d_windows", "d_recall", "e_reach", "f_kept", "g_pooled"):
        with (folder / f"{name}.csv").open() as text:
            assert list(csv.DictReader(text)), name


def test_windows_with_and_without_first_tokens(run, claims):
    rows = window_rows(run[0])
    assert [(row["window"], row["sinks"]) for row in rows] == [(32, 0), (32, 4)]
    assert all(row["kld_mean"] > 0 for row in rows)
    depths = depth_rows(run[0])
    assert {row["depth"] for row in depths} <= {0.1, 0.3, 0.5, 0.7, 0.9}
    assert next(row for row in claims if row["claim"] == "a window's cache has a fixed size")["holds"] == "yes"
    assert next(row for row in claims if row["claim"] == "pages that come back equal a mask")["holds"] == "yes"


def test_every_embedding_at_every_length(run):
    rows = reach_rows(run[0])
    assert {(row["rope"], row["tokens"]) for row in rows} == {(kind, n) for kind in KINDS for n in (64, 128)}
    at = {(row["rope"], row["tokens"]): row["perplexity"] for row in rows}
    assert at[REPORTED, 64] == pytest.approx(at["none", 64])  # its factor is 1 up to the trained length
    assert at[REPORTED, 128] != pytest.approx(at["none", 128], rel=1e-6)
    assert at["linear", 64] > 1.1 * at["none", 64]


def test_kept_rows_have_their_bytes(run, claims):
    rows = {row["way"]: row for row in kept_rows(run[0])}
    assert set(rows) >= {"attention-sum", "recent", "random", "prompt cut and run again"}
    assert rows["recent"]["bytes_of_half_precision"] == 0.25
    (claim,) = [row for row in claims if row["claim"].startswith("importance says")]
    assert "times" in claim["ours"]


@pytest.mark.slow  # compiles three kernels of its own
def test_together_they_are_timed_in_one_race(tmp_path):
    records = cells(tmp_path, "h")
    assert {row["part"] for row in claims_of({"h": PARTS["h"]}, records)} == {"h"}
    attention_variants.derive(records, tmp_path)
    assert (tmp_path / "h_stacked.csv").exists()
    rows = stacked_rows(records)
    names = {row["techniques"] for row in rows}
    assert names == {
        "none", "heads", "window", "codes", "heads+window", "heads+codes", "window+codes", "heads+window+codes"
    }  # fmt: skip
    bytes_of = {row["techniques"]: row["read_bytes"] for row in rows if row["tokens"] == 256}
    assert bytes_of["none"] == 4 * bytes_of["heads"] == 4 * bytes_of["window"]


def test_the_lesson_turns_every_pair_by_one_factor():
    lm = reaching("reference", REPORTED, 64, 4.0)
    plain = reaching("reference", "none", 64, 4.0)
    rotary, own = lm.model.model.rotary_emb, plain.model.model.rotary_emb
    assert isinstance(rotary, LessonRotary)
    states, at = torch.zeros(1, 1, 256), torch.tensor([[0, 10, 64, 65, 200]])
    cos, sin = rotary(states, at)
    right_cos, right_sin = own(states, at)
    assert torch.allclose(cos[:, :3], right_cos[:, :3], atol=1e-6)
    assert torch.allclose(sin[:, :3], right_sin[:, :3], atol=1e-6)
    for i, position in ((3, 65), (4, 200)):
        angle = position * scaling_factor(position, 0.0, 4.0, 64, 64) * own.inv_freq.double()
        assert torch.allclose(cos[0, i, :32].double(), angle.cos(), atol=1e-6)


def test_importance_is_the_attention_that_transformers_gives():
    """Summed over rows, heads and layers, of attention weights that the eager implementation returns."""
    lm, ids = tiny_lm(), random_ids(80)
    found = important(lm, ids, 0.3)
    model = untouched(lm.model)
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        weights = model(ids, output_attentions=True).attentions
    sums = sum(layer[0].sum((0, 1)) for layer in weights)
    count = 24
    half = (count - FIRST + 1) // 2
    middle = range(FIRST, 80 - half)
    best = sorted(middle, key=lambda i: -float(sums[i]))[: count - FIRST - half]
    assert found.tolist() == sorted([*range(FIRST), *best, *range(80 - half, 80)])


def test_a_ratio_of_few_windows_has_no_interval(run):
    cells = [record for record in run[0] if record.kind == "eval" and record.config.get("keep")]
    value, low, high = paired_ratio(cells[0], cells[0])
    assert (value, low, high) == (1.0, 1.0, 1.0)
    short = [cell.model_copy(update={"samples": {"kld_mean": cell.samples["kld_mean"][:3]}}) for cell in cells[:2]]
    assert paired_ratio(*short)[1:] == (0.0, float("inf"))
