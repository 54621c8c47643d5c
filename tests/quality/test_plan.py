"""What is said of a grid before it runs: its cells, their memory, their records."""

import json
import logging

import pytest
import torch
from grids import run
from models import sampled_books, tiny_lm

from pqkv.config import EvalConfig
from pqkv.errors import ConfigError, ContaminationError, PqkvError
from pqkv.quality.cells import Cell, Coding
from pqkv.quality.memory import estimate, estimate_floor, peak_resident
from pqkv.quality.noise_floor import Floor
from pqkv.quality.plan import plan
from pqkv.record import RecordStore

GIB = 1 << 30


def cell(mode="exact-schedule", context=512, books=None, bits=4.0):
    return Cell(Coding(bits, books), mode, context)


def shaped(vocabulary=97, dtype=torch.float32):
    """A random Gemma 3: one coded layer behind two of sliding windows."""
    return tiny_lm(
        "gemma3_text", dtype=dtype, vocab_size=vocabulary, sliding_window=64, max_position_embeddings=1 << 16,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    )  # fmt: skip


def expected(lm, windows=1, *, of=None, **more):
    of = of or cell(**more)
    return estimate(lm, EvalConfig(context=(of.context,), mode=(of.mode,), decode_tokens=16), of, windows)


def test_a_plan_names_the_cells_that_run_and_those_that_have_a_record(base, lm, tmp_path):
    store = RecordStore(tmp_path)
    grid = {**base, "context": (60, 150), "mode": ("exact-schedule", "token"), "metrics": ("kld",)}
    ran = run({**grid, "context": (150,)}, store)
    files = sorted(path.name for path in tmp_path.iterdir())
    planned = plan(EvalConfig(**grid), lm, store)
    assert [(*(p.job.config[key] for key in ("context", "mode", "windows")), p.recorded) for p in planned] == [
        (60, "exact-schedule", 2, False), (60, "token", 2, False),
        (150, "exact-schedule", 2, True), (150, "token", 2, True),
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    assert all(p.job.trained for p in planned)
    assert planned[0].job.label.startswith("1.25 bits, exact-schedule")
    (row,) = ran[0].tables["memory_plan"]
    assert row["estimated_peak"] == planned[2].job.estimate.peak > 0
    assert row["peak_rss_growth"] is None or row["peak_rss_growth"] >= 0
    assert {p.recorded for p in plan(EvalConfig(**grid), lm)} == {None}


def test_a_plan_lists_the_jobs_that_run_each_with_its_record(base, lm, tmp_path):
    """Layers alone and noise floors among them, in the order of the records."""
    store = RecordStore(tmp_path)
    grid = {
        **base, "context": (60, 150), "mode": ("exact-schedule", "all-coded", "decode"), "metrics": ("kld",),
        "decode_tokens": 20, "noise_floor": True, "by_layer": True,
    }  # fmt: skip
    before = plan(EvalConfig(**grid), lm, store)
    records = run(grid, store)
    after = plan(EvalConfig(**grid), lm, store)
    assert [p.job.kind for p in before].count("eval-by-layer") == 4
    assert [p.job.config["floor"] for p in before if "floor" in p.job.config] == 2 * [
        "bfloat16 arithmetic", "float16 arithmetic", "bfloat16 cache", "float16 cache",
    ]  # fmt: skip
    for planned in (before, after):
        assert [(p.job.kind, p.job.config) for p in planned] == [(r.kind, r.config) for r in records]
    assert ({p.recorded for p in before}, {p.recorded for p in after}) == ({False}, {True})
    for planned, record in zip(after, records, strict=True):
        (row,) = record.tables["memory_plan"]
        assert row["estimated_peak"] == planned.job.estimate.peak > 0


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        ({"backend": "abacus"}, "abacus"),
        ({"backend": "fault:none/32", "mode": ("chunk",)}, "a fault of decoding"),
        ({"bos": "always", "data": "nowhere"}, "nowhere"),
    ],
)
def test_a_plan_refuses_what_a_run_would(base, lm, wrong, cause):
    for refuse in (lambda grid: plan(EvalConfig(**grid), lm), run):
        with pytest.raises(PqkvError, match=cause):
            refuse({**base, **wrong})


def test_a_plan_refuses_contaminated_text(base, lm, calibration):
    with pytest.raises(ContaminationError):
        plan(EvalConfig(**{**base, "data": str(calibration)}), lm)


def test_a_plan_trains_nothing(base, lm, tmp_path, monkeypatch):
    monkeypatch.setenv("PQKV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pqkv.lm.defaults.train", lambda *args: pytest.fail("codebooks were trained"))
    grid = {**base, "codebooks": (), "bits": (4, 2), "mode": ("exact-schedule", "token")}
    planned = plan(EvalConfig(**grid), lm, RecordStore(tmp_path / "records"))
    assert [(p.job.config["bits"], p.job.config["mode"], p.job.trained, p.recorded) for p in planned] == [
        (bits, mode, False, False) for bits in (4, 2) for mode in ("exact-schedule", "token")
    ]
    assert all(p.job.estimate.peak > 0 for p in planned)
    assert planned[0].job.label == "4 bits, exact-schedule, 150 tokens"


def test_a_plan_refuses_contexts_that_the_model_has_no_positions_for(base, lm):
    with pytest.raises(ConfigError, match="beyond the 2048 positions"):
        plan(EvalConfig(**{**base, "context": (4096,)}), lm)


