"""`eval` and rotary embeddings that follow the length: refused where steps are not one forward, never called a cost."""

import pytest
import torch
from grids import run, trained
from models import tiny_model, write_corpus

from pqkv.errors import ConfigError
from pqkv.lm import load_model
from pqkv.lm.load import REFERENCE_FOLDER

SWITCH = 100  # tokens with the factors of short sequences
ROPES = {
    "longrope": (
        "phi3",
        {
            "rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8},
            "original_max_position_embeddings": SWITCH,
            "max_position_embeddings": 4 * SWITCH,
        },
    ),
    "yarn": (
        "llama",
        {
            "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": SWITCH},
            "max_position_embeddings": SWITCH,
        },
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("rope")
    write_corpus(place / "prose", ["1.txt", "2.txt"])
    write_corpus(place / "calibration", ["1.txt", "2.txt"], seed=1)
    for kind, (family, more) in ROPES.items():
        model = tiny_model(family, dtype=torch.float32, vocab_size=4096, num_hidden_layers=2, **more)
        model.save_pretrained(place / kind)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (place / kind / name).write_bytes((REFERENCE_FOLDER / name).read_bytes())
    return place


def grid(place, kind, **more):
    books = place / f"{kind}.books"
    if not books.exists():
        trained(load_model(str(place / kind)), books, place / "calibration")  # windows of 200 tokens
    return {
        "model": str(place / kind), "data": str(place / "prose"), "codebooks": (str(books),), "windows": 1,
        "page_size": 16, "residual": 32, "metrics": ("kld",), "context": (200,), **more,
    }  # fmt: skip


@pytest.mark.parametrize("mode", ["token", "chunk", "decode"])
def test_steps_across_a_switch_are_refused_by_name_before_a_cell_runs(place, mode):
    told = []
    more = {"chunk_size": 60, "decode_tokens": 150}
    with pytest.raises(ConfigError, match=r"rope type 'longrope' .* past 100 tokens.* lower --context to 100 or take"):
        run(grid(place, "longrope", mode=(mode,), **more), report=told.append)
    assert not told


def test_one_forward_past_the_switch_is_measured(place):
    (record,) = run(grid(place, "longrope"))
    assert record.status == "ok"
    assert record.metrics["coded_share"].value > 0.5


def test_decoding_after_a_prefill_past_the_switch_is_one_forward(place):
    (record,) = run(grid(place, "longrope", mode=("decode",), decode_tokens=20, codebooks=(), bits=(0,)))
    assert record.metrics["kld_mean"].value < 1e-6


def test_codebooks_of_the_other_factors_are_refused_by_name(place):
    with pytest.raises(ConfigError, match=r"windows of 200 tokens .*long factors.* context 90 .*short factors"):
        run(grid(place, "longrope", context=(90,)))


@pytest.mark.parametrize("mode", ["exact-schedule", "token"])
def test_positions_that_yarn_stretches_are_served_and_said(place, mode):
    (record,) = run(grid(place, "yarn", mode=(mode,), context=(390,)))
    assert record.status == "ok"
    assert any("rope type 'yarn', factor 4 on 100 positions" in note for note in record.notes)
    with pytest.raises(ConfigError, match=r"context 401 is beyond the 400 positions .* rope type 'yarn', factor 4"):
        run(grid(place, "yarn", mode=(mode,), context=(401,)))


def test_exact_steps_of_a_stretched_model_cost_nothing(place):
    (record,) = run(grid(place, "yarn", mode=("token",), context=(390,), codebooks=(), bits=(0,)))
    assert record.metrics["kld_mean"].value < 1e-6
