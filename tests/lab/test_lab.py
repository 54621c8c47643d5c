"""The lab: its records are those of `eval --codec`, whatever order, interruption or damage made them."""

import json

import numpy as np
import pytest

from pqkv.config import EvalConfig, digest_of
from pqkv.errors import ConfigError
from pqkv.lab.config import LabConfig
from pqkv.lab.run import run_lab
from pqkv.quality.evaluate import evaluate
from pqkv.record import RecordStore

SPECS = {
    "exact": "exact",
    "four": "composed:num_subspaces=8,nbits=5,iterations=2,mean=turning,metric=full,transform=klt",
    "gain": "exact/composed:num_subspaces=8,nbits=4,gain=true,transform=hadamard,scope=universal",
}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PQKV_CACHE", str(tmp_path_factory.mktemp("kept")))
        yield


@pytest.fixture(scope="module")
def settings(tiny_folder):
    return {
        "model": str(tiny_folder), "texts": ("stdlib",), "context": (96,), "windows": (5,), "exact": ("4/0",),
        "calibration": {"calibration_tokens": 512, "context": 128, "positions": 512}, "methods": SPECS,
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(settings, tmp_path_factory):
    place = tmp_path_factory.mktemp("lab")
    dict(run_lab(LabConfig.parse(settings), RecordStore(place)))
    return place


def figures(record):
    return record.metrics, record.samples, record.tables["by_position"], record.config


def test_records_are_those_of_eval(settings, folder, tmp_path):
    lab = LabConfig.parse(settings)
    (wanted,) = lab.evaluations()
    found = dict(run_lab(lab, RecordStore(folder)))
    assert not (folder / "partial").exists()
    alone = list(evaluate(EvalConfig.parse(wanted.model_dump()), RecordStore(tmp_path)))
    assert [record.digest for record in found.values()] == [record.digest for record in alone]
    for one, other in zip(found.values(), alone, strict=True):
        assert one.kind == other.kind == "eval"
        assert one.config == other.config
        for name, metric in one.metrics.items():
            assert metric.value == pytest.approx(other.metrics[name].value, rel=1e-6, abs=1e-9), name
        assert one.samples["kld_mean"] == pytest.approx(other.samples["kld_mean"], rel=1e-6, abs=1e-12)


def test_what_is_exact_loses_nothing_and_what_is_coded_does(settings, folder):
    found = dict(run_lab(LabConfig.parse(settings), RecordStore(folder)))
    assert found["exact"].metrics["kld_mean"].value < 1e-9
    assert found["exact"].metrics["code_bits"].value == 32
    assert found["gain"].metrics["key_bits"].value == 32
    assert found["gain"].metrics["value_bits"].value == pytest.approx(8 * 4 / 16 + 8 / 16)
    assert found["four"].metrics["code_bits"].value == pytest.approx(8 * 5 / 16, abs=1e-3)
    assert found["four"].metrics["kld_mean"].value > 1e-6


def test_it_goes_on_from_the_window_where_it_was_stopped(settings, folder, tmp_path, monkeypatch):
    from pqkv.lab import run

    whole = dict(run_lab(LabConfig.parse(settings), RecordStore(folder)))
    real, calls = run.compare_all, []

    def stopped(*args, **more):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **more)

    monkeypatch.setattr(run, "compare_all", stopped)
    with pytest.raises(KeyboardInterrupt):
        dict(run_lab(LabConfig.parse(settings), RecordStore(tmp_path)))
    kept = sorted(path.name for path in (tmp_path / "partial").glob("*/*.npz"))
    assert kept == ["00000.npz"] * 3 + ["00001.npz"] * 3
    # one of them is damaged, another half written
    first = sorted((tmp_path / "partial").glob("*/00001.npz"))
    first[0].write_bytes(b"no zip file")
    first[1].with_name(".00002.npz.1.tmp").write_bytes(b"half")
    monkeypatch.setattr(run, "compare_all", real)
    again = dict(run_lab(LabConfig.parse(settings), RecordStore(tmp_path)))
    for name, record in again.items():
        assert record.status == "ok"
        assert record.samples["nll"] == pytest.approx(whole[name].samples["nll"], rel=1e-6)
        assert record.metrics["code_bits"] == whole[name].metrics["code_bits"]
        assert record.metrics["coded_share"] == whole[name].metrics["coded_share"]
        assert record.seconds > 1e-4  # of forwards, not of putting windows together
    assert not (tmp_path / "partial").exists()


