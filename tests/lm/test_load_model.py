"""Loading a model: what comes out, and what is said when nothing can."""

import json

import pytest
import torch
from models import tiny_model

from pqkv.errors import ModelError
from pqkv.lm import load_model
from pqkv.lm.families import SUPPORTED_FAMILIES


def test_the_reference_model_is_what_its_config_says(reference):
    assert (reference.name, reference.family) == ("reference", "llama")
    shape = (reference.num_layers, reference.num_heads, reference.num_kv_heads, reference.head_dim)
    assert shape == (6, 4, 2, 64)
    assert (reference.max_positions, reference.vocab_size, reference.separator) == (8192, 4096, 0)
    assert (reference.dtype, reference.device) == (torch.float32, torch.device("cpu"))
    assert not reference.model.training


def test_encoding_gives_the_text_back(reference):
    text = "def f():\n    return 48213\n"
    assert reference.tokenizer.decode(reference.encode(text)) == text
    assert reference.encode("") == []


def test_encoding_adds_no_special_token_even_if_the_tokenizer_would(tiny_folder):
    from tokenizers.processors import TemplateProcessing

    lm = load_model(str(tiny_folder))
    template = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    lm.tokenizer.backend_tokenizer.post_processor = template
    assert lm.tokenizer("abc")["input_ids"][0] == 0
    assert 0 not in lm.encode("abc")


def test_logits_of_plain_text_are_those_of_a_model_that_learned(reference, prose):
    logits = reference.logits(prose[:, :256])
    nll = torch.nn.functional.cross_entropy(logits[0, :-1], prose[0, 1:256])
    assert nll < 5.0  # a uniform guess over 4,096 tokens costs 8.3 nats


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_fingerprint_and_digest_do_not_depend_on_dtype(tiny_folder, dtype):
    plain, other = load_model(str(tiny_folder)), load_model(str(tiny_folder), dtype)
    assert other.dtype == getattr(torch, dtype)
    assert other.identity() == plain.identity()
    assert plain.name == "tiny"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_bundled_fingerprint_is_the_same_in_half_precision(reference, dtype):
    assert load_model(dtype=dtype).identity() == reference.identity()


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj", "o_proj"])
def test_the_fingerprint_sees_a_change_of_attention_weights(tiny_folder, layer, name):
    from pqkv.lm.load import describe

    lm = load_model(str(tiny_folder))
    with torch.no_grad():
        getattr(lm.model.model.layers[layer].self_attn, name).weight[3, 3] += 0.5
    assert describe("tiny", lm.model, None).fingerprint != lm.fingerprint


def test_what_does_not_make_a_model_another_does_not_change_its_digest(tiny_folder, tmp_path):
    config = json.loads((tiny_folder / "config.json").read_text())
    for key, value, same in (
        ("use_cache", False, True),
        ("transformers_version", "1", True),
        ("rms_norm_eps", 1e-3, False),
    ):
        folder = tmp_path / key
        folder.mkdir()
        for file in tiny_folder.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        (folder / "config.json").write_text(json.dumps({**config, key: value}))
        assert (load_model(str(folder)).config_digest == load_model(str(tiny_folder)).config_digest) is same


def one_line_error(*arguments):
    with pytest.raises(ModelError) as caught:
        load_model(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_without_config_or_weights_or_tokenizer_is_refused(tiny_folder, tmp_path):
    for missing in ("config.json", "model.safetensors", "tokenizer.json"):
        folder = tmp_path / missing
        folder.mkdir()
        for file in tiny_folder.iterdir():
            if file.name != missing:
                (folder / file.name).write_bytes(file.read_bytes())
        assert one_line_error(str(folder)).startswith("cannot load the model")


def test_a_folder_without_tokenizer_says_so(tiny_folder, tmp_path):
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((tiny_folder / file).read_bytes())
    assert "its tokenizer cannot be read: tokenizer.json is missing" in one_line_error(str(tmp_path))


def test_a_tokenizer_is_looked_for_before_the_weights_are_read(tiny_folder, tmp_path):
    (tmp_path / "config.json").write_bytes((tiny_folder / "config.json").read_bytes())
    assert "tokenizer" in one_line_error(str(tmp_path)).split(" (give")[0]


def configured(tiny_folder, folder, change):
    for file in tiny_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_a_model_with_code_of_its_own_is_refused_without_a_question(tiny_folder, tmp_path, monkeypatch):
    """transformers would ask at the terminal, and names an argument that pqkv has not."""
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    folder = configured(tiny_folder, tmp_path, lambda config: config.update(own))
    monkeypatch.setattr("builtins.input", lambda prompt="": pytest.fail("asked at the terminal"))
    text = one_line_error(folder)
    assert "brings Python code of its own, which pqkv does not run" in text
    assert "trust_remote_code" not in text


def test_what_transformers_says_over_several_lines_keeps_its_meaning(tiny_folder, tmp_path):
    folder = configured(tiny_folder, tmp_path, lambda config: config.update(hidden_size=66))
    assert "The hidden size (66) is not a multiple of the number of attention heads (4)." in one_line_error(folder)


def test_positions_that_a_configuration_does_not_state_are_a_note(tiny_folder, tmp_path):
    lm = load_model(configured(tiny_folder, tmp_path, lambda config: config.pop("max_position_embeddings")))
    assert lm.max_positions == 2048
    assert lm.notes == ("config.json states no max_position_embeddings: 2048, as llama has",)
    assert load_model(str(tiny_folder)).notes == ()


def test_positions_that_are_null_are_refused(tiny_folder, tmp_path):
    folder = configured(tiny_folder, tmp_path, lambda config: config.update(max_position_embeddings=None))
    assert "Field 'max_position_embeddings' expected int, got NoneType" in one_line_error(folder)


def test_an_unsupported_family_is_refused_before_its_weights_are_read(tmp_path):
    tiny_model("gpt2", n_embd=64, n_layer=1, n_head=4).config.save_pretrained(tmp_path)
    assert f"supported: {', '.join(SUPPORTED_FAMILIES)}" in one_line_error(str(tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_a_gpu_is_refused_before_anything_is_loaded():
    assert one_line_error("reference", "float32", "cuda").startswith("device 'cuda' cannot be used: ")


def test_a_device_that_does_not_exist_is_refused():
    assert "device 'warp' cannot be used" in one_line_error("reference", "float32", "warp")


@pytest.mark.parametrize("name", ["/nowhere", "./nowhere", "~/nowhere"])
def test_a_folder_that_is_not_there_is_called_a_folder(name):
    assert one_line_error(name).startswith(f"there is no model folder {name}")
