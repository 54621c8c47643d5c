"""The experiment on a tiny model, and what its tables say of records whose figures are known."""

import csv

import pytest
from models import write_corpus

from pqkv.config import EvalConfig, digest_of
from pqkv.errors import ConfigError, RecordError
from pqkv.quality.evaluate import evaluate
from pqkv.record import Metric, Record, RecordStore
from pqkv.reproduce import EXPERIMENTS, Request, experiment, reproduce
from pqkv.reproduce.quality_degradation import derive as derived
from pqkv.reproduce.quality_degradation.cells import apart, config_of
from pqkv.reproduce.quality_degradation.claims import claims_of
from pqkv.reproduce.quality_degradation.fingerprint import draw, markdown, write_fingerprint
from pqkv.reproduce.run import derive, settings_of

NAME = "quality-degradation"
SOUND = {
    "perplexity_ratio": 1.0, "agreement_at_1": 1.0, "agreement_at_5": 1.0, "agreement_at_10": 1.0, "kld_mean": 1e-8,
    "recall": 0.9, "recall_exact": 0.9, "softmax_mass_error": 1e-7, "lse_mass_error": 1e-7,
}  # fmt: skip


def record(fault, context, *, bits=0.0, quarters=None, model="reference", windows=8, samples=None, **changed):
    """A cell whose figures are known; its windows are all alike unless `samples` says what they are."""
    config = {"model": model, "device": "cpu", "bits": bits, "backend": fault, "context": context, "windows": windows}
    quarters = dict(zip(("kld_first_quarter", "kld_last_quarter"), quarters, strict=True)) if quarters else {}
    return Record(
        kind="eval", config=config, digest=digest_of(config), env={}, git={}, seed=0, status="ok",
        started_at="2026-01-01T00:00:00+00:00", seconds=1.0,
        metrics={name: Metric(value=value) for name, value in {**SOUND, **changed}.items()},
        samples={**(samples or {}), **quarters},
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path, tiny_folder):
    text = write_corpus(tmp_path / "text", ["a.txt", "b.txt"])
    experiments = tmp_path / "experiments" / NAME
    experiments.mkdir(parents=True)
    (experiments / "experiment.toml").write_text(
        f'model = "{tiny_folder}"\ndata = "{text}"\ncontexts = [100, 150]\nwindows = 2\ndecode_tokens = 20\n'
        'faults = ["fault:none/32", "fault:warp-max/128", "fault:block-granular-length/nan", "fault:rope-minus-one"]\n'
        "page_size = 16\n[quick]\ncontexts = [100]\nwindows = 1\n"
    )
    return experiments.parent


def test_it_runs_goes_on_and_derives(folder, tmp_path):
    found, store = experiment(NAME), RecordStore(tmp_path / "out")
    records = list(reproduce(found, folder, Request(store, quick=True)))
    assert [(r.config.get("part", "a"), r.status) for r in records] == [
        *[("b", "ok")] * 2, ("c", "ok"), ("d", "ok"), *[("a", "ok")] * 4,
    ]  # fmt: skip
    assert [r.config["context"] for r in records if r.kind == "eval"] == [100] * 4
    told = []
    again = list(reproduce(found, folder, Request(store, quick=True, report=lambda *a: told.append(a))))
    assert again == records
    assert not [stage for stage, done, _ in told if done]  # nothing ran again
    alone = list(reproduce(found, folder, Request(store, quick=True, parts=("c",))))
    assert [r.config["part"] for r in alone] == ["c"]
    outcome = derive(found, store.folder)
    assert {path.name for path in outcome.files} == {
        "fingerprint.csv",
        "fingerprint.md",
        "fingerprint.png",
        "claims.csv",
        "claims.md",
        "b_blocks.csv",
        "b_reduction.csv",
        "c_positions.csv",
        "d_float64.csv",
    }
    assert {row["model"] for row in csv.DictReader((store.folder / "claims.csv").open())} == {"tiny", ""}
    rows = {row["fault"]: row for row in csv.DictReader((store.folder / "fingerprint.csv").open())}
    assert rows["none/32"]["seen_by"] == ""
    assert "kld_mean" in rows["warp-max/128"]["seen_by"]
    assert "softmax_mass_error" not in rows["warp-max/128"]["seen_by"]  # a wrong maximum keeps the sum
    assert rows["block-granular-length/nan"]["finite"] == "no"
    assert "softmax_mass_error" in rows["block-granular-length/nan"]["seen_by"]
    first = (store.folder / "fingerprint.png").read_bytes()
    derive(found, store.folder)
    assert (store.folder / "fingerprint.png").read_bytes() == first


