"""Other rotary embeddings at load: the model is the one that transformers makes of such a configuration."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from pqkv.config import EvalConfig, TrainConfig
from pqkv.errors import ConfigError, ModelError
from pqkv.lm import load_model
from pqkv.lm.defaults import _name
from pqkv.lm.rope_variant import RopeVariant, rope_variant
from pqkv.lm.rotary import layer_rotaries

THETA = 10000.0


def edited(tiny_folder, tmp_path, **rope):
    """A copy of the model whose configuration says so."""
    folder = tmp_path / "edited"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    positions = config["max_position_embeddings"]
    config["max_position_embeddings"] = 4 * positions
    config["rope_parameters"] = {"rope_theta": THETA, **rope}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, positions


@pytest.mark.parametrize("kind", ["linear", "ntk", "yarn"])
def test_logits_are_those_of_transformers_own(kind, tiny_folder, tmp_path):
    plain = load_model(str(tiny_folder))
    dim = plain.head_dim
    rope = {
        "linear": {"rope_type": "linear", "factor": 4.0},
        "ntk": {"rope_type": "default", "rope_theta": THETA * 4.0 ** (dim / (dim - 2))},
        "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": plain.max_positions},
    }[kind]
    folder, positions = edited(tiny_folder, tmp_path, **rope)
    own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    given = load_model(str(tiny_folder), rope=RopeVariant(kind, 4.0))
    ids = torch.randint(0, 4096, (1, 60), generator=torch.Generator().manual_seed(0))
    at = torch.arange(positions, positions + 60)[None]
    with torch.inference_mode():
        for places in (None, at):
            right = own(ids, position_ids=places).logits
            assert torch.allclose(given.model(ids, position_ids=places).logits, right, atol=1e-5)
        assert (plain.model(ids).logits - own(ids).logits).abs().max() > 1e-4
    assert given.max_positions == 4 * plain.max_positions
    assert given.config_digest != plain.config_digest
    assert given.fingerprint == plain.fingerprint


@pytest.mark.parametrize("kind", ["linear", "ntk", "yarn"])
def test_a_model_trained_on_less_than_its_configuration_says(kind, tiny_folder, tmp_path):
    """As if its configuration said the shorter length."""
    shorter = tmp_path / "shorter"
    shutil.copytree(tiny_folder, shorter)
    config = json.loads((shorter / "config.json").read_text())
    config["max_position_embeddings"] = 256
    (shorter / "config.json").write_text(json.dumps(config))
    right = load_model(str(shorter), rope=RopeVariant(kind, 4.0))
    given = load_model(str(tiny_folder), rope=RopeVariant(kind, 4.0, 256))
    ids, at = torch.arange(90)[None], torch.arange(700, 790)[None]
    with torch.inference_mode():
        assert torch.equal(given.model(ids, position_ids=at).logits, right.model(ids, position_ids=at).logits)
    assert given.max_positions == right.max_positions == 1024
    assert str(given.rope) == f"{kind}, factor 4 of 256"


def test_codecs_learn_of_the_rotary_embedding_that_is_there(tiny_folder):
    plain = load_model(str(tiny_folder))
    stretched = load_model(str(tiny_folder), rope=RopeVariant("linear", 2.0))
    pairs = zip(layer_rotaries(plain), layer_rotaries(stretched), strict=True)
    assert all(torch.allclose(a.frequencies, 2 * b.frequencies) for a, b in pairs)


def test_its_codebooks_are_its_own_and_names_of_before_stay(tiny_folder):
    plain = load_model(str(tiny_folder))
    other = load_model(str(tiny_folder), rope=RopeVariant("yarn", 2.0))
    config = TrainConfig.parse({"bits": 4})
    assert _name(plain, config) != _name(other, config)
    varied = TrainConfig.parse({"bits": 4, "rope": "yarn", "rope_factor": 2.0})
    assert _name(other, config) == _name(other, varied)


def test_a_record_says_so(tiny_folder, tmp_path):
    from models import write_corpus

    from pqkv.quality.evaluate import evaluate

    text = write_corpus(tmp_path / "prose", ["a.txt", "b.txt"])
    asked = {"model": str(tiny_folder), "data": str(text), "bits": [0], "context": [64], "windows": 1,
             "metrics": ["kld"], "mode": ["chunk"]}  # fmt: skip
    (plain,) = evaluate(EvalConfig.parse(asked))
    (varied,) = evaluate(EvalConfig.parse({**asked, "rope": "yarn", "rope_factor": 4}))
    assert "rope" not in plain.config
    assert varied.config["rope"] == "yarn, factor 4"
    assert plain.digest != varied.digest


def test_a_model_with_a_scaled_embedding_keeps_it(tiny_folder, tmp_path):
    folder, _ = edited(tiny_folder, tmp_path, rope_type="linear", factor=2.0)
    with pytest.raises(ModelError, match="has rope type linear of its own"):
        load_model(str(folder), rope=RopeVariant("yarn", 2.0))


@pytest.mark.parametrize("kind", [EvalConfig, TrainConfig])
@pytest.mark.parametrize(
    ("given", "message"),
    [({"rope": "yarn"}, "rope yarn needs a rope_factor"), ({"rope_factor": 2.0}, "rope default takes no rope_factor"),
     ({"rope": "yarn", "rope_factor": 0.5}, "greater than 1"), ({"rope": "alibi", "rope_factor": 2.0}, "rope")],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(kind, given, message):
    with pytest.raises(ConfigError, match=message):
        kind.parse(given)


def test_the_models_own_is_none():
    assert rope_variant("default", None) is None
    assert rope_variant("ntk", 2.0) == RopeVariant("ntk", 2.0)
