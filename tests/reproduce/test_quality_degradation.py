"""The experiment on a tiny model, and what its tables say of records whose figures are known."""

import csv

import pytest
from models import write_corpus

from pqkv.config import digest_of
from pqkv.errors import ConfigError, RecordError
from pqkv.record import Metric, Record, RecordStore
from pqkv.reproduce import EXPERIMENTS, Request, experiment, reproduce
from pqkv.reproduce.degradation_claims import claims_of
from pqkv.reproduce.fingerprint import draw, markdown
from pqkv.reproduce.run import derive, settings_of

NAME = "quality-degradation"
SOUND = {
    "perplexity_ratio": 1.0, "agreement_at_1": 1.0, "agreement_at_5": 1.0, "agreement_at_10": 1.0, "kld_mean": 1e-8,
    "recall": 0.9, "recall_exact": 0.9, "softmax_mass_error": 1e-7, "lse_mass_error": 1e-7,
}  # fmt: skip


def record(fault, context, *, bits=0.0, steps=None, **changed):
    config = {"device": "cpu", "bits": bits, "backend": fault, "context": context, "windows": 2}
    return Record(
        kind="eval", config=config, digest=digest_of(config), env={}, git={}, seed=0, status="ok",
        started_at="2026-01-01T00:00:00+00:00", seconds=1.0,
        metrics={name: Metric(value=value) for name, value in {**SOUND, **changed}.items()},
        samples={"kld_by_step": steps} if steps else {},
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
    assert [r.status for r in records] == ["ok"] * 4
    assert [r.config["context"] for r in records] == [100] * 4
    told = []
    again = list(reproduce(found, folder, Request(store, quick=True, report=lambda *a: told.append(a))))
    assert again == records
    assert not [stage for stage, done, _ in told if done]  # nothing ran again
    outcome = derive(found, store.folder)
    assert {path.name for path in outcome.files} == {
        "fingerprint.csv",
        "fingerprint.md",
        "fingerprint.png",
        "claims.csv",
    }
    rows = {row["fault"]: row for row in csv.DictReader((store.folder / "fingerprint.csv").open())}
    assert rows["none/32"]["seen_by"] == ""
    assert "kld_mean" in rows["warp-max/128"]["seen_by"]
    assert "softmax_mass_error" not in rows["warp-max/128"]["seen_by"]  # a wrong maximum keeps the sum
    assert rows["block-granular-length/nan"]["finite"] == "False"
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
        for row in markdown(records).splitlines()[4:7]
    }
    assert lines["none/128"] == ["-"] * 8
    assert lines["shared-memory-2048/dropped"] == ["2049", "-", "-", "-", "2049", "-", "-", "-"]
    assert lines["warp-max/128"][4] == "100 (not at all after)"
    assert draw(records) == draw(records[::-1])


def claims(records):
    return {claim.part: claim for claim in claims_of(records)}


def test_claims_are_judged_by_the_records():
    found = claims([
        record("fault:none/128", 4096),
        record("fault:shared-memory-2048/dropped", 2048),
        record("fault:shared-memory-2048/dropped", 2049, kld_mean=0.2, softmax_mass_error=0.4, perplexity_ratio=1.3),
        record("fault:warp-max/32", 4096),
        record("fault:warp-max/128", 4096, kld_mean=1.0, perplexity_ratio=1.005),
        record("fault:rope-minus-one", 4096, kld_mean=0.1, steps=[0.1] * 8, softmax_mass_error=0.5),
    ])  # fmt: skip
    assert found["fixes"].holds
    assert found["shared-memory-2048"].holds
    assert found["warps"].holds is False
    assert "block of 32: 0 of 1" in found["warps"].ours
    assert found["rope-minus-one"].holds is False
    assert found["softmax sum"].holds is False
    assert "misses 1 of 3 damaged cells: warp-max/128" in found["softmax sum"].ours
    assert "warp-max/128 at 4096" in found["perplexity"].ours
    worse = claims([record("fault:rope-minus-one", 512, kld_mean=0.1, steps=[0.1] * 4 + [0.5] * 4)])
    assert worse["rope-minus-one"].holds
    assert worse["fixes"].holds is None


def test_what_the_user_can_mend_is_one_line(folder, tmp_path):
    with pytest.raises(ConfigError, match="unknown experiment 'x'; known: quality-degradation, million"):
        experiment("x")
    with pytest.raises(ConfigError, match="run in a checkout of pqkv"):
        settings_of(EXPERIMENTS[NAME], tmp_path / "nowhere", quick=False)
    path = folder / NAME / "experiment.toml"
    path.write_text("window = 3\n")
    with pytest.raises(ConfigError, match="unknown key 'window'"):
        settings_of(EXPERIMENTS[NAME], folder, quick=False)
    path.write_text('faults = ["fault:x"]\n')
    with pytest.raises(ConfigError, match="unknown fault 'fault:x'"):
        settings_of(EXPERIMENTS[NAME], folder, quick=False)
    path.write_text("quick = 3\n")
    with pytest.raises(ConfigError, match="quick: must be a table"):
        settings_of(EXPERIMENTS[NAME], folder, quick=False)
    with pytest.raises(RecordError, match="no records of 'quality-degradation'"):
        derive(EXPERIMENTS[NAME], tmp_path / "empty")