def test_the_table_names_the_first_context_that_shows():
    records = [record("fault:none/128", c) for c in (100, 2049)]
    records += [record("fault:shared-memory-2048/dropped", 100)]
    records += [record("fault:shared-memory-2048/dropped", 2049, kld_mean=0.5, perplexity_ratio=1.2)]
    records += [record("fault:warp-max/128", c, kld_mean=None if c == 100 else 1e-8) for c in (100, 2049)]
    lines = {
        row.split("|")[2].strip(): [c.strip() for c in row.split("|")[3:-1]]
        for row in markdown(records).splitlines()[8:11]
    }
    assert lines["none/128"] == ["-"] * 8
    assert lines["shared-memory-2048/dropped"] == ["2049", "-", "-", "-", "2049", "-", "-", "-"]
    assert lines["warp-max/128"][4] == "100 only"
    assert draw(records) == draw(records[::-1])


def test_codes_are_held_to_codes_without_the_fault():
    sound = record("cpu", 100, bits=4.0, kld_mean=0.02, agreement_at_1=0.95, recall=0.5, perplexity_ratio=1.02)
    lossless = {"kld_mean": 0.02, "agreement_at_1": 0.95, "recall": 0.5, "perplexity_ratio": 1.02}
    same = record("fault:double-count", 100, bits=4.0, **lossless)
    worse = record("fault:first-head-page", 100, bits=4.0, **{**lossless, "kld_mean": 0.03, "recall": 0.4})
    lines = {row.split("|")[2].strip(): row for row in markdown([sound, same, worse]).splitlines()[8:11]}
    assert lines["double-count"].count("| - ") == len(SOUND) - 1
    assert [i for i, cell in enumerate(lines["first-head-page"].split("|")[3:-1]) if cell.strip() != "-"] == [4, 5]
    alone = markdown([same])
    assert "not taken" in alone  # without its twin there is nothing to hold it to


def test_a_cell_that_leaves_its_process_without_a_record_is_a_failed_one(tmp_path):
    store = RecordStore(tmp_path)
    config = EvalConfig(bits=(0,), mode=("decode",), context=(100,), backend="fault:none/32")
    died = apart(config, Request(store), ("sh", "-c", "echo no such GPU >&2; exit 1", "sh"), weights="w")
    assert (died.status, died.error) == ("failed", "fault:none/32 on cpu left no record: no such GPU")
    again = apart(config, Request(store), ("sh", "-c", "exit 3", "sh"), weights="w")
    assert "its process ended with 3" in again.error


def test_a_cell_in_a_process_of_its_own_is_the_same_cell(folder, tmp_path):
    store = RecordStore(tmp_path / "out")
    settings = settings_of(EXPERIMENTS[NAME], folder, quick=True)
    config = config_of(settings, "fault:none/32", 0.0, 100, "cpu")
    (here,) = evaluate(config)
    weights = here.config["model_weights"]
    there = apart(config, Request(store), weights=weights)
    assert there.status == "ok"
    assert there.config == here.config
    assert there.metrics == here.metrics
    assert apart(config, Request(store), ("false",), weights=weights) == there  # found, not run
    assert apart(config, Request(store), ("false",), weights="another's").status == "failed"


def claims(records):
    return {claim.part: claim for claim in claims_of(records)}


def test_claims_are_judged_by_the_records():
    found = claims([
        record("fault:none/128", 4096),
        record("fault:shared-memory-2048/dropped", 2048),
        record("fault:shared-memory-2048/dropped", 2049, kld_mean=0.2, softmax_mass_error=0.4, perplexity_ratio=1.3),
        record("fault:warp-max/32", 4096),
        record("fault:warp-max/128", 4096, kld_mean=1.0, perplexity_ratio=1.005),
        record("fault:rope-minus-one", 4096, kld_mean=0.1, quarters=([0.1, 0.12] * 4, [0.05, 0.06] * 4)),
    ])  # fmt: skip
    assert found["fixes"].holds
    assert found["shared-memory-2048"].holds
    assert found["warps"].holds is False
    assert "block of 32: 0 of 1" in found["warps"].ours
    assert found["rope-minus-one"].holds is False
    assert "less at 1 of 1 contexts, more at 0" in found["rope-minus-one"].ours
    assert found["softmax sum"].holds is False
    assert "misses 1 of 1 damaged cells: warp-max/128" in found["softmax sum"].ours
    assert "misses 1 of 2 damaged cells: rope-minus-one" in found["softmax sum, others"].ours
    assert "within 1% in 2 of 3 damaged cells: rope-minus-one at 4096, warp-max/128 at 4096" in found["perplexity"].ours
    worse = claims([record("fault:rope-minus-one", 512, kld_mean=0.1, quarters=([0.1, 0.11] * 4, [0.5, 0.4] * 4))])
    assert worse["rope-minus-one"].holds
    assert worse["fixes"].holds is None
    assert worse["fixes"].ours == "not run"


