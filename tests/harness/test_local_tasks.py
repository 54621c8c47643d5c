"""The harness's model `pqkv` on local tasks: beside its own `hf`, beside `pqkv eval`, beside the control."""

import json

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'pqkv[lm-eval]'")

from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM
from models import WORDS
from runs import SMALL, metric, responses, run, run_and_describe

from pqkv.codec.codebook_file import load_codebooks
from pqkv.config import CacheConfig
from pqkv.errors import ConfigError
from pqkv.harness.model import PQKVLM
from pqkv.lm import PQKVCache, attach, load_model
from pqkv.lm.load import REFERENCE_FOLDER
from pqkv.lm.step import cache_argument
from pqkv.quality.control import shuffled
from pqkv.quality.modes import run_coded


@pytest.fixture(scope="module")
def by_hf(tasks):
    return run(HFLM(pretrained=str(REFERENCE_FOLDER), dtype="float64", device="cpu", batch_size=3), tasks)


@pytest.fixture(scope="module")
def coded(tasks, four):
    """(model, results) on 4 bits, three sequences at a time."""
    lm = PQKVLM(codebooks=str(four), dtype="float64", batch_size=3, **SMALL)
    return lm, run_and_describe(lm, tasks)


def close(a, b):
    return all(
        abs(x[0] - y[0]) <= 1e-6 and x[1] == y[1] if isinstance(x, tuple) else abs(x - y) <= 1e-6
        for x, y in zip(a, b, strict=True)
    )


def test_the_exact_cache_answers_as_the_harness_own_model(tasks, by_hf):
    exact = run(PQKVLM(bits=0, dtype="float64", batch_size=3), tasks)
    assert close(responses(exact, "local_choice"), responses(by_hf, "local_choice"))
    assert close(responses(exact, "local_text"), responses(by_hf, "local_text"))
    assert responses(exact, "local_words") == responses(by_hf, "local_words")
    for name, key in (("local_choice", "acc"), ("local_text", "word_perplexity"), ("local_words", "exact_match")):
        assert abs(metric(exact, name, key) - metric(by_hf, name, key)) <= 1e-6 * metric(by_hf, name, key)


def expected(lm, text, continuation, four, mode, sinks=0):
    """What `pqkv eval` computes: the sum of log-probabilities of a continuation of one window alone."""
    ids = [*lm.encode(text), *lm.encode(continuation)]
    cache = CacheConfig(**SMALL)
    books = load_codebooks(four)[0]
    logits = run_coded(lm, torch.tensor([ids[:-1]]), books, cache, mode, coded_sinks=sinks)[0]
    targets = torch.tensor(ids[-len(lm.encode(continuation)) :])
    return float(logits.log_softmax(-1)[-len(targets) :].gather(-1, targets[:, None]).sum())


@pytest.mark.parametrize(("mode", "sinks"), [("exact-schedule", 0), ("all-coded", 4)])
def test_coded_answers_are_those_of_eval_on_each_sequence_alone(tasks, four, by_hf, mode, sinks):
    more = {"mode": mode, "coded_sinks": sinks}
    lm = PQKVLM(codebooks=str(four), dtype="float64", batch_size=3, **SMALL, **more)
    results = run(lm, tasks, ["local_choice"], limit=2)
    own = load_model(dtype="float64")
    samples = results["samples"]["local_choice"]
    assert len({len(own.encode(sample["doc"]["prompt"])) for sample in samples}) > 1  # batches were padded
    for sample in samples:
        for choice, ((log_p, _),) in zip(sample["doc"]["choices"], sample["resps"], strict=True):
            assert abs(log_p - expected(own, sample["doc"]["prompt"], f" {choice}", four, mode, sinks)) <= 1e-9
    assert not close(responses(results, "local_choice"), responses(by_hf, "local_choice")[:8])


def test_texts_are_generated_token_for_token_as_on_the_real_cache(coded, four):
    _, results = coded
    own, books = load_model(dtype="float64"), load_codebooks(four)[0]
    attach(own.model)
    for sample in results["samples"]["local_words"]:
        ids = torch.tensor([own.encode(sample["doc"]["prompt"])])
        cache = PQKVCache(own.model.config, books, CacheConfig(**SMALL))
        out = own.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0,
            **cache_argument(own.model, cache),
        )  # fmt: skip
        text = own.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).split("\n\n")[0]
        assert sample["resps"] == [[text]]


