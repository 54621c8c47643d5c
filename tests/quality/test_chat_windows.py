"""`eval --chat`: windows are conversations in the model's template, and what is scored is the answer."""

import json

import numpy as np
import pytest
import torch
from grids import run, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny_model, write_corpus
from tokenizers_made import chatting

from pqkv.config import EvalConfig
from pqkv.errors import ConfigError, ContaminationError, ModelError
from pqkv.lm import load_model
from pqkv.lm.chat import ChatTemplate
from pqkv.lm.tokens import TokenForm, token_form, token_stream
from pqkv.quality.inputs import model_inputs
from pqkv.quality.plan import plan
from pqkv.quality.recall import build_prompts
from pqkv.record import RecordStore
from pqkv.report.frame import to_frame
from pqkv.report.markdown import markdown
from pqkv.text import load_corpus, windows

NAMES = [f"{i}.txt" for i in range(4)]
MODES = ("exact-schedule", "all-coded", "token", "chunk", "decode")
FORM = TokenForm(bos=99, chat=ChatTemplate(before=(90, 91), between=(92, 93)))
WINDOWS = np.arange(3 * 25).reshape(3, 25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "model"
    tiny_model(dtype=torch.float32, vocab_size=170, num_hidden_layers=2).save_pretrained(folder)
    chatting().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lm(folder):
    return load_model(str(folder))


@pytest.fixture(scope="module")
def base(folder, lm, tmp_path_factory):
    place = tmp_path_factory.mktemp("chat-text")
    text, calibration = write_corpus(place / "prose", NAMES), write_corpus(place / "other", NAMES, seed=1)
    for name in NAMES:
        (text / name).write_text(f"<|end|>{(text / name).read_text()}<|user|>", encoding="utf-8")
    return {
        "model": str(folder), "data": str(text), "codebooks": (trained(lm, place / "books", calibration),),
        "context": (150,), "windows": 2, "page_size": 16, "residual": 32, "decode_tokens": 20, "chunk_size": 40,
        "metrics": ("perplexity", "kld"), "chat": True,
    }  # fmt: skip


@pytest.fixture(scope="module")
def form(lm):
    return token_form(lm, "auto", parse_special=False, chat=True)


def conversations(lm, form, data, count, length):
    """Written out: the template's tokens around two halves of as much of a window's text as they leave."""
    stream = token_stream(lm, load_corpus(str(data), None, default="test"), form)
    for window in windows(stream, length, count).tokens.tolist():
        text = window[: length - form.template_tokens]
        half = len(text) // 2
        asked = [*form.opening, *text[:half], *form.chat.between]
        yield asked, text[half:]


@settings(max_examples=200, deadline=None)
@given(st.integers(7, 24), st.data())
def test_every_token_of_the_answer_is_predicted_by_the_row_before_it_and_nothing_else_is_scored(length, data):
    newest = data.draw(st.integers(0, length - 2).filter(lambda n: n != 1))
    score_after = data.draw(st.integers(0, length - 3))
    found = model_inputs(WINDOWS[:, : length + bool(newest)], newest, FORM, score_after)
    text = length - 5
    asked = text // 2
    for b, window in enumerate(WINDOWS[:, : length + bool(newest)].tolist()):
        whole = [99, 90, 91, *window[:asked], 92, 93, *window[asked : text + bool(newest)]]
        assert found.ids[b].tolist() == whole[:length]
        first = max(5 + asked - 1, length - newest if newest else 0, score_after)
        assert found.position == first
        assert found.targets[b].tolist() == whole[first + 1 :]
        assert found.first[b] == first - (length - newest if newest else 0)
    assert found.targets.shape[1] >= 1


def test_the_exact_perplexity_is_that_of_the_answers_in_plain_forwards(base, lm, form):
    (record,) = run(base)
    expected = []
    for asked, answer in conversations(lm, form, base["data"], 2, 150):
        with torch.inference_mode():
            log_q = lm.model(torch.tensor([asked + answer])).logits[0, len(asked) - 1 : -1].float().log_softmax(-1)
        expected.append(float(-log_q.gather(1, torch.tensor(answer)[:, None]).mean()))
    assert record.samples["nll_exact"] == pytest.approx(expected, abs=1e-5)
    assert record.metrics["kld_mean"].n == 2 * len(answer)
    assert record.tables["by_position"][0]["start"] == len(asked) - 1
    (about,) = record.tables["text"]
    assert (about["template_tokens"], about["answer_tokens"]) == (form.template_tokens, len(answer))


def test_text_that_spells_the_templates_tokens_stays_text(base, lm, form):
    """The text of `base` does, in every document."""
    for asked, answer in conversations(lm, form, base["data"], 4, 150):
        control = [id for id in asked + answer if id in set(lm.tokenizer.all_special_ids)]
        assert lm.tokenizer.convert_ids_to_tokens(control) == ["<s>", "<|user|>", "<|end|>", "<|assistant|>"]
    assert run(base)[0].config["special_tokens"] == "text"


def test_every_mode_runs_and_the_schedule_is_token_by_token_decoding(base):
    records = {mode: run({**base, "mode": (mode,)})[0] for mode in MODES}
    answer = records["token"].tables["text"][0]["answer_tokens"]
    assert {mode: record.metrics["kld_mean"].n for mode, record in records.items()} == {
        **dict.fromkeys(MODES, 2 * answer), "decode": 2 * 20,
    }  # fmt: skip
    for name in ("perplexity", "perplexity_exact", "kld_mean"):
        schedule, token = (records[mode].metrics[name].value for mode in ("exact-schedule", "token"))
        assert token == pytest.approx(schedule, rel=2e-4)
    assert all(record.metrics["kld_mean"].value > 0 for record in records.values())
    assert len({record.config["chat"] for record in records.values()}) == 1
    assert records["decode"].tables["text"][0]["answer_tokens"] == 20


def test_decoded_tokens_before_the_answer_are_not_scored(base, form):
    (record,) = run({**base, "mode": ("decode",), "decode_tokens": 120})
    asked = (150 - form.template_tokens) // 2
    answer = 150 - form.template_tokens - asked
    assert record.metrics["kld_mean"].n == 2 * (answer + 1)  # what the last token predicts is one more
    assert record.tables["by_position"][0]["start"] == 149 - answer
    exact = run({**base, "mode": ("decode",), "decode_tokens": answer + 1})[0]
    assert record.metrics["perplexity_exact"].value == pytest.approx(exact.metrics["perplexity_exact"].value, rel=1e-5)


@pytest.mark.parametrize("mode", ["exact-schedule", "decode"])
def test_positions_before_the_given_one_are_left_out_of_the_answer(base, mode):
    whole, late = (run({**base, "mode": (mode,), "score_after": after})[0] for after in (0, 140))
    assert late.metrics["kld_mean"].n == 2 * (10 if mode == "decode" else 9)
    assert whole.metrics["kld_mean"].n > late.metrics["kld_mean"].n
    assert late.tables["by_position"][0]["start"] == 140
    early = run({**base, "mode": (mode,), "score_after": 3})[0]  # in the template: nothing more to leave out
    assert early.metrics == whole.metrics


def test_floors_and_layers_alone_score_the_same_tokens(base):
    records = run({**base, "noise_floor": True, "by_layer": True, "score_after": 120})
    assert [record.kind for record in records] == ["eval", "eval-by-layer", *["eval"] * 4]
    cell, layers, *floors = records
    assert layers.metrics["kld_mean"].value == pytest.approx(cell.metrics["kld_mean"].value, rel=1e-6)
    for floor in floors:
        assert floor.metrics["kld_mean"].n == cell.metrics["kld_mean"].n
        assert floor.tables["by_position"][0]["start"] == 120
    (cache,) = (floor for floor in floors if floor.config["floor"] == "bfloat16 cache")
    assert cache.metrics["perplexity_exact"].value == pytest.approx(cell.metrics["perplexity_exact"].value)
    for record in records:
        assert record.config["chat"] == cell.config["chat"]
        assert any("half the text is the user's" in note and "29 tokens are scored" in note for note in record.notes)


def test_a_conversation_is_another_cell_and_is_found_again(base, lm, tmp_path):
    store = RecordStore(tmp_path)
    (chat,), (plain,) = run(base, store), run({**base, "chat": False}, store)
    assert chat.digest != plain.digest
    assert "chat" not in plain.config
    assert not any("chat" in note or "answer" in note for note in plain.notes)
    assert not {"chat", "template_tokens", "answer_tokens"} & set(plain.tables["text"][0])
    assert run(base, store) == [chat]
    (planned,) = plan(EvalConfig(**base), lm, store)
    assert (planned.job.config, planned.recorded) == (chat.config, True)
    assert any("calibrated on windows of plain text" in note for note in chat.notes)
    assert "half the text is the user's" in markdown([chat, plain])
    assert sorted(to_frame([chat, plain])["chat"].fillna("")) == ["", chat.config["chat"]]


def test_text_that_codebooks_were_trained_on_is_refused(base, folder, tmp_path, lm):
    seen = write_corpus(tmp_path / "seen", NAMES)
    books = trained(lm, tmp_path / "books", seen)
    with pytest.raises(ContaminationError):
        run({**base, "data": str(seen), "codebooks": (books,)})


def test_recall_asks_in_the_users_words_and_the_assistant_answers(lm, form):
    filler = np.tile(np.arange(3, 153), (2, 8))[:, :1200]
    for window, prompt in zip(filler, build_prompts(lm, filler, 0, form), strict=True):
        assert len(prompt.ids) == len(window)
        assert tuple(prompt.ids[: len(form.opening)]) == form.opening
        text = lm.tokenizer.decode(prompt.ids)
        user, assistant = text.split("<|end|><|assistant|>")
        facts = dict(line.removesuffix(".").split(" is ") for line in user.split("Remember: the code of ")[1:]
                     for line in [line.split("\n")[0]])  # fmt: skip
        replies = dict(line.strip().removeprefix("The code of ").split(" is ") for line in assistant.split("\n"))
        assert replies == facts
        asked = user.rsplit("What ", 1)[1].split(" of ")[1].removesuffix("?").split(", ")
        assert asked == list(replies)  # one question for all, in the order of the answers
        assert len(prompt.questions) == len(facts) >= 2
        header = text.index("<|assistant|>")
        for question in prompt.questions:
            assert len(lm.tokenizer.decode(prompt.ids[: question.start])) > header
            assert lm.tokenizer.decode(prompt.ids[question.start : question.end]).strip() in facts.values()
    assert all(question.depth in (0.1, 0.3, 0.5, 0.7, 0.9) for question in prompt.questions)


def test_a_word_is_asked_for_by_the_user_and_planted_among_coded_columns(lm, form):
    filler = np.tile(np.arange(3, 153), (3, 3))[:, :450]
    for prompt in build_prompts(lm, filler, 0, form, (40, 250)):
        assert len(prompt.ids) == 450
        user, assistant = lm.tokenizer.decode(prompt.ids).split("<|end|><|assistant|>")
        fact = user.split("The secret word of ")[1].split(".")[0]
        assert user.endswith(f"What is the secret word of {fact.split(' is ')[0]}?")
        assert assistant.strip() == f"The secret word of {fact}"
        (question,) = prompt.questions
        assert lm.tokenizer.decode(prompt.ids[question.start : question.end]).strip() == fact.split(" is ")[1]
        statement = lm.encode(f"\nThe secret word of {fact}.\n")
        (at,) = (i for i in range(450) if prompt.ids[i : i + len(statement)].tolist() == statement)
        assert 40 <= at <= at + len(statement) <= 250


@pytest.mark.parametrize("recall_form", ["code", "word"])
def test_recall_is_measured_in_conversations(base, recall_form):
    (record,) = run({**base, "context": (600,), "metrics": ("recall",), "recall_form": recall_form})
    assert record.metrics["recall"].n >= 2
    assert "recall_pieces" not in record.config


def test_what_a_template_leaves_no_room_for_is_refused_before_work(base, form):
    least = form.template_tokens + 2
    grid = {**base, "mode": ("all-coded",)}
    with pytest.raises(ConfigError, match=rf"takes {form.template_tokens} tokens .* raise --context to {least} "):
        run({**grid, "context": (150, least - 1)})
    (record,) = run({**grid, "context": (least,), "windows": 1})
    assert record.metrics["kld_mean"].n == 1


def test_control_tokens_of_text_and_a_chat_exclude_each_other():
    with pytest.raises(ConfigError, match="leave --parse-special or --chat out"):
        EvalConfig.parse({"chat": True, "parse_special": True})


def test_a_model_without_a_template_is_refused_before_its_text_is_read(tiny_folder):
    values = {"model": str(tiny_folder), "chat": True, "data": "nowhere", "context": (150,), "mode": ("all-coded",)}
    for refuse in (run, lambda values: plan(EvalConfig(**values), load_model(str(tiny_folder)))):
        with pytest.raises(ModelError, match="has no chat template"):
            refuse(values)


def test_the_table_says_what_is_scored(base):
    from pqkv_cli.main import app
    from typer.testing import CliRunner

    command = ["eval", "--windows", "2", "--page-size", "16", "--residual", "32", "--metrics", "kld", "--chat"]
    for name in ("model", "data"):
        command += [f"--{name}", base[name]]
    command += ["--codebooks", base["codebooks"][0], "--context", "60,150"]
    found = CliRunner().invoke(app, command, env={"COLUMNS": "400"})
    assert found.exit_code == 0, found.output
    records = json.loads(CliRunner().invoke(app, [*command, "--format", "json"]).stdout)
    said = ", ".join(f"{r['tables']['text'][0]['answer_tokens']} of {r['config']['context']}" for r in records)
    assert f"windows through the chat template: the answer's {said} tokens are scored" in " ".join(found.stdout.split())
