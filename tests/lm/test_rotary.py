"""What positions do to keys is read off the model and held to its own keys."""

import numpy as np
import pytest
import torch
from models import random_ids, tiny_lm

from pqkv.codec.rotary import Rotary
from pqkv.errors import ModelError
from pqkv.lm.capture import capture
from pqkv.lm.rotary import layer_rotaries

FAMILIES = {
    "llama": {}, "qwen3": {}, "phi3": {"partial_rotary_factor": 0.5}, "gemma3_text": {"num_hidden_layers": 6},
    "llama-yarn": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                                       "original_max_position_embeddings": 512}},
    "smollm3": {"num_hidden_layers": 4},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_taken_back_to_the_start_do_not_know_where_they_stood(family, dtype):
    lm = tiny_lm(family.partition("-")[0], dtype=dtype, **FAMILIES[family])
    rotaries = layer_rotaries(lm)
    ids = random_ids(40, seed=3).numpy()
    here, there = (capture(lm, ids, 40, 0, starts=np.array([s])) for s in (5, 900))
    assert len(rotaries) == len(lm.coded_layers)
    close = 1e-4 if dtype == torch.float32 else 0.1
    for rotary, a, b in zip(rotaries, here.keys, there.keys, strict=True):
        taken = [rotary.take_off(keys.double(), s.positions) for keys, s in ((a, here), (b, there))]
        assert float((taken[0] - taken[1]).norm() / taken[0].norm()) < close
        if rotary.pairs:
            assert float((a - b).norm() / a.norm()) > 0.1


def test_layers_without_rotary_embedding_have_no_pairs():
    assert [rotary.pairs for rotary in layer_rotaries(tiny_lm("smollm3", num_hidden_layers=4))] == [8, 8, 8, 0]


def test_turning_there_and_back_is_nothing():
    rotary = Rotary(torch.logspace(0, -4, 3, dtype=torch.float64))
    vectors = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    positions = torch.tensor([0, 1, 17, 4000, 100_000])
    turned = rotary.turn(vectors, positions)
    assert torch.allclose(rotary.take_off(turned, positions), vectors)
    assert torch.equal(turned[..., 6:], vectors[..., 6:])
    assert torch.allclose(turned[..., 1, 0], vectors[..., 1, 0] * np.cos(1.0) - vectors[..., 1, 3] * np.sin(1.0))


def test_an_embedding_that_is_not_understood_is_refused(monkeypatch):
    lm = tiny_lm()
    monkeypatch.setattr("pqkv.lm.rotary._frequencies", lambda lm: [Rotary(torch.ones(8, dtype=torch.float64))])
    with pytest.raises(ModelError, match="rotary embedding of tiny-llama's layer 0"):
        layer_rotaries(lm)