def test_a_damaged_window_is_measured_again_where_all_others_are_there(settings, folder, tmp_path, monkeypatch):
    from pqkv.lab import run

    real = run.run_cell
    monkeypatch.setattr(run, "run_cell", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        dict(run_lab(LabConfig.parse(settings), RecordStore(tmp_path)))
    parts = sorted((tmp_path / "partial").glob("*/*.npz"))
    assert len(parts) == 5 * len(SPECS)
    parts[7].write_bytes(parts[7].read_bytes()[:200])
    monkeypatch.setattr(run, "run_cell", real)
    again = dict(run_lab(LabConfig.parse(settings), RecordStore(tmp_path)))
    whole = dict(run_lab(LabConfig.parse(settings), RecordStore(folder)))
    for name, record in again.items():
        assert record.status == "ok"
        assert record.samples["nll"] == pytest.approx(whole[name].samples["nll"], rel=1e-6)


def test_records_that_are_there_are_not_measured_again(settings, folder, monkeypatch):
    monkeypatch.setattr("pqkv.lab.run.compare_all", None)
    assert len(dict(run_lab(LabConfig.parse(settings), RecordStore(folder)))) == len(SPECS)


def test_a_method_that_cannot_run_fails_alone(settings, tmp_path):
    wrong = {**SPECS, "no": "composed:bits=4,layer_bits=4"}  # one layer of two
    failing = LabConfig.parse({**settings, "methods": {k: v for k, v in wrong.items() if k != "no"}})
    assert all(record.status == "ok" for record in dict(run_lab(failing, RecordStore(tmp_path))).values())
    with pytest.raises(ConfigError, match="layer_bits has 1 entries, and the model a layer 1"):
        dict(run_lab(LabConfig.parse({**settings, "methods": wrong}), RecordStore(tmp_path)))


def test_sinks_and_newest_tokens_choose_the_mode():
    lab = LabConfig.parse({"methods": {"e": "exact"}, "exact": ("0/0", "4/0", "4/128"), "context": (512,)})
    assert [(e.mode, e.coded_sinks, e.sink_tokens, e.residual) for e in lab.evaluations()] == [
        (("all-coded",), (0,), 4, 128), (("all-coded",), (4,), 4, 128), (("exact-schedule",), (0,), 4, 128),
    ]  # fmt: skip


def test_a_grid_is_all_combinations_or_each_change_alone_or_a_fraction():
    grid = {"base": "composed/exact", "vary": {"keys.mean": ["none", "turning"], "keys.transform": ["klt", "hadamard"],
                                               "values.codec": ["composed"]}}  # fmt: skip

    def names(**more):
        return list(LabConfig.parse({"grid": {"g": {**grid, **more}}}).all_methods().items())

    every = names()
    assert [name for name, _ in every] == [
        f"g: keys.mean={m}, keys.transform={t}, values.codec=composed"
        for m in ("none", "turning")
        for t in ("klt", "hadamard")
    ]
    assert str(every[2][1]) == "composed:mean=turning,transform=klt/composed"
    alone = [str(spec) for _, spec in names(each_alone=True)]
    assert alone == ["composed/exact", "composed:mean=turning/exact", "composed:transform=klt/exact",
                     "composed:transform=hadamard/exact", "composed"]  # fmt: skip
    half = names(fraction=0.5)
    assert len(half) == 2
    assert half == names(fraction=0.5)
    assert set(half) < set(every)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": {}}, "nothing to measure"), ({"exact": ("4",)}, "SINKS/NEWEST"),
        ({"against": "x"}, "no method 'x'"), ({"windows": (1, 2)}, "2 numbers of windows for 1 contexts"),
        ({"methods": {"a": "b"}}, "no codec 'b'"), ({"colour": 1}, "unknown key 'colour'"),
        ({"grid": {"g": {"base": "exact", "vary": {"mean": [1]}}}}, "keys.OPTION"),
    ],
)  # fmt: skip
def test_a_file_that_says_nothing_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        LabConfig.parse({"methods": {"e": "exact"}, **change})


def test_digests_name_what_was_coded_and_what_it_learnt(settings, folder):
    found = dict(run_lab(LabConfig.parse(settings), RecordStore(folder)))
    configs = [record.config for record in found.values()]
    assert all(record.digest == digest_of(json.loads(json.dumps(record.config))) for record in found.values())
    assert configs[1]["codec"]["keys"]["mean"] == "turning"
    assert configs[0]["calibration"] is None
    assert configs[1]["calibration"] == "stdlib/calibration"
    assert len({config["codebooks"] for config in configs}) == 3
    assert np.isfinite(found["four"].samples["kld_mean"]).all()


def test_a_codec_that_learns_nothing_under_its_options_needs_no_samples():
    from pqkv.codec.catalog import CodecSpec

    assert [len(CodecSpec.parse(text).learnings()) for text in ("fp8", "fp8:scale=one", "nvfp4:scale=one", "aqua")] == [
        2,
        0,
        0,
        1,
    ]
    assert CodecSpec.parse("kvquant").learnings()[0].gradients
    assert not CodecSpec.parse("kvquant:fisher=false").learnings()[0].gradients
