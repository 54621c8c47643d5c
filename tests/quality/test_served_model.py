"""Recipe pqkv through the real cache of models: token by token it is the schedule, which restores every vector."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from models import gap, random_ids, stepwise, tiny_lm

from pqkv.codec.codebook_file import Calibration
from pqkv.config import CacheConfig, TrainConfig
from pqkv.lm import PQKVCache, attach
from pqkv.lm.calibrate import Calibrated
from pqkv.lm.capture import capture
from pqkv.lm.rotary import layer_rotaries
from pqkv.lm.train import train
from pqkv.quality.modes import run_coded, run_exact

GEMMA = {
    "num_key_value_heads": 1, "num_attention_heads": 4, "head_dim": 256, "hidden_size": 64,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"], "sliding_window": 24,
    "query_pre_attn_scalar": 256,
}  # fmt: skip
MODELS = {
    "llama": ("llama", {}),
    "half of the channels turn": ("phi3", {"partial_rotary_factor": 0.5}),
    "one KV head of 256, sliding windows": ("gemma3_text", GEMMA),
    "no rotary embedding in some layers": ("smollm3", {"no_rope_layers": [1, 0, 1]}),
}
TOLERANCE = 2e-5  # of logits: what is decoded, and what a byte of gain stands for, are float32
CONFIG = CacheConfig(page_size=8, residual=16, sink_tokens=3)


def served(lm, **options):
    """Codebooks of recipe pqkv, learnt from random tokens at several positions."""
    tokens = random_ids(200, seed=3).repeat(4, 1).numpy()
    samples = capture(lm, tokens, 600, 0, starts=np.array([0, 30, 300, 700]), moments=True, leave_out=4)
    text = Calibration(name="random", split="all", sha256="", tokens=800, context=200, documents=())
    calibrated = Calibrated(replace(samples, rotary=layer_rotaries(lm)), 100, text)
    config = TrainConfig(num_subspaces=lm.head_dim // 4, nbits=4, iterations=2, samples=500, **options)
    return train(lm, config, calibrated=calibrated)[0]


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    family, more = MODELS[request.param]
    lm = tiny_lm(family, **more)
    return lm, served(lm)


@pytest.mark.parametrize("changes", [{}, {"sink_tokens": 0, "residual": 8}, {"key_layout": "row"}])
def test_the_real_cache_equals_the_schedule(model, changes):
    lm, books = model
    config, ids = CONFIG.model_copy(update={"backend": "reference", **changes}), random_ids(60, seed=5)
    schedule = run_coded(lm, ids, books, config, "exact-schedule")
    assert gap(run_coded(lm, ids, books, config, "token"), schedule) <= TOLERANCE
    assert gap(run_exact(lm, ids), schedule) > 1e-4


@pytest.mark.parametrize("paged", [True, False])
def test_chunks_see_what_was_coded_at_their_start(model, paged):
    lm, books = model
    layouts = {} if paged else {"key_layout": "row", "value_layout": "row"}
    config, ids = CONFIG.model_copy(update={"paged": paged, **layouts}), random_ids(60, seed=5)
    first = run_coded(lm, ids, books, CONFIG, "chunk", chunk_size=9)
    assert gap(run_coded(lm, ids, books, config, "chunk", chunk_size=9), first) <= TOLERANCE
    few = run_coded(lm, ids, books, CONFIG, "chunk", chunk_size=3)  # rows that look codes up one by one
    assert gap(few, run_coded(lm, ids, books, CONFIG, "exact-schedule")) < gap(few, run_exact(lm, ids)) * 10


def test_ragged_batches_and_forks_stand_where_they_stood(model):
    """Positions count real tokens: padding in front of a sequence moves nothing."""
    lm, books = model
    if lm.model.config.model_type == "gemma3_text":
        pytest.skip("sliding windows know no padding in the models' own attention of this size")
    attach(lm.model)
    ids = random_ids(48, seed=8)
    padded = torch.cat([torch.zeros(1, 7, dtype=ids.dtype), ids[:, :-7]], 1)
    both = torch.cat([ids, padded])
    mask = torch.ones_like(both)
    mask[1, :7] = 0
    cache = PQKVCache(lm.model.config, books, CONFIG)
    told = (mask[:, :40].cumsum(-1) - 1).clamp(min=0)
    lm.model(both[:, :40], attention_mask=mask[:, :40], past_key_values=cache, position_ids=told)
    alone = PQKVCache(lm.model.config, books, CONFIG)
    lm.model(ids[:, :33], past_key_values=alone)
    position = torch.tensor([[40], [33]])
    for t in range(40, 48):
        step = lm.model(
            both[:, t : t + 1], attention_mask=mask[:, : t + 1], past_key_values=cache, position_ids=position
        ).logits
        position = position + 1
        own = lm.model(ids[:, t - 7 : t - 6], past_key_values=alone).logits
        assert gap(step[1:], own) <= TOLERANCE
    cache.fork(1)
    more = stepwise(lm.model, random_ids(2, seed=9).expand(1, -1), alone)
    assert torch.isfinite(more).all()


def test_one_codebook_a_layer_is_served(model):
    lm, _ = model
    D = lm.head_dim
    books = served(lm, scope="layer")
    assert all(book.centroids.shape[0] == 1 for book in books.keys)
    ids = random_ids(50, seed=5)
    schedule = run_coded(lm, ids, books, CONFIG, "exact-schedule")
    assert gap(run_coded(lm, ids, books, CONFIG, "token"), schedule) <= TOLERANCE
    assert books.code_bits == pytest.approx(1 + 4 / D)
