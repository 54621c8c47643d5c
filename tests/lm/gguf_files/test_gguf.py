"""GGUF files: the weights that were written come out, and the record says what they were."""

import dataclasses
import shutil

import pytest
import torch

pytest.importorskip("gguf", reason="needs the gguf package")
pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate alone")

import gguf
import numpy as np
from gguf_made import KINDS, write_gguf
from models import tiny_model

from pqkv.lm import load_model
from pqkv.lm.gguf import ARCHITECTURES
from pqkv.lm.gguf_header import read_header


def test_weights_come_out_as_they_were_written(file):
    path, written = file
    lm = load_model(str(path))
    found = dict(lm.model.named_parameters())
    assert found.keys() == written.keys()
    assert all(torch.equal(found[name], weight) for name, weight in written.items())
    assert not torch.equal(written["model.layers.0.mlp.down_proj.weight"], torch.zeros(()))
    assert (lm.name, lm.max_positions, lm.vocab_size, lm.head_dim) == ("tiny.gguf", 2048, 320, 16)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "phi3", "gemma3_text"])
def test_every_architecture_computes_what_the_model_that_was_written_does(family, tmp_path):
    more = {"head_dim": 128} if family == "qwen3" else {}  # the loader knows no other
    model = tiny_model(family, dtype=torch.float32, vocab_size=320, **more)
    written = write_gguf(tmp_path / "tiny.gguf", model)
    lm = load_model(str(tmp_path / "tiny.gguf"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(written[name])
        ids = torch.randint(3, 320, (1, 50), generator=torch.Generator().manual_seed(0))
        assert torch.equal(lm.model(ids).logits, model(ids).logits)
    assert lm.family == family


def test_every_architecture_is_one_that_the_loader_reads():
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    assert set(ARCHITECTURES) <= set(GGUF_SUPPORTED_ARCHITECTURES)


def test_its_tokenizer_gives_the_text_back(file):
    lm = load_model(str(file[0]))
    text = "Remember: the code of amber-falcon is 48213."
    assert lm.tokenizer.decode(lm.encode(text)) == text
    assert lm.separator == 2


def test_the_record_says_what_was_dequantized_and_holds_no_path(file):
    lm = load_model(str(file[0]))
    (note,) = lm.notes
    assert note.startswith(
        "weights dequantized from tiny.gguf, whose tensors are F32 (21), Q8_0 (3), Q4_1 (3), Q4_0 (3)"
    )
    assert str(file[0].parent) not in " ".join([*lm.notes, *lm.identity().values(), repr(lm.model.config)])


def test_identity_and_notes_are_the_same_kept_or_not_and_wherever_the_file_lies(file, tmp_path, monkeypatch):
    first, second = (load_model(str(file[0])) for _ in range(2))
    elsewhere = tmp_path / "elsewhere" / "tiny.gguf"
    elsewhere.parent.mkdir()
    shutil.copy(file[0], elsewhere)
    moved = load_model(str(elsewhere))
    full = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    monkeypatch.setenv("PQKV_CACHE", str(tmp_path / "other"))
    unkept = load_model(str(file[0]))
    for lm in (second, moved, unkept):
        assert (lm.identity(), lm.notes) == (first.identity(), first.notes)
        assert lm.encode("the old river") == first.encode("the old river")


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_dtypes_are_rounded_from_float32(file, dtype):
    lm = load_model(str(file[0]), dtype)
    for name, weight in lm.model.named_parameters():
        assert torch.equal(weight, file[1][name].to(getattr(torch, dtype)))


def test_nothing_is_written_to_the_terminal(file, capfd):
    load_model(str(file[0]))
    out, err = capfd.readouterr()
    assert out == ""
    assert "%|" not in err


def test_weights_and_windows_that_the_loader_drops_are_noted(model, tmp_path):
    write_gguf(
        tmp_path / "more.gguf",
        model,
        settings=[("llama.attention.sliding_window", 100)],
        tensors=[("blk.0.extra.weight", np.zeros((2, 8), np.float32))],
    )
    for _ in range(2):  # from the file, and from what was kept
        notes = load_model(str(tmp_path / "more.gguf")).notes
        assert "the file holds 16 weights without a place in the model" in notes
        assert "the loader drops attention.sliding_window: another model past 100 tokens" in notes


def test_the_header_is_what_the_gguf_package_reads(file):
    header, reader = read_header(file[0]), gguf.GGUFReader(file[0])
    assert header.architecture == "llama"
    assert header.settings["llama.attention.head_count_kv"] == 2
    assert header.settings["tokenizer.ggml.tokens"] == 320
    assert header.start == reader.data_offset
    listed = [(t.name, tuple(map(int, t.shape)), int(t.tensor_type), int(t.data_offset)) for t in reader.tensors]
    moved = [dataclasses.replace(tensor, offset=tensor.offset + header.start) for tensor in header.tensors]
    assert [(t.name, t.shape, t.kind, t.offset) for t in moved] == listed
    assert {gguf.GGMLQuantizationType(t.kind) for t in header.tensors} == {
        *KINDS.values(),
        gguf.GGMLQuantizationType.F32,
    }
