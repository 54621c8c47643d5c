"""`evaluate` end to end: real cells, real records, nothing run twice, failures kept apart."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from grids import run, trained
from models import tiny_lm

from pqkv.codec.codebook_file import load_codebooks
from pqkv.config import EvalConfig, digest_of
from pqkv.errors import CodebookError, ConfigError, ContaminationError, DataError, ModelError, RecordError
from pqkv.lm.tokens import TokenForm
from pqkv.quality.cells import Cell, Coding, describe
from pqkv.quality.evaluate import evaluate
from pqkv.quality.measures import compare
from pqkv.quality.modes import run_coded
from pqkv.quality.recall import answered, build_prompts, by_depth
from pqkv.record import RecordStore
from pqkv.text import load_corpus, tokenize, windows


def test_the_bundled_model_end_to_end(reference, folder, text, calibration, tmp_path):
    """Two modes; figures as a reader of the record would want them."""
    path = trained(reference, folder / "bundled.safetensors", calibration)
    config = {
        "data": str(text), "codebooks": (path,), "context": (128,), "mode": ("exact-schedule", "token"), "windows": 2,
        "page_size": 16, "residual": 32,
    }  # fmt: skip
    store = RecordStore(tmp_path)
    records = run(config, store)
    assert [record.config["mode"] for record in records] == ["exact-schedule", "token"]
    assert [record.status for record in records] == ["ok", "ok"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{record.digest}.json" for record in records)
    schedule, token = (record.metrics for record in records)
    for metrics in (schedule, token):
        assert metrics["perplexity_ratio"].value == pytest.approx(
            metrics["perplexity"].value / metrics["perplexity_exact"].value
        )
        assert metrics["kld_mean"].value > 0
        assert metrics["kld_mean"].n == 2 * 127
        assert metrics["agreement_at_1"].value < 1
        assert metrics["kld_mean"].low <= metrics["kld_mean"].value <= metrics["kld_mean"].high
        assert {"recall", "recall_exact", "code_bits", "effective_bits", "cache_bytes", "cache_bytes_exact"} <= set(
            metrics
        )
        assert metrics["code_bits"].value == 1.0625  # a byte of gain for 64 elements of a value
    assert schedule["kld_mean"].value == pytest.approx(token["kld_mean"].value, rel=1e-3)
    assert schedule["perplexity_exact"].value == token["perplexity_exact"].value
    assert "softmax_mass_error" not in schedule
    assert max(token["softmax_mass_error"].value, token["lse_mass_error"].value) <= 1e-5
    assert all(str(folder) not in record.model_dump_json() for record in records)
    _check_recall(reference, records[0], EvalConfig(**config))


def _check_recall(lm, record, config):
    """The same prompts answered here: what is called coded comes from codes, what is called exact does not."""
    stream = tokenize(load_corpus(config.data, None, default="test"), lm.encode, lm.separator)
    prompts = build_prompts(lm, windows(stream, 128, 2).tokens, config.seed)
    ids = torch.from_numpy(np.stack([prompt.ids for prompt in prompts]))
    books, _ = load_codebooks(Path(config.codebooks[0]))
    both = run_coded(lm, ids, books, config.cache(), "exact-schedule"), lm.logits(ids)
    coded, exact = ([answered(*pair) for pair in zip(prompts, logits, strict=True)] for logits in both)
    assert record.tables["by_depth"] == by_depth(coded, exact)
    assert any(row["answer_tokens_right"] != row["answer_tokens_right_exact"] for row in record.tables["by_depth"])
    for name, answers in (("recall", coded), ("recall_exact", exact)):
        assert record.metrics[name].value == np.mean([right for own in answers for _, right, _ in own])


def test_the_figures_are_those_of_the_windows(base, lm, text, file4):
    """Computed here from the modes themselves, window by window."""
    config = EvalConfig(**base)
    (record,) = run(base)
    stream = tokenize(load_corpus(str(text), None, default="test"), lm.encode, lm.separator)
    books, _ = load_codebooks(Path(file4))
    found = []
    for window in windows(stream, 150, 2).tokens:
        ids = torch.from_numpy(window)[None]
        coded = run_coded(lm, ids, books, config.cache(), "exact-schedule")
        found.append(compare(lm.logits(ids)[0, :-1], coded[0, :-1], ids[0, 1:], (1, 5, 10)))
    assert record.metrics["kld_mean"].value == pytest.approx(np.mean([m.kld.mean() for m in found]), rel=1e-4)
    assert record.metrics["perplexity"].value == pytest.approx(
        math.exp(np.mean([m.nll.mean() for m in found])), rel=1e-5
    )
    assert record.samples["nll_exact"] == pytest.approx([float(m.nll_exact.mean()) for m in found], rel=1e-5)
    assert record.config["windows"] == 2
    assert record.config["data_sha256"] == stream.corpus.sha256


def test_the_control_stands_beside_the_figure(base):
    (record,) = run({**base, "control": True, "metrics": ("kld",)})
    assert record.metrics["kld_control"].value > 1.2 * record.metrics["kld_mean"].value > 0


def test_a_record_that_is_there_is_not_run_again_unless_forced(base, tmp_path):
    store = RecordStore(tmp_path)
    grid = {**base, "mode": ("exact-schedule", "all-coded")}
    first = run(grid, store)
    stamps = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    told = []
    assert run(grid, store, report=told.append) == first
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps
    assert told == []  # no cell took a step
    forced = run(grid, store, force=True, report=told.append)
    assert told
    assert [record.metrics for record in forced] == [record.metrics for record in first]
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} != stamps


def test_only_the_missing_cells_of_a_larger_grid_are_run(base, tmp_path):
    store = RecordStore(tmp_path)
    (first,) = run(base, store)
    told = []
    records = run({**base, "mode": ("all-coded", "exact-schedule")}, store, report=told.append)
    assert records[1] == first
    assert {(news.cell, news.cells) for news in told} == {(1, 2)}


def test_a_record_is_named_after_all_its_figures_depend_on_and_nothing_else(base, lm, text):
    corpus = load_corpus(str(text), None, default="test")
    other_lm = replace(tiny_lm(dtype=torch.float32, seed=3), tokenizer=lm.tokenizer)
    coding = Coding(bits=4, digest="0" * 12)

    def digest(mode="exact-schedule", *, own=lm, count=2, context=150, form=None, **more):
        config = EvalConfig(**{**base, "mode": (mode,), **more})
        cell = Cell(coding, mode, context)
        return digest_of(describe(cell, config, own, (corpus, form or TokenForm()), count, config.backend))

    plain = digest()
    changes = [
        {"seed": 1}, {"topk": (1,)}, {"metrics": ("kld",)}, {"control": True}, {"page_size": 8}, {"residual": 64},
        {"sink_tokens": 0}, {"dtype": "bfloat16"}, {"mode": "all-coded"}, {"context": 100}, {"count": 3},
        {"own": other_lm}, {"form": TokenForm(bos=3)},
    ]  # fmt: skip
    assert len({plain, *(digest(**change) for change in changes)}) == len(changes) + 1
    assert digest(chunk_size=7) == digest(backend="another") == digest(context=150) == plain
    assert digest("chunk", chunk_size=7) != digest("chunk")
    assert digest("token", backend="another") != digest("token")
    assert digest("token", chunk_size=7) == digest("token")


def test_two_codebook_files_of_the_same_bits_are_two_cells(base, lm, folder, calibration, tmp_path):
    other = trained(lm, folder / "other.safetensors", calibration, seed=1)
    records = run({**base, "codebooks": (base["codebooks"][0], other)}, RecordStore(tmp_path))
    assert len({record.digest for record in records}) == len({record.config["codebooks"] for record in records}) == 2
    assert records[0].metrics["kld_mean"].value != records[1].metrics["kld_mean"].value


def test_a_folder_that_takes_no_records_is_told_before_anything_runs(base, tmp_path):
    (tmp_path / "file").write_text("")
    told = []
    with pytest.raises(RecordError, match="cannot write"):
        run(base, RecordStore(tmp_path / "file" / "folder"), report=told.append)
    assert not told


def test_the_grid_is_contexts_by_codings_by_modes(base, lm, folder, calibration):
    five = trained(lm, folder / "five.safetensors", calibration, nbits=5)
    grid = {
        **base, "codebooks": (base["codebooks"][0], five), "context": (60, 90), "mode": ("exact-schedule", "chunk"),
        "metrics": ("kld",),
    }  # fmt: skip
    records = run(grid)
    assert [(r.config["context"], r.config["nbits"], r.config["mode"]) for r in records] == [
        (context, nbits, mode) for context in (60, 90) for nbits in (4, 5) for mode in ("exact-schedule", "chunk")
    ]
    assert {record.config["chunk_size"] for record in records} == {None, 256}
    assert {record.config["backend"] for record in records} == {None, "cpu"}


def test_the_exact_paged_cache_costs_nothing(base):
    grid = {
        **base,
        "codebooks": (),
        "bits": (0,),
        "mode": ("chunk",),
        "chunk_size": 50,
        "metrics": ("perplexity", "kld"),
    }
    (record,) = run(grid)
    assert record.metrics["kld_mean"].value < 1e-6
    assert record.metrics["perplexity_ratio"].value == pytest.approx(1, abs=1e-5)
    assert record.metrics["code_bits"].value == 32


@pytest.mark.parametrize("metric", ["perplexity", "agreement", "kld", "recall"])
def test_only_what_is_asked_for_is_measured(base, metric):
    (record,) = run({**base, "metrics": (metric,)})
    names = {
        name
        for name in record.metrics
        if name not in ("code_bits", "effective_bits", "cache_bytes", "cache_bytes_exact", "coded_share")
    }
    starts = {"perplexity": "perplexity", "agreement": ("agreement", "top1"), "kld": "kld", "recall": "recall"}[metric]
    assert names
    assert all(name.startswith(starts) for name in names)


def test_a_context_too_short_for_recall_is_noted(base):
    (record,) = run({**base, "context": (60,)})
    assert "recall" not in record.metrics
    assert any("recall not measured" in note for note in record.notes)


def test_fewer_windows_than_asked_for_are_noted(base):
    (record,) = run({**base, "windows": 500})
    assert any(note.startswith("500 windows asked for") for note in record.notes)
    assert 2 < record.config["windows"] < 500


def test_progress_of_a_cell_ends_at_its_total(base):
    told = []
    run({**base, "mode": ("token",), "control": True}, report=told.append)
    steps = [(news.done, news.total) for news in told]
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1] == (1200, 1200)  # 2 windows of 150 tokens: predictions and recall, each with its control


def no_cell(values, error, match, **more):
    with pytest.raises(error, match=match):
        next(evaluate(EvalConfig(**{**values, **more}), report=lambda _: pytest.fail("a cell ran")))


def test_what_cannot_be_run_is_refused_before_the_first_cell(base, folder):
    no_cell(base, ConfigError, "context 4096 is beyond the 2048 positions of tiny", context=(60, 4096))
    no_cell(base, ConfigError, "unknown backend 'nosuch'; known: .*reference", backend="nosuch")
    no_cell(base, DataError, "fewer than one window", context=(60, 2048), data=str(folder / "prose" / "00.txt"))
    no_cell(base, CodebookError, "no codebook file", codebooks=(str(folder / "nothing.safetensors"),))
    no_cell(base, ModelError, "there is no model folder", model=str(folder / "no-model"))


def test_codebooks_of_another_model_are_refused(base, reference, folder, calibration):
    path = trained(reference, folder / "foreign.safetensors", calibration)
    no_cell(base, CodebookError, "foreign.safetensors: codebooks for reference", codebooks=(path,))


def test_contaminated_text_is_refused_and_noted_where_allowed(base, calibration):
    seen = {**base, "data": str(calibration)}
    no_cell(seen, ContaminationError, "were in the calibration text")
    (record,) = run({**seen, "allow_contaminated": True})
    assert any(note.startswith("contaminated: ") for note in record.notes)
    (clean,) = run({**base, "allow_contaminated": True})
    assert clean.notes == []
