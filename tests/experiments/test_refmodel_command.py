"""The exported folder, the forward in numpy that checks it, and the trainer's command line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import train as command_line
from made import encoder, made_texts, same
from models import tiny_model
from refmodel import tokens
from refmodel.numpy_forward import forward
from refmodel.recipe import GPU, TINY, Recipe
from refmodel.training import new_model

from pqkv.lm.load import REFERENCE_FOLDER, load_model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_forward_in_numpy_is_that_of_transformers(tmp_path, tied, dtype):
    kinds = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": tied}
    tiny_model(dtype=dtype, **kinds).save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ids = np.random.default_rng(0).integers(0, 97, size=50)
    model = type(tiny_model(**kinds)).from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.inference_mode():
        theirs = model(input_ids=torch.from_numpy(ids)[None]).logits[0].numpy()
    assert np.abs(theirs).max() > 1
    assert np.abs(theirs - forward(tmp_path, ids)).max() < 1e-4


def test_the_exported_folder_loads_and_no_file_reaches_15_mib(folder):
    model = new_model(GPU, None)
    weights = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    command_line._export(model, folder)
    assert max(path.stat().st_size for path in (folder / "model").iterdir()) < 15 << 20
    assert len(list((folder / "model").glob("*.safetensors"))) > 1
    lm = load_model(str(folder / "model"), dtype="bfloat16")
    assert same(dict(lm.model.state_dict()), weights)
    assert (lm.separator, lm.max_positions, lm.num_kv_heads) == (0, 8192, 2)
    text = next(made_texts())
    assert lm.encode(text) == encoder(tokens.load_tokenizer(folder / "tokenizer"))(text)


def failing(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        command_line.main([str(argument) for argument in arguments])
    lines = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def test_run_exports_the_weights_it_has_when_its_minutes_end(folder, capsys):
    with pytest.raises(SystemExit) as caught:
        command_line.main(["run", "--corpora", "books", "-o", str(folder), "--recipe", "tiny", "--minutes", "0"])
    assert caught.value.code == 0
    assert "1 of 8 steps done" in capsys.readouterr().out
    assert load_model(str(folder / "model")).vocab_size == TINY.shape.vocabulary
    assert Recipe.model_validate_json((folder / "recipe.json").read_text()) == TINY


def test_a_missing_corpus_is_one_line_and_leaves_no_folder_behind(tmp_path, capsys):
    command = ("run", "--recipe", "tiny", "-o", tmp_path / "out", "--corpora", tmp_path, "--corpora", tmp_path / "none")
    assert "none" in failing(capsys, *command)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_recipe_is_one_line(folder, capsys):
    torch.save({"recipe": "other"}, folder / "checkpoint.pt")
    assert "another recipe" in failing(capsys, "run", "--corpora", folder, "-o", folder, "--recipe", "tiny")


def test_a_folder_prepared_for_something_else_is_refused(folder, capsys):
    with pytest.raises(SystemExit) as caught:
        command_line.main(["prepare", "--corpora", "books", "-o", str(folder), "--recipe", "tiny"])
    assert caught.value.code == 0
    assert "vocabulary = 512, not 4096" in failing(
        capsys, "prepare", "--corpora", "books", "-o", folder, "--recipe", "cpu"
    )
    assert "corpora = ['books']" in failing(capsys, "prepare", "--corpora", "x", "-o", folder, "--recipe", "tiny")
    more = ("--recipe", "tiny", "--init-from", REFERENCE_FOLDER)
    assert "init_from = None" in failing(capsys, "prepare", "--corpora", "books", "-o", folder, *more)


def test_a_recipe_file_that_is_wrong_says_where(tmp_path, capsys):
    values = TINY.model_dump()
    values["shape"]["layers"] = 0
    (tmp_path / "recipe.json").write_text(json.dumps(values))
    assert "shape.layers" in failing(capsys, "prepare", "--corpora", "x", "--recipe", tmp_path / "recipe.json")


def test_missing_models_and_facts_are_one_line_before_anything_is_measured(tmp_path, capsys):
    assert "there is no model folder" in failing(capsys, "card", "--model", tmp_path / "none")
    assert "facts.md" in failing(capsys, "card", "--model", REFERENCE_FOLDER, "--facts", tmp_path / "facts.md")
    assert "there is no model folder" in failing(capsys, "run", "--corpora", tmp_path, "--init-from", tmp_path / "none")


def test_the_script_says_in_one_line_which_recipes_there_are():
    script = Path(command_line.__file__)
    run = subprocess.run(
        [sys.executable, script, "run", "--corpora", "x", "--recipe", "huge"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "error: --recipe huge is neither a file nor one of gpu, cpu, cpu-long, tiny\n"
