"""Whole models: what a record holds on a tiny one, and that named shapes are the models they are named after."""

import statistics

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from pqkv.config import BenchConfig
from pqkv.errors import ConfigError, ModelError
from pqkv.lm.shapes import SHAPES, heads_of, random_model
from pqkv.record import RecordStore
from pqkv.speed.end_to_end import end_to_end


@pytest.fixture(scope="module")
def config(tiny_folder):
    return BenchConfig(
        model=str(tiny_folder), end_to_end=True, bits=(4, 0), lengths=(20,), batch=(2,), new_tokens=12, page_size=4,
        residual=8, repeats=2, backend="reference",
    )  # fmt: skip


@pytest.fixture(scope="module")
def records(config):
    return list(end_to_end(config))


def test_a_record_compares_with_exact_caches_of_the_same_rounds(records):
    assert [record.status for record in records] == ["ok", "ok"]
    for record in records:
        assert {row["name"] for row in record.tables["caches"]} == {"pqkv", "DynamicCache", "StaticCache"}
        ours, *exact = (record.samples[f"{name} tpot_ms"] for name in ("pqkv", "DynamicCache", "StaticCache"))
        assert len(ours) == 2
        strongest = min(exact, key=statistics.median)
        expected = statistics.median(theirs / mine for theirs, mine in zip(strongest, ours, strict=True))
        assert record.metrics["speedup"].value == pytest.approx(expected)
        assert record.metrics["tpot_ms"].value == pytest.approx(statistics.median(ours))
        assert record.metrics["amdahl_ceiling"].value > 0
        assert record.config["backend"] == "reference"


def test_pages_were_sealed_on_the_way(records):
    """20 + 12 tokens, 4 sinks, residual 8: five pages of 4 tokens, 2 sequences, 2 layers, 4 bits an element."""
    coded, exact = (record.metrics["cache_bytes"].value for record in records)
    head = 2 * 16  # KV heads x head_dim
    codes = 2 * 2 * 5 * 4 * 2 * head // 2
    assert coded > codes
    assert exact == 2 * 2 * 8 * 4 * 2 * head * 4 + 2 * 8 * 4  # eight whole pages of float32, and the table


def test_a_shape_by_its_numbers_is_the_one_of_its_bits(config):
    wanted = config.model_copy(update={"bits": (), "num_subspaces": 8, "nbits": 8, "repeats": 1})
    (record,) = end_to_end(wanted)
    assert (record.status, record.config["bits"], record.metrics["code_bits"].value) == ("ok", 4.0, 4.0)


def test_a_finished_cell_is_not_run_again(config, tmp_path):
    store = RecordStore(tmp_path)
    first = [record.seconds for record in end_to_end(config, store)]
    assert [record.seconds for record in end_to_end(config, store)] == first


@pytest.mark.parametrize(("name", "billions"), [("llama-2-7b", 6.738), ("llama-3.1-8b", 8.030), ("tinyllama", 1.100)])
def test_named_shapes_have_the_parameters_of_their_models(name, billions):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPES[name], tie_word_embeddings=False))
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=1e-3)


def test_heads_of_a_named_shape():
    assert heads_of("llama-3.1-8b") == {"heads": 32, "kv_heads": 8, "head_dim": 128}
    with pytest.raises(ConfigError, match="names a shape: llama-2-7b"):
        heads_of("gpt-2")


def test_an_unknown_shape_is_refused():
    with pytest.raises(ModelError, match="no shape is called 'gpt-2'"):
        random_model("gpt-2", "float32", torch.device("cpu"))