def test_what_runs_both_ways_is_not_known():
    mixed = [0.1, 0.4, 0.1, 0.3, 0.2, 0.1, 0.5, 0.1]
    found = claims([record("fault:rope-minus-one", 512, kld_mean=0.2, quarters=(mixed, mixed[::-1]))])
    assert found["rope-minus-one"].holds is None
    grows = record("fault:rope-minus-one", 512, quarters=([0.1, 0.11] * 4, [0.5, 0.4] * 4))
    fades = record("fault:rope-minus-one", 1024, quarters=([0.1, 0.11] * 4, [0.05, 0.04] * 4))
    assert claims([grows, fades])["rope-minus-one"].holds is False  # "with every token": one context refutes it


@pytest.mark.parametrize("windows", [2, 3])
def test_few_windows_are_no_ground_for_a_verdict_on_others(windows):
    sure = {"quarters": ([0.5] * windows, [0.1] * windows), "windows": windows}
    found = claims([
        record("fault:rope-minus-one", 4096, kld_mean=0.1, **sure),
        record("fault:shared-memory-2048/dropped", 4096, kld_mean=0.5, windows=windows),
        record("fault:block-granular-length/stale", 4096, kld_mean=0.2, windows=windows),
        record("fault:warp-max/128", 4096, kld_mean=1.0, windows=windows),
    ])  # fmt: skip
    for part in ("rope-minus-one", "shared-memory-2048", "P0", "P1", "P2", "perplexity"):
        assert found[part].holds is None, part
        assert "under 4 windows a context say nothing of others" in found[part].ours
    assert found["softmax sum"].holds is False  # one case that it misses is enough, whatever other windows say


def spread(middle, windows=8):
    return {"kld_mean": [middle * (1 + 0.1 * (i % 3 - 1)) for i in range(windows)]}


def test_priorities_are_judged_on_paired_windows_beyond_2048():
    costs = {
        "warp-max/128": 5.0, "warp-max/32": 1e-8, "shared-memory-2048/dropped": 0.5,
        "block-granular-length/stale": 0.01, "block-granular-length/zero": 0.02, "rope-minus-one": 0.1,
    }  # fmt: skip

    def judged(**changed):
        given = {**costs, **{name.replace("_", "-"): cost for name, cost in changed.items()}}
        cells = [
            record(f"fault:{name}", context, kld_mean=cost, samples=spread(cost))
            for name, cost in given.items() for context in (512, 4096)
        ]  # fmt: skip
        return [claim for claim in claims_of(cells) if claim.part in ("P0", "P1", "P2")]

    assert [claim.holds for claim in judged()] == [True, False, True, False, False]
    assert [claim.holds for claim in judged(rope_minus_one=0.001)] == [True, False, True, True, True]
    assert "as claimed in 3 of 3 comparisons" in judged()[0].ours
    close = judged(rope_minus_one=0.5)
    assert close[2].holds is None  # the overflow and the positions: the same in every window
    short = [record(f"fault:{name}", 512, kld_mean=cost, samples=spread(cost)) for name, cost in costs.items()]
    assert {claim.ours for claim in claims_of(short) if claim.part == "P2"} == {"not run beyond 2,048 tokens"}
    broken = record("fault:rope-minus-one", 4096, kld_mean=None)
    sound = record("fault:block-granular-length/stale", 4096, kld_mean=0.01, samples=spread(0.01))
    assert claims([broken, sound])["P1"].holds is False  # what is no number costs more than any that is


def test_damage_is_known_by_logits_and_else_by_the_kld():
    zero = "fault:block-granular-length/zero"
    unharmed, harmed = (record(zero, context, logit_error=e) for context, e in ((128, 1e-6), (512, 0.1)))
    found = claims([unharmed, harmed])
    assert found["damage"].holds
    assert found["KLD"].holds is False  # the KLD of both is 1e-8
    assert "under 0.001 nats in 1 of 1 cells that their logits show damaged: block-granular-length/zero at 512" in (
        found["KLD"].ours
    )
    assert "misses 1 of 1 damaged cells" in found["softmax sum, others"].ours
    older = claims([unharmed, record("fault:warp-max/128", 512, kld_mean=1.0)])
    assert older["damage"].holds is False
    assert "the records of the others are older than that error" in older["damage"].ours
    assert older["KLD"].holds is None
    broken = record("fault:warp-max/128", 512, kld_mean=1.0, logit_error=None)
    assert claims([broken])["KLD"].holds
    partly = claims([broken, record("fault:warp-max/64", 512, kld_mean=1.0)])
    assert partly["KLD"].holds is None  # a grid that is not measured to the end says "no" or nothing
    assert "1 cells have no error of logits to tell" in partly["KLD"].ours


