"""A model whose activations overflow its type: its cells fail with a remedy, and the next cell runs."""

import pytest
import torch
from grids import run, trained
from models import tiny_model, write_corpus

from pqkv.lm import load_model
from pqkv.lm.load import REFERENCE_FOLDER
from pqkv.quality.cell_run import Shared
from pqkv.record import RecordStore


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Its MLP overflows float16 for some tokens only, and float32 never."""
    folder = tmp_path_factory.mktemp("overflow") / "model"
    model = tiny_model(dtype=torch.float32, vocab_size=4096, num_hidden_layers=2).bfloat16().float()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1e6)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((REFERENCE_FOLDER / name).read_bytes())
    return folder


@pytest.mark.parametrize("mode", ["exact-schedule", "token"])
def test_a_cell_of_numbers_that_are_none_fails_and_the_next_one_runs(folder, tmp_path, mode):
    text, calibration = (write_corpus(tmp_path / name, ["1.txt", "2.txt"], seed=i) for i, name in enumerate("ab"))
    path = trained(load_model(str(folder)), tmp_path / "books", calibration)
    grid = {
        "model": str(folder), "data": str(text), "codebooks": (path,), "windows": 1, "page_size": 16, "residual": 32,
        "context": (60, 90), "mode": (mode,), "metrics": ("perplexity", "kld"),
    }  # fmt: skip
    store = RecordStore(tmp_path / "records")
    records = run({**grid, "dtype": "float16"}, store)
    assert [(record.status, record.config["context"]) for record in records] == [("failed", 60), ("failed", 90)]
    for record in records:
        assert "NaN in float16" in record.error
        assert "--dtype bfloat16 or float32" in record.error
        assert store.failure_path(record.digest).exists()
    assert [record.status for record in run(grid, store)] == ["ok", "ok"]


@pytest.mark.parametrize("metric", ["kld", "recall"])
def test_a_head_that_makes_no_numbers_of_sound_states_fails_its_cell_too(tiny_folder, tmp_path, metric):
    lm = load_model(str(tiny_folder))
    text, calibration = (write_corpus(tmp_path / name, ["1.txt", "2.txt"], seed=i) for i, name in enumerate("ab"))
    path = trained(lm, tmp_path / "books", calibration)
    with torch.no_grad():
        lm.model.lm_head.weight[7] = torch.nan
    assert lm.states(torch.tensor([[1, 2, 3]])).isfinite().all()
    grid = {
        "model": str(tiny_folder), "data": str(text), "codebooks": (path,), "windows": 1, "page_size": 16,
        "residual": 32, "context": (150,), "metrics": (metric,),
    }  # fmt: skip
    (record,) = run(grid, shared=Shared(lm))
    assert record.status == "failed"
    assert "the exact cache's own logits are NaN in float32" in record.error
