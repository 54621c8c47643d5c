"""Codebooks in folders and on a hub that is served here: what comes back, the card, and what is refused."""

import json
import os
import shlex
import subprocess
import sys

import pytest
import torch
import yaml
from hub_stub import serving
from models import write_corpus

from pqkv.codec.codebook_file import load_codebooks, save_codebooks
from pqkv.codec.hub import FILE, find_codebooks
from pqkv.config import TrainConfig
from pqkv.errors import CodebookError
from pqkv.lm import Codebooks, load_model
from pqkv.lm.train import train

QUICK = {"calibration_tokens": 1000, "context": 200, "samples": 500, "seed": 3}
RECIPES = {
    "product": {"recipe": "product", "num_subspaces": 4, "nbits": 4, "scope": "layer", "iterations": 2},
    "pqkv": {"num_subspaces": 4, "nbits": 4},
}


@pytest.fixture(scope="module")
def work(tmp_path_factory, tiny_folder):
    """A folder with a text, and the tiny model under a name relative to it."""
    folder = tmp_path_factory.mktemp("hub")
    write_corpus(folder / "prose", [f"{i:02}.txt" for i in range(4)])
    (folder / "tiny").symlink_to(tiny_folder)
    return folder


@pytest.fixture(scope="module")
def trained(work):
    """The path of a codebook file for each recipe."""
    lm, paths = load_model(str(work / "tiny")), {}
    for name, more in RECIPES.items():
        paths[name] = work / f"{name}.safetensors"
        save_codebooks(paths[name], *train(lm, TrainConfig(data=str(work / "prose"), **QUICK, **more)))
    return paths


