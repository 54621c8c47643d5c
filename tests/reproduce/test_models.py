"""Experiments put to another model: its settings, its rows beside those of the others, and what it is refused for."""

import csv
import json

import pytest
import torch
from models import tiny_lm, tiny_model, write_corpus
from pqkv_cli.main import main

from pqkv.errors import ConfigError
from pqkv.lm.load import REFERENCE_FOLDER
from pqkv.record import RecordStore
from pqkv.reproduce import EXPERIMENTS, Request, reproduce
from pqkv.reproduce.million import quality
from pqkv.reproduce.million.lab import Lab
from pqkv.reproduce.million.settings import Settings
from pqkv.reproduce.models import side_by_side
from pqkv.reproduce.run import derive, settings_of

NAME = "quality-degradation"


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A folder with a model of other weights than `tiny_folder`, and fewer positions."""
    folder = tmp_path_factory.mktemp("models") / "other"
    model = tiny_model(dtype=torch.float32, vocab_size=4096, num_hidden_layers=2, seed=1, max_position_embeddings=256)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((REFERENCE_FOLDER / name).read_bytes())
    return folder


def written(folder, name, text):
    path = folder / "experiments" / name / "experiment.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path.parents[1]


def table(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_sizes_of_a_model_go_over_the_experiments_own_and_small_ones_over_both(tmp_path):
    folder = written(
        tmp_path, NAME,
        "contexts = [100]\nwindows = 8\ndecode_tokens = 9\n[quick]\nwindows = 3\ndecode_tokens = 4\n"
        "[models.mine]\nwindows = 5\ncontexts = [200]\n[models.mine.quick]\ndecode_tokens = 2\n",
    )  # fmt: skip

    def sizes(quick, model):
        found = settings_of(EXPERIMENTS[NAME], folder, quick=quick, model=model)
        return found.model, found.contexts, found.windows, found.decode_tokens

    assert sizes(False, None) == ("reference", (100,), 8, 9)
    assert sizes(True, None) == ("reference", (100,), 3, 4)
    assert sizes(False, "mine") == ("mine", (200,), 5, 9)
    assert sizes(True, "mine") == ("mine", (200,), 3, 2)
    assert sizes(False, "./any") == ("./any", (100,), 8, 9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models = 3\n", "models: must be a table of settings"),
        ("[models]\nmine = 3\n", "models.mine: must be a table of settings"),
        ("[models.mine]\nquick = 3\n", "models.mine.quick: must be a table of settings"),
        ("[models.mine]\nwindow = 3\n", "for the model mine: unknown key 'window'"),
    ],
)
def test_a_wrong_table_of_a_model_is_one_line(tmp_path, text, message):
    folder = written(tmp_path, NAME, text)
    with pytest.raises(ConfigError, match=message) as refused:
        settings_of(EXPERIMENTS[NAME], folder, quick=True, model="mine")
    assert "\n" not in str(refused.value)


def test_claims_of_both_models_stand_side_by_side_and_the_first_records_stay(capsys, tmp_path, tiny_folder, other):
    text = write_corpus(tmp_path / "text", ["a.txt", "b.txt"])
    folder = written(
        tmp_path, NAME,
        f'model = "{tiny_folder}"\ndata = "{text}"\ncontexts = [100]\nwindows = 1\ndecode_tokens = 10\npage_size = 16\n'
        f'faults = ["fault:none/32", "fault:warp-max/128"]\n[models."{other}"]\ncontexts = [120]\n',
    )  # fmt: skip
    words = ["reproduce", NAME, "--experiments", str(folder), "-o", str(tmp_path / "out")]
    out = tmp_path / "out" / NAME

    def run(*more):
        with pytest.raises(SystemExit) as stop:
            main([*words, *more])
        assert stop.value.code == 0
        return {path: path.read_bytes() for path in out.glob("*.json")}, table(out / "claims.csv")

    first, claims = run()
    assert {row["model"] for row in claims} == {"tiny", ""}  # listings are no model's
    both, all_claims = run("--model", str(other))
    assert first.items() < both.items()
    cells = [json.loads(data) for data in both.values()]
    asked = {(cell["config"]["model"], cell["config"]["context"]) for cell in cells if cell["kind"] == "eval"}
    assert asked == {("tiny", 100), ("other", 120)}
    assert [row for row in all_claims if row["model"] != "other"] == claims
    own = [row["claim"] for row in claims if row["model"] == "tiny"]
    assert [row["claim"] for row in all_claims if row["model"] == "other"] == own
    assert "| part | claim | theirs | other | holds | tiny | holds | agree |" in (out / "models.md").read_text()
    assert run()[0] == both  # and neither is run again
    capsys.readouterr()


@pytest.fixture(scope="module")
def asked(tmp_path_factory, tiny_folder, other):
    """(records of the own model, records of the other one, folder) of parts a and h."""
    folder = tmp_path_factory.mktemp("asked")
    names = [f"{i:02}.txt" for i in range(4)]
    calibration = write_corpus(folder / "calibration", names, seed=1)
    experiments = written(
        folder, "million",
        f'model = "{tiny_folder}"\ncontexts = [220]\nopq_contexts = [220]\nwindows = 2\nshapes = [[16, 4]]\n'
        f'opq_shapes = [[16, 4]]\ncalibration = "{calibration}"\ncalibration_tokens = 1000\n'
        "calibration_context = 200\nsamples = 500\niterations = 2\n",
    )  # fmt: skip
    store = RecordStore(folder / "results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PQKV_CACHE", str(folder / "cache"))
        patch.setattr(quality, "STDLIB", str(write_corpus(folder / "prose", names)))
        yield (
            list(reproduce(EXPERIMENTS["million"], experiments, Request(store, parts=("a", "h")))),
            list(reproduce(EXPERIMENTS["million"], experiments, Request(store, model=str(other)))),
            store.folder,
        )


def test_a_named_model_is_asked_in_the_parts_that_ask_one(asked):
    own, others, _ = asked
    assert {record.error for record in (*own, *others)} == {None}
    assert {record.config["model"] for record in own} == {"tiny"}
    assert {record.config["model"] for record in others} == {"other"}
    assert sorted(r.kind for r in others) == sorted(r.kind for r in own)
    assert {record.kind for record in others} == {"million-codebooks", "million-outliers", "eval"}


def test_every_claim_has_a_row_for_each_model_out_of_its_own_cells(asked, tmp_path):
    own, others, folder = asked
    together = {path.name: path for path in derive(EXPERIMENTS["million"], folder).files}
    alone = {path.name: path for path in EXPERIMENTS["million"].load().derive(own, tmp_path)}
    for name in ("claims.csv", "a_quality.csv", "h_opq.csv", "h_errors.csv"):
        rows = table(together[name])
        assert [row for row in rows if row["model"] == "tiny"] == table(alone[name])
        assert sum(row["model"] == "other" for row in rows) == len(table(alone[name])) > 0
    digests = {record.digest for record in others}
    assert {row["record"] for row in table(together["h_opq.csv"]) if row["model"] == "other"} <= digests
    rows = table(together["claims.csv"])
    assert {row["part"] for row in rows} == {"a", "h"}
    answers = {model: {r["claim"]: r["ours"] for r in rows if r["model"] == model} for model in ("tiny", "other")}
    assert set(answers["tiny"]) == set(answers["other"])
    assert not set(answers["tiny"].values()) & set(answers["other"].values())  # no figure of one stands for the other
    assert together["models.md"].read_text().count("| other |") == 1
    assert "models.md" not in alone


def test_a_context_beyond_the_models_positions_is_refused_before_the_first_cell(tmp_path, other):
    for name, keys in ((NAME, "contexts = [100, 300]"), ("million", "shapes = [[16, 4]]\nopq_contexts = [300]")):
        folder = written(tmp_path / name, name, f"{keys}\n")
        ran = reproduce(EXPERIMENTS[name], folder, Request(RecordStore(tmp_path / "out"), model=str(other)))
        with pytest.raises(ConfigError, match=f"^{name} cannot ask other: it takes .* the model has 256") as refused:
            next(ran)
        assert 'a table [models."other"] of experiments/' in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("shapes", "cause"),
    [
        ({"shapes": ((16, 4),), "opq_shapes": ((32, 8),)}, "32 subspaces do not divide its heads of 16"),
        ({"shapes": ((8, 4),), "opq_shapes": ((8, 4),)}, "no shape is 4 bits an element for its heads of 16"),
        ({"shapes": ((8, 8),), "opq_shapes": ((8, 4),)}, None),
    ],
)
def test_shapes_that_do_not_suit_a_models_heads_are_refused(tmp_path, shapes, cause):
    sizes = {"contexts": (100,), "opq_contexts": (100,), "calibration_context": 100}
    lab = Lab(Settings(**sizes, **shapes), Request(RecordStore(tmp_path), model="tiny"))
    lab.__dict__["lm"] = tiny_lm()
    if cause is None:
        lab.check_model()
        return
    with pytest.raises(ConfigError, match=f"^million cannot ask tiny-llama: {cause}; give shapes and opq_shapes"):
        lab.check_model()


def said(model, claim, ours, holds):
    return {"part": "a", "model": model, "claim": claim, "theirs": "< 1%", "ours": ours, "holds": holds}


def test_models_agree_where_the_claim_holds_on_both_or_on_none():
    rows = [said("small", "x", "1", "yes"), said("reference", "x", "2", "no"), said("small", "z", "7", "no")]
    rows += [said("reference", "y", "3", "not known"), said("small", "y", "4", "not known"), said(None, "w", "8", "no")]
    assert side_by_side(rows)[2:] == [
        "| a | x | < 1% | 2 | no | 1 | yes | no |", "| a | y | < 1% | 3 | not known | 4 | not known | yes |",
    ]  # fmt: skip
    assert side_by_side(rows)[0] == "| part | claim | theirs | reference | holds | small | holds | agree |"
    assert side_by_side(rows[:1]) == []