def test_the_five_together_show_from_where_they_do():
    cells = [record("fault:all-five/128", c, kld_mean=4.0, logit_error=1.0) for c in (128, 4096)]
    cells += [record("fault:all-five/32", c, logit_error=e) for c, e in ((128, 1e-7), (4096, 1.0))]
    found = claims(cells)["all-five"]
    assert found.holds is False
    assert "blocks of 128: damage from 128 tokens on" in found.ours
    assert "blocks of 32: damage from 4096 tokens on" in found.ours
    assert "sums to 1 in 1 of 1 cells" in found.ours
    assert "not run" in claims(cells)["softmax sum, others"].ours
    assert claims(cells[2:])["all-five"].holds


def test_models_are_told_apart_in_every_table(tmp_path):
    small = [record("fault:shared-memory-2048/dropped", c, kld_mean=k) for c, k in ((2048, 0.0), (2049, 0.5))]
    large = [record("fault:shared-memory-2048/dropped", c, model="org/large") for c in (2048, 2049)]
    found = {claim.model: claim for claim in claims_of([*large, *small]) if claim.part == "shared-memory-2048"}
    assert {model: claim.holds for model, claim in found.items()} == {"reference": True, "org/large": False}
    assert {path.name for path in write_fingerprint([*large, *small], tmp_path)} >= {
        "fingerprint.png", "fingerprint-org-large.png",
    }  # fmt: skip
    files = {path.name: path for path in derived([*large, *small], tmp_path)}
    assert {"fingerprint.png", "fingerprint-org-large.png", "models.md"} <= set(files)
    rows = list(csv.DictReader(files["fingerprint.csv"].open()))
    assert [(row["model"], row["seen_by"]) for row in rows] == [
        ("reference", ""), ("reference", "kld_mean"), ("org/large", ""), ("org/large", "")
    ]  # fmt: skip
    first, second = files["fingerprint.md"].read_text().split("\n## ")[1:]
    assert first.startswith("reference\n") and "| 2049 |" in first
    assert second.startswith("org/large\n") and "2049 |" not in second


def test_codes_of_one_model_are_not_held_to_those_of_another(tmp_path):
    sound = record("cpu", 100, bits=4.0, model="large", kld_mean=0.02)
    faulty = record("fault:double-count", 100, bits=4.0, kld_mean=0.05)
    assert "not taken" in markdown([sound, faulty])
    write_fingerprint([sound, faulty], tmp_path)
    rows = {row["model"]: row for row in csv.DictReader((tmp_path / "fingerprint.csv").open())}
    assert rows["reference"]["seen_by"] == ""


def test_what_the_user_can_mend_is_one_line(folder, tmp_path):
    with pytest.raises(ConfigError, match="unknown experiment 'x'; known: quality-degradation, million"):
        experiment("x")
    with pytest.raises(ConfigError, match="run in a checkout of pqkv"):
        settings_of(EXPERIMENTS[NAME], tmp_path / "nowhere", quick=False)
    path = folder / NAME / "experiment.toml"
    path.write_text("window = 3\n")
    with pytest.raises(ConfigError, match="unknown key 'window'"):
        settings_of(EXPERIMENTS[NAME], folder, quick=False)
    path.write_text("contexts = []\n")
    with pytest.raises(ConfigError, match="contexts"):
        settings_of(EXPERIMENTS[NAME], folder, quick=False)
    path.write_text("contexts = [32]\n")
    with pytest.raises(ConfigError, match="every context must be longer"):
        list(reproduce(EXPERIMENTS[NAME], folder, Request(RecordStore(tmp_path))))
    path.write_text('faults = ["fault:x"]\n')
    with pytest.raises(ConfigError, match="unknown fault 'fault:x'"):
        settings_of(EXPERIMENTS[NAME], folder, quick=False)
    path.write_text("quick = 3\n")
    with pytest.raises(ConfigError, match="quick: must be a table"):
        settings_of(EXPERIMENTS[NAME], folder, quick=False)
    with pytest.raises(RecordError, match="no records of 'quality-degradation'"):
        derive(EXPERIMENTS[NAME], tmp_path / "empty")