def same(a, b):
    return all(
        x.tensors().keys() == y.tensors().keys()
        and all(torch.equal(x.tensors()[name], y.tensors()[name]) for name in x.tensors())
        for x, y in zip((*a.keys, *a.values), (*b.keys, *b.values), strict=True)
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_folder_gives_back_the_codebooks_that_were_saved(trained, recipe, tmp_path):
    books = Codebooks.load(trained[recipe])
    books.save_pretrained(tmp_path / "folder")
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["README.md", FILE, "config.json"]
    again = Codebooks.from_pretrained(tmp_path / "folder")
    assert again.header == books.header
    assert same(again.books, books.books)
    assert (tmp_path / "folder" / FILE).read_bytes() == trained[recipe].read_bytes()
    assert find_codebooks(str(tmp_path / "folder")) == tmp_path / "folder" / FILE


def card_of(books, folder):
    books.save_pretrained(folder)
    _, metadata, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_the_card_says_bits_text_and_losses(trained, tmp_path):
    books = Codebooks.load(trained["product"])
    metadata, text = card_of(books, tmp_path / "folder")
    assert (metadata["library_name"], metadata["pqkv-bits"], metadata["pqkv-model"]) == ("pqkv", 1, "tiny")
    assert "kv-cache" in metadata["tags"]
    assert json.loads((tmp_path / "folder/config.json").read_text())["bits"] == 1
    header = books.header
    assert f"prose, split {header.calibration.split}: 1,000 tokens" in text
    assert header.calibration.sha256 in text
    assert header.model.weights in text
    for layer, ((keys, values), query) in enumerate(zip(header.errors, header.query_errors, strict=True)):
        assert f"| {layer} | {keys:.4f} | {query:.4f} | {values:.4f} |" in text


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_command_of_the_card_trains_the_same_file(trained, recipe, work, tmp_path, monkeypatch):
    _, text = card_of(Codebooks.load(trained[recipe]), tmp_path / "folder")
    (line,) = (line for line in text.splitlines() if line.startswith("pqkv train-codebooks"))
    _, *words, last = shlex.split(line)
    assert last == FILE
    monkeypatch.chdir(work)
    from pqkv_cli.main import main

    with pytest.raises(SystemExit) as caught:
        main([*words, str(tmp_path / "again.safetensors")])
    assert caught.value.code == 0
    assert load_codebooks(tmp_path / "again.safetensors")[1] == load_codebooks(trained[recipe])[1]
    assert (tmp_path / "again.safetensors").read_bytes() == trained[recipe].read_bytes()


PROGRAM = """
import json, sys
from pathlib import Path
from pqkv.codec.hub import find_codebooks
from pqkv.errors import CodebookError
from pqkv.lm import Codebooks
first, second = (Codebooks.load(Path(path)) for path in sys.argv[1:3])
first.push_to_hub("owner/books", token="hf_secret")
second.push_to_hub("owner/books", branch="v2", commit_message="other codes")
found = {
    "main": Codebooks.from_pretrained("owner/books").header.recipe,
    "v2": Codebooks.from_pretrained("owner/books", revision="v2").header.recipe,
    "place": str(find_codebooks("owner/books")),
    "place v2": str(find_codebooks("owner/books@v2")),
}
for place in ("owner/none", "owner/books@v3"):
    try:
        find_codebooks(place)
    except CodebookError as error:
        found[place] = str(error)
try:
    Codebooks.from_pretrained("owner/none")
except CodebookError as error:
    found["none"] = str(error)
print(json.dumps(found))
"""


def client(program, folder, address, *words):
    """Run `program`; the hub's client reads its environment once, when it is imported."""
    own = {"HF_ENDPOINT": address, "HF_HOME": str(folder), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    env = os.environ | own | {"PYTHONPATH": os.pathsep.join(sys.path)}
    env.pop("HF_HUB_OFFLINE", None)
    return subprocess.run(
        [sys.executable, "-c", program, *words], check=False, env=env, capture_output=True, text=True, timeout=200
    )


def test_a_hub_gives_back_what_was_pushed_to_each_revision(trained, tmp_path):
    with serving() as (hub, address):
        run = client(PROGRAM, tmp_path, address, str(trained["product"]), str(trained["pqkv"]))
        assert run.returncode == 0, run.stderr
        found = json.loads(run.stdout.splitlines()[-1])
        branches = hub.repositories["owner/books"]
        assert {name: branches[name][FILE] for name in branches} == {
            "main": trained["product"].read_bytes(), "v2": trained["pqkv"].read_bytes(),
        }  # fmt: skip
        assert set(branches["main"]) == {"README.md", "config.json", FILE}
        assert "--codebooks owner/books" in branches["main"]["README.md"].decode()
        assert "Bearer hf_secret" in hub.tokens
    assert (found["main"], found["v2"]) == ("product", "pqkv")
    for place, recipe in (("place", "product"), ("place v2", "pqkv")):
        assert load_codebooks(type(tmp_path)(found[place]))[1].recipe == recipe
    for place in ("owner/none", "owner/books@v3", "none"):
        assert found[place].startswith("no codebooks at 'owner/")
        assert "from the hub: " in found[place]
        assert "\n" not in found[place]


SILENT = """
import sys, time
from pqkv.codec.hub import find_codebooks
from pqkv.errors import CodebookError
begun = time.monotonic()
for place in sys.argv[1:]:
    try:
        print(find_codebooks(place))
    except CodebookError as error:
        print(error)
print(time.monotonic() - begun)
"""


def test_a_hub_that_does_not_answer_costs_no_wait_and_what_was_fetched_is_taken(trained, tmp_path):
    with serving() as (_, address):
        run = client(PROGRAM, tmp_path, address, str(trained["product"]), str(trained["pqkv"]))
        assert run.returncode == 0, run.stderr
        place = json.loads(run.stdout.splitlines()[-1])["place"]
    run = client(SILENT, tmp_path, address, "owner/books", "owner/others")  # its port is closed now
    kept, refused, seconds = run.stdout.splitlines()
    assert kept == place
    assert refused.startswith("no codebooks at 'owner/others'")
    assert "the hub does not answer: " in refused
    assert float(seconds) < 20  # its client alone waits for half a minute a file


def test_what_is_no_file_no_folder_and_no_id_is_a_missing_file(tmp_path):
    for place in ("books.safetensors", "some/where/else", "none"):
        with pytest.raises(CodebookError, match="no codebook file at"):
            load_codebooks(find_codebooks(place))
    with pytest.raises(CodebookError, match=f"no {FILE} in the folder"):
        find_codebooks(str(tmp_path))


def test_eval_takes_a_folder(trained, work, tmp_path, capsys):
    Codebooks.load(trained["product"]).save_pretrained(tmp_path / "folder")
    from pqkv_cli.main import main

    with pytest.raises(SystemExit) as caught:
        main(
            ["eval", "--model", str(work / "tiny"), "--data", str(work / "prose"),
             "--codebooks", str(tmp_path / "folder"), "--context", "150", "--windows", "1", "--page-size", "16",
             "--residual", "32", "--metrics", "perplexity", "--allow-contaminated"]
        )  # fmt: skip
    assert caught.value.code == 0
    assert "exact-schedule" in capsys.readouterr().out
