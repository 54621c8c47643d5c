"""Training goes on where it stopped, bit for bit, and refuses what is not its own."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from made import batches, same
from models import tiny_model
from refmodel.recipe import CPU, TINY
from refmodel.training import new_model, train

from pqkv.errors import ConfigError
from pqkv.lm.load import REFERENCE_FOLDER


def log_lines(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("tokens_per_s", "minutes")} for line in lines]


@pytest.fixture(scope="module")
def straight(prepared, tmp_path_factory):
    """Eight steps in one go."""
    folder = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("straight") / "work"))
    assert train(TINY, batches(folder), folder)[1] == 8
    return folder


def test_eight_steps_and_three_and_five_are_equal_bit_for_bit(straight, folder):
    assert train(TINY, batches(folder), folder, stop_at=3)[1] == 3
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "text_loss": 0.0}\n')  # of work that was lost: a checkpoint older than the log
    assert train(TINY, batches(folder), folder)[1] == 8
    whole, resumed = (torch.load(path / "checkpoint.pt", weights_only=True) for path in (straight, folder))
    assert len(whole["optimizers"]) == 2
    assert all(part["state"] for part in whole["optimizers"])
    assert same(whole, resumed)
    assert [line["step"] for line in log_lines(straight)] == [0, 7]
    assert log_lines(folder) == log_lines(straight)


def test_a_run_stopped_by_its_minutes_goes_on_where_it_stopped(straight, folder):
    done = 0
    while done < 8:
        before = done
        _, done = train(TINY, batches(folder), folder, minutes=0)
        assert done == before + 1
    assert same(*(torch.load(path / "checkpoint.pt", weights_only=True)["model"] for path in (straight, folder)))
    assert log_lines(folder) == log_lines(straight)


def test_the_optimizers_run_at_the_scheduled_rate(straight):
    state = torch.load(straight / "checkpoint.pt", weights_only=True)
    rates = [part["param_groups"][0]["lr"] for part in state["optimizers"]]
    assert rates == [TINY.muon_lr * TINY.rate(7), TINY.adam_lr * TINY.rate(7)]


def test_a_checkpoint_of_another_recipe_is_refused_and_nothing_changes(straight, tmp_path):
    other = TINY.model_copy(update={"seed": 1})
    work = Path(shutil.copytree(straight, tmp_path / "work"))
    before = {path.name: path.read_bytes() for path in work.iterdir() if path.suffix in (".pt", ".json", ".jsonl")}
    with pytest.raises(ConfigError, match="another recipe") as caught:
        train(other, batches(work), work)
    assert "\n" not in str(caught.value)
    assert {name: (work / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"PK\x03\x04 cut short"])
def test_a_damaged_checkpoint_is_refused(folder, content):
    (folder / "checkpoint.pt").write_bytes(content)
    with pytest.raises(ConfigError, match="damaged or no checkpoint"):
        train(TINY, batches(folder), folder)


def test_a_start_from_a_model_of_another_shape_is_refused():
    with pytest.raises(ConfigError, match="vocab_size = 4096, the recipe 512"):
        new_model(TINY, REFERENCE_FOLDER)
    assert new_model(CPU, REFERENCE_FOLDER).num_parameters() == CPU.shape.parameters()


def test_a_start_from_an_untied_model_is_refused(tmp_path):
    shape = TINY.shape
    tiny_model(
        dtype=torch.float32, vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim, max_position_embeddings=shape.positions, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
    ).save_pretrained(tmp_path / "untied")  # fmt: skip
    with pytest.raises(ConfigError, match="tie_word_embeddings = False"):
        new_model(TINY, tmp_path / "untied")
