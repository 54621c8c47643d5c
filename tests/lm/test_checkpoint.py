"""Checkpoints that do not hold what their configuration describes."""

import logging

import pytest
import torch
from models import random_ids, tiny_model
from safetensors.torch import load_file, save_file

from pqkv.errors import ModelError
from pqkv.lm import load_model


@pytest.fixture
def changed(tiny_folder, tmp_path):
    """Makes a copy of the tiny model's folder whose tensors went through a function; returns the folder's name."""

    def make(change, **config):
        for file in tiny_folder.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        weights = tmp_path / "model.safetensors"
        save_file(change(load_file(weights)), weights, metadata={"format": "pt"})
        if config:
            import json

            path = tmp_path / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return str(tmp_path)

    return make


def refusal(folder):
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"cannot load the model '{folder}': ")
    return text


def without(*endings):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.endswith(endings)}


def test_a_missing_tensor_is_an_error_and_not_random_weights(changed):
    text = refusal(changed(without("layers.1.mlp.up_proj.weight")))
    assert "lacks 1 of 21 tensors (first: model.layers.1.mlp.up_proj.weight)" in text


def test_the_first_of_several_missing_tensors_is_the_models_first(changed):
    text = refusal(changed(without("q_proj.weight", "down_proj.weight", "norm.weight")))
    assert "lacks 9 of 21 tensors (first: model.layers.0.self_attn.q_proj.weight)" in text


def test_a_head_of_its_own_that_is_missing_is_an_error(changed):
    assert "(first: lm_head.weight)" in refusal(changed(without("lm_head.weight")))


def test_a_tied_head_needs_no_tensor(changed):
    lm = load_model(changed(without("lm_head.weight"), tie_word_embeddings=True))
    assert lm.notes == ()
    assert torch.equal(lm.model.lm_head.weight, lm.model.model.embed_tokens.weight)
    assert lm.logits(random_ids(4)).isfinite().all()


def test_a_tensor_of_another_shape_is_an_error(changed):
    text = refusal(changed(lambda tensors: {**tensors, "model.norm.weight": torch.ones(3)}))
    assert "1 tensor of another shape than config.json says (first: model.norm.weight, (3,) instead of (64,))" in text


def test_a_tensor_without_a_place_is_a_note(changed, tiny_folder):
    more = {"model.layers.10.extra": torch.ones(1), "model.layers.9.extra": torch.ones(1)}
    lm = load_model(changed(lambda tensors: {**tensors, **more}))
    assert lm.notes == ("the checkpoint holds 2 tensors without a place in the model (first: model.layers.9.extra)",)
    assert lm.fingerprint == load_model(str(tiny_folder)).fingerprint


def test_weights_of_another_architecture_are_called_that(changed):
    text = refusal(changed(lambda tensors: {f"transformer.{i}": tensor for i, tensor in enumerate(tensors.values())}))
    assert "none of the 21 tensors of its checkpoint belongs to a LlamaForCausalLM (first: transformer.0)" in text


@pytest.mark.parametrize("kept", [0, 5, 1000, -100])
def test_a_weights_file_that_is_cut_off_is_named(changed, tmp_path, kept):
    folder = changed(without())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    assert "model.safetensors is cut off or damaged" in refusal(folder)


def test_a_shard_that_the_index_names_and_nobody_brought_is_named(tiny_folder, tmp_path):
    tiny_model(dtype=torch.float32, vocab_size=4096, num_hidden_layers=2).save_pretrained(
        tmp_path, max_shard_size="700KB"
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_folder / name).read_bytes())
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[-1].unlink()
    assert shards[-1].name in refusal(str(tmp_path))


def test_a_shard_that_holds_less_than_the_index_says_is_missing_tensors(tiny_folder, tmp_path):
    tiny_model(dtype=torch.float32, vocab_size=4096, num_hidden_layers=2).save_pretrained(
        tmp_path, max_shard_size="700KB"
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_folder / name).read_bytes())
    shard = sorted(tmp_path.glob("model-*.safetensors"))[0]
    first, *rest = sorted(load_file(shard).items())
    save_file(dict(rest) or {"nothing": torch.ones(1)}, shard, metadata={"format": "pt"})
    assert first[0] in refusal(str(tmp_path))


def test_what_is_told_in_one_line_is_not_logged_as_a_table(changed, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    assert load_model(changed(lambda tensors: {**tensors, "more": torch.ones(1)})).notes
    assert [record for record in caplog.records if record.name.startswith("transformers")] == []
    assert logging.getLogger("transformers.modeling_utils").filters == []