def test_an_estimate_of_a_large_vocabulary_is_that_of_a_tile_and_not_of_its_logits():
    wide = expected(shaped(262_144), context=8192)
    assert wide.comparison < 0.3 * GIB
    assert wide.peak < 1.5 * GIB < 8192 * 262_144 * 4


def test_each_term_follows_what_it_is_made_of():
    lm = shaped()
    short, long = (expected(lm, context=n) for n in (1024, 4096))
    assert long.exact_states == 4 * short.exact_states == 4096 * 64 * 4
    assert long.coded_run > 4 * short.coded_run  # masks of the sliding layers grow with the square
    assert expected(lm, 4, context=4096).exact_states == 4 * long.exact_states
    assert expected(lm, context=4096).exact_forward == expected(lm, 4, context=4096).exact_forward  # one at a time
    assert expected(lm, mode="token", context=4096).coded_run < long.coded_run
    assert expected(lm, mode="decode", context=4096).exact_states == 16 * 64 * 4
    assert expected(shaped(dtype=torch.bfloat16), context=4096).exact_states == long.exact_states // 2


def test_windows_are_compared_one_by_one():
    lm = shaped(4096)
    one, many = (expected(lm, windows, context=512, mode="token") for windows in (1, 8))
    states = 512 * 64 * 4
    assert many.comparison - one.comparison == 7 * states


def test_a_floor_of_arithmetic_takes_two_more_models():
    lm = shaped(4096)
    weights = sum(weight.numel() for weight in lm.model.parameters())
    found = {kind: estimate_floor(lm, Floor(kind, "bfloat16"), 512, 4) for kind in ("arithmetic", "cache")}
    assert (found["arithmetic"].copies, found["cache"].copies) == (6 * weights, 0)
    assert found["arithmetic"].peak > found["cache"].peak + 5 * weights
    long = estimate_floor(lm, Floor("cache", "bfloat16"), 4096, 4)
    assert long.coded_run > 4 * found["cache"].coded_run  # masks of the sliding layers grow with the square
    double = estimate_floor(shaped(4096, torch.float64), Floor("arithmetic", "bfloat16"), 512, 4)
    assert double.copies == 8 * weights  # the copy that is rounded is the largest


def test_a_floor_that_is_expected_not_to_fit_says_so(base, monkeypatch):
    monkeypatch.setattr("pqkv.quality.memory.available_memory", lambda: 1000)
    records = run({**base, "metrics": ("kld",), "noise_floor": True, "by_layer": True})
    assert len(records) == 6
    for record in records:
        assert sum("beside the weights are expected" in note for note in record.notes) == 1


def test_codebooks_that_are_not_trained_yet_are_estimated_by_their_bits():
    lm = shaped()
    books = sampled_books(lm, num_subspaces=8, nbits=8)
    there = expected(lm, of=cell("token", 4096, books, books.code_bits))
    bits = expected(lm, of=cell("token", 4096, None, books.code_bits))
    exact = expected(lm, of=cell("token", 4096, None, 0))
    without = there.coded_run - 5 * books.nbytes() // 4
    assert bits.coded_run == pytest.approx(without, rel=0.1)
    assert exact.coded_run > bits.coded_run


def test_a_cell_that_is_expected_not_to_fit_is_told_before_it_runs(base, caplog, monkeypatch):
    monkeypatch.setattr("pqkv.quality.memory.available_memory", lambda: 1000)
    told = []
    with caplog.at_level(logging.WARNING, logger="pqkv"):
        (record,) = run({**base, "metrics": ("kld",)}, report=lambda progress: told.append(list(caplog.messages)))
    (said,) = [line for line in caplog.messages if "beside the weights are expected" in line]
    assert told
    assert said in told[0]
    assert said in record.notes
    assert record.status == "ok"


def test_the_peak_of_this_process_is_told_in_bytes():
    peak = peak_resident()
    assert peak is None or 50e6 < peak < 1e12


def test_the_command_prints_the_plan_and_runs_nothing(base, tmp_path):
    from pqkv_cli.main import app
    from typer.testing import CliRunner

    command = [
        "eval", "--plan", "--model", base["model"], "--data", base["data"], "--codebooks", base["codebooks"][0],
        "--context", "150", "--windows", "2", "--mode", "exact-schedule,token", "--page-size", "16", "--residual", "32",
        "--noise-floor", "--by-layer", "-o", str(tmp_path),
    ]  # fmt: skip
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    assert "nothing was run" in found.stdout
    assert "150 tokens" in found.stdout
    assert "layer by layer" in found.stdout
    assert "bfloat16 arithmetic" in found.stdout
    rows = json.loads(CliRunner().invoke(app, [*command, "--format", "json"]).stdout)
    assert [(row["kind"], row["mode"], row["floor"]) for row in rows] == [
        ("eval", "exact-schedule", None), ("eval-by-layer", "exact-schedule", None), ("eval", "token", None),
        *(("eval", "noise-floor", f"{dtype} {kind}") for kind in ("arithmetic", "cache")
          for dtype in ("bfloat16", "float16")),
    ]  # fmt: skip
    assert all(row["recorded"] is False and row["peak_bytes"] > 0 for row in rows)
    assert [row["copies_bytes"] > 0 for row in rows] == [False] * 3 + [True, True, False, False]
    assert list(tmp_path.iterdir()) == []
