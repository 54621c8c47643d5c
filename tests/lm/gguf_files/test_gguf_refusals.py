"""GGUF files that cannot be read, or not right, are refused in one line by name, before work."""

import os
import shutil
import sys

import pytest

pytest.importorskip("gguf", reason="needs the gguf package")
pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate alone")

import gguf
import numpy as np
from gguf_made import write_gguf

from pqkv.errors import ModelError
from pqkv.lm import load_model


def refusal(path):
    with pytest.raises(ModelError) as caught:
        load_model(str(path))
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(("name", "part"), [("big-00001-of-00003.gguf", "part 1 of 3"), ("big.gguf", "one of 3 parts")])
def test_a_split_file_is_refused(model, tmp_path, name, part):
    settings = [("split.count", 3)] if part.startswith("one") else []
    write_gguf(tmp_path / name, model, settings=settings)
    assert f"it is {part} of a split model" in refusal(tmp_path / name)


def test_an_architecture_that_the_loader_lacks_is_refused_by_name(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "rwkv6")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    text = refusal(tmp_path / "other.gguf")
    assert "it is of architecture 'rwkv6'" in text
    assert "llama, qwen2, qwen3, phi3, gemma3" in text


def test_a_quantization_type_that_cannot_be_dequantized_is_refused_by_name(model, tmp_path):
    write_gguf(tmp_path / "f64.gguf", model, tensors=[("extra.weight", np.zeros((4, 32), np.float64))])
    assert "holds tensors of type F64" in refusal(tmp_path / "f64.gguf")


def test_a_quantization_type_newer_than_the_package_is_refused_by_number(file, tmp_path):
    path = tmp_path / "new.gguf"
    data = file[0].read_bytes()
    name = b"blk.0.ffn_down.weight"
    at = data.index(name) + len(name) + 4 + 16  # after dimensions
    path.write_bytes(data[:at] + (999).to_bytes(4, "little") + data[at + 4 :])
    assert "holds tensors of type number 999" in refusal(path)


@pytest.mark.parametrize(
    ("settings", "tensors", "what"),
    [
        ([("llama.rope.scaling.type", "yarn")], [], "llama.rope.scaling.type 'yarn'"),
        ([("llama.rope.scale_linear", 4)], [], "llama.rope.scale_linear"),
        ([], [("rope_freqs.weight", np.ones(8, np.float32))], "rope_freqs.weight"),
    ],
)
def test_a_scaled_rotary_embedding_that_the_loader_would_drop_is_refused(model, tmp_path, settings, tensors, what):
    write_gguf(tmp_path / "long.gguf", model, settings=settings, tensors=tensors)
    assert f"scales its rotary embedding ({what})" in refusal(tmp_path / "long.gguf")


def test_an_adapter_is_no_model(model, tmp_path):
    write_gguf(tmp_path / "lora.gguf", model, settings=[("general.type", "adapter")])
    assert "holds no model: its general.type is 'adapter'" in refusal(tmp_path / "lora.gguf")


def test_a_tensor_that_is_missing_is_an_error_and_not_random_weights(model, tmp_path, cache):
    write_gguf(tmp_path / "less.gguf", model, left_out=["blk.1.ffn_up"])
    assert "lacks 1 of 30 tensors (first: model.layers.1.mlp.up_proj.weight)" in refusal(tmp_path / "less.gguf")
    assert list((cache / "models").iterdir()) == []


@pytest.mark.parametrize("kept", [4, 20, 3000, -1])
def test_a_file_that_is_cut_off_is_refused(file, tmp_path, kept):
    path = tmp_path / "cut.gguf"
    path.write_bytes(file[0].read_bytes()[:kept])
    assert "it is cut off" in refusal(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not a GGUF file"),
        (b"GGML and more", "is not a GGUF file"),
        (b"GGUF" + (1).to_bytes(4, "little") + bytes(64), "is GGUF of version 1"),
        (b"GGUF" + (3).to_bytes(4, "big") + bytes(64), "or big-endian"),
        (b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 64, "cut off or damaged"),
    ],
)
def test_what_is_no_gguf_file_is_refused(tmp_path, content, problem):
    (tmp_path / "x.gguf").write_bytes(content)
    assert problem in refusal(tmp_path / "x.gguf")


@pytest.mark.parametrize("missing", [["gguf"], ["accelerate"], ["gguf", "accelerate"]])
def test_missing_packages_are_named_with_their_command_before_the_work(file, monkeypatch, missing):
    from pqkv.lm import gguf as reader

    monkeypatch.setattr(reader, "find_spec", lambda name: None if name in missing else sys.modules[name].__spec__)
    monkeypatch.setattr(reader, "file_digest", lambda path: pytest.fail("hashed"))
    text = refusal(file[0])
    assert f"pip install {' '.join(missing)}" in text
    assert f"the package{'s' * (len(missing) - 1)} {' and '.join(missing)}, not installed" in text


def test_a_folder_of_gguf_files_says_which_to_name(file):
    assert f"name a file in it: {file[0]}" in refusal(file[0].parent)


def test_a_file_that_is_not_there_is_called_a_file(tmp_path):
    assert refusal(tmp_path / "no.gguf") == f"there is no model file {tmp_path / 'no.gguf'}"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read_is_refused(file, tmp_path):
    shutil.copy(file[0], tmp_path / "mine.gguf")
    (tmp_path / "mine.gguf").chmod(0)
    assert "cannot be read: Permission denied" in refusal(tmp_path / "mine.gguf")