def test_results_say_what_was_coded_and_how_much_of_it_was_seen(coded):
    lm, results = coded
    about = json.loads(json.dumps(results["config"]["pqkv"]))
    assert about["code_bits"] == 4
    assert about["modes"] == {
        "loglikelihood": "exact-schedule", "loglikelihood_rolling": "exact-schedule", "generate_until": "cache",
    }  # fmt: skip
    seen = about["coded_columns"]
    assert set(seen["loglikelihood"]["local_choice"]) == {"coded_share", "requests", "requests_with_codes"}
    assert 0.3 < seen["loglikelihood"]["local_choice"]["coded_share"] < 0.6
    # counted row by row: what sees codes are pages sealed before the row, behind four sinks
    columns = coded_columns = 0
    for sample in results["samples"]["local_text"]:
        n = len(lm.coded.lm.encode(sample["doc"]["text"]))
        for cached in range(n):
            columns += cached + 1
            coded_columns += max(0, (cached - 4 - 32 + 16) // 16) * 16
    assert abs(seen["loglikelihood_rolling"]["local_text"]["coded_share"] - coded_columns / columns) <= 1e-12
    assert 0.5 < seen["generate_until"]["local_words"]["coded_share"] < 1


def test_the_control_is_that_of_eval(tasks, four):
    lm = PQKVLM(codebooks=str(four), dtype="float64", batch_size=3, control=True, **SMALL)
    results = run(lm, tasks, ["local_choice"], limit=1)
    own, books = load_model(dtype="float64"), shuffled(load_codebooks(four)[0])
    sample = results["samples"]["local_choice"][0]
    ids = own.encode(sample["doc"]["prompt"])
    target = own.encode(f" {sample['doc']['choices'][0]}")
    whole = torch.tensor([[*ids, *target]])
    logits = run_coded(own, whole[:, :-1], books, CacheConfig(**SMALL), "exact-schedule")[0]
    log_p = logits.log_softmax(-1)[-len(target) :].gather(-1, torch.tensor(target)[:, None]).sum()
    assert abs(sample["resps"][0][0][0] - float(log_p)) <= 1e-9


@pytest.mark.parametrize(
    ("more", "remedy"),
    [({}, "mode=all-coded,coded_sinks=4"), ({"mode": "all-coded", "coded_sinks": 500}, "coded_sinks=500")],
)
def test_a_run_that_codes_nothing_is_refused_before_its_first_forward(tasks, four, more, remedy, monkeypatch):
    lm = PQKVLM(codebooks=str(four), **more)
    monkeypatch.setattr(lm.coded.lm.model, "forward", None)
    for name in ("local_choice", "local_text"):
        with pytest.raises(ConfigError, match=f"{name}: 0% coded columns") as caught:
            run(lm, tasks, [name])
        assert remedy in str(caught.value)


def test_generation_that_meets_no_codes_is_refused(tasks, four):
    with pytest.raises(ConfigError, match=r"local_words: 0% coded columns.*132 tokens.*residual"):
        run(PQKVLM(codebooks=str(four), batch_size=4, dtype="float64"), tasks, ["local_words"])


def asked(model, path, prompts):
    """(answers, those that the model was asked for) of a model behind the file of answers at `path`."""
    fresh, answer = [], model.loglikelihood

    def loglikelihood(requests):
        fresh.extend(requests)
        return answer(requests)

    model.loglikelihood = loglikelihood
    requests = [
        Instance("loglikelihood", {}, (prompt, " bread"), 0, ("local", number, 1))
        for number, prompt in enumerate(prompts)
    ]
    return CachingLM(model, str(path)).loglikelihood(requests), len(fresh)


def test_two_codings_share_a_file_of_answers_and_no_answer(four, tmp_path):
    prompts = [" ".join(WORDS.split()[i:] * 3) for i in range(3)]
    codings = {
        "schedule": {"codebooks": str(four)},
        "all-coded": {"codebooks": str(four), "mode": "all-coded", "coded_sinks": 4},
        "control": {"codebooks": str(four), "control": True},
        "other": {"codec": "q4_0", "residual": 32, "page_size": 32},
    }
    models = {name: PQKVLM(**{"batch_size": 3, **SMALL, **more}) for name, more in codings.items()}
    first = {name: asked(model, tmp_path / "answers.db", prompts) for name, model in models.items()}
    assert all(fresh == 3 for _, fresh in first.values())
    assert len({str(found) for found, _ in first.values()}) == 4
    again = {name: asked(model, tmp_path / "answers.db", prompts) for name, model in models.items()}
    assert again == {name: (found, 0) for name, (found, _) in first.items()}
    assert [path.name for path in tmp_path.iterdir()] == ["answers.db"]
