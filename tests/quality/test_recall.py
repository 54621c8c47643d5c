"""Recall prompts hold what they claim, and only right answers score."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers_made import spaced

from pqkv.lm.tokens import TokenForm
from pqkv.quality.recall import DEPTHS, answered, build_prompts, by_depth
from pqkv.quality.recall_words import TokensApart, pieces_fit


@pytest.fixture(scope="module")
def filler(prose):
    return prose[0].reshape(2, 700).numpy()


@pytest.fixture(scope="module")
def prompts(reference, filler):
    return build_prompts(reference, filler, seed=3)


def facts_in(text):
    return re.findall(r"Remember: the code of ([a-z]+-[a-z]+) is (\d{5})\.", text)


def questions_in(text):
    return re.findall(r"Question: what is the code of ([a-z]+-[a-z]+)\? Answer: (\d{5})", text)


@pytest.mark.parametrize("length", [140, 200, 333, 500, 1400])
def test_prompts_have_exactly_the_length_of_their_window(reference, prose, length):
    filler = prose[0, : 1400 // length * length].reshape(-1, length).numpy()
    prompts = build_prompts(reference, filler, seed=0)
    assert [prompt.ids.shape for prompt in prompts] == [(length,)] * len(filler)


def test_every_question_asks_for_a_planted_fact_and_its_span_is_the_answer(reference, prompts):
    for prompt in prompts:
        text = reference.tokenizer.decode(prompt.ids)
        facts, questions = dict(facts_in(text)), questions_in(text)
        assert len(prompt.questions) == len(questions) == len(facts) == 5
        assert dict(questions) == facts
        spans = sorted(prompt.questions, key=lambda question: question.start)
        for span, (_, code) in zip(spans, questions, strict=True):
            assert reference.tokenizer.decode(prompt.ids[span.start : span.end]) == f" {code}"
        assert spans[-1].end == len(prompt.ids)


def test_facts_stand_at_their_depths_of_the_filler_in_order(reference, filler, prompts):
    """Taken out again, the filler is the window's beginning, and a fact at depth d stands after d of it."""
    for window, prompt in zip(filler, prompts, strict=True):
        text = reference.tokenizer.decode(prompt.ids)
        code_of = {code: key for key, code in facts_in(text)}
        rest, positions = list(prompt.ids), {}
        for question in prompt.questions:
            code = reference.tokenizer.decode(prompt.ids[question.start : question.end]).strip()
            statement = reference.encode(f"\nRemember: the code of {code_of[code]} is {code}.\n")
            at = next(i for i in range(len(prompt.ids)) if list(prompt.ids[i : i + len(statement)]) == statement)
            positions[question.depth] = at, len(statement)
        assert tuple(sorted(positions)) == DEPTHS
        planted = 0
        for depth in DEPTHS:
            at, size = positions[depth]
            before = at - planted  # tokens of filler in front of it
            planted += size
            positions[depth] = before
            del rest[before : before + size]
        question = reference.encode(f"\nQuestion: what is the code of {questions_in(text)[0][0]}? Answer:")
        room = min(q.start for q in prompt.questions) - planted - len(question)
        assert rest[:room] == window[:room].tolist()
        assert [positions[depth] for depth in DEPTHS] == [round(depth * room) for depth in DEPTHS]
        assert room >= 350  # at least half of the window is filler


def test_questions_come_in_another_order_than_the_facts(prompts):
    assert any([q.depth for q in prompt.questions] != sorted(q.depth for q in prompt.questions) for prompt in prompts)


def test_keys_are_unique_in_a_prompt_and_prompts_differ(reference, prompts):
    keys = [[key for key, _ in facts_in(reference.tokenizer.decode(prompt.ids))] for prompt in prompts]
    assert all(len(set(own)) == 5 for own in keys)
    assert keys[0] != keys[1]


def test_prompts_follow_the_seed(reference, filler, prompts):
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(prompts, build_prompts(reference, filler, 3), strict=True))
    assert not np.array_equal(prompts[0].ids, build_prompts(reference, filler, 4)[0].ids)


def test_short_windows_take_turns_with_the_depths(reference, prose):
    filler = prose[0].reshape(-1, 140).numpy()
    prompts = build_prompts(reference, filler, seed=0)
    asked = [{q.depth for q in prompt.questions} for prompt in prompts]
    assert {len(own) for own in asked} == {1}
    assert set().union(*asked) == set(DEPTHS)


def test_a_window_without_room_for_a_fact_gives_no_prompt(reference, prose):
    assert build_prompts(reference, prose[:, :40].numpy(), seed=0) == []


def perfect(prompt, vocabulary=4096):
    """Logits of a model that predicts every next token of the prompt."""
    logits = torch.zeros(len(prompt.ids), vocabulary)
    logits[torch.arange(len(prompt.ids) - 1), torch.from_numpy(prompt.ids[1:])] = 1
    return logits


def test_a_model_that_answers_right_scores_one(prompts):
    for prompt in prompts:
        assert answered(prompt, perfect(prompt)) == [(q.depth, True, 1.0) for q in prompt.questions]


def test_a_model_that_answers_wrong_scores_zero(prompts):
    assert answered(prompts[0], torch.zeros(700, 4096)) == [(q.depth, False, 0.0) for q in prompts[0].questions]


def test_one_wrong_token_makes_one_answer_wrong(prompts):
    prompt, logits = prompts[0], perfect(prompts[0])
    question = prompt.questions[2]
    logits[question.end - 2] = 0  # the row that predicts the last token of the answer
    size = question.end - question.start
    expected = [(q.depth, True, 1.0) for q in prompt.questions]
    expected[2] = (question.depth, False, pytest.approx(1 - 1 / size))
    assert answered(prompt, logits) == expected


@pytest.mark.parametrize("outside", ["before", "after"])
def test_only_rows_that_predict_the_answer_count(prompts, outside):
    prompt, logits = prompts[0], perfect(prompts[0])
    for question in prompt.questions:
        logits[question.start - 2 if outside == "before" else question.end - 1] = 0
    assert all(right for _, right, _ in answered(prompt, logits))


def test_recall_by_depth_counts_each_side_apart():
    coded = [[(0.1, True, 1.0), (0.5, False, 0.5)], [(0.1, False, 0.0)]]
    exact = [[(0.1, True, 1.0), (0.5, True, 1.0)], [(0.1, True, 1.0)]]
    assert by_depth(coded, exact) == [
        {"depth": 0.1, "questions": 2, "recall": 0.5, "recall_exact": 1.0, "answer_tokens_right": 0.5,
         "answer_tokens_right_exact": 1.0},
        {"depth": 0.5, "questions": 1, "recall": 0.0, "recall_exact": 1.0, "answer_tokens_right": 0.5,
         "answer_tokens_right_exact": 1.0},
    ]  # fmt: skip


def test_the_bundled_model_knows_the_form(reference, prose):
    """It was trained on these lines: it gets most digits of a fact that it can still see."""
    filler = prose[0].reshape(-1, 175).numpy()
    prompts = build_prompts(reference, filler, seed=0)
    logits = reference.logits(torch.from_numpy(np.stack([prompt.ids for prompt in prompts])))
    shares = [share for prompt, own in zip(prompts, logits, strict=True) for _, _, share in answered(prompt, own)]
    assert np.mean(shares) > 0.5


def test_a_question_and_its_answer_are_one_text_to_the_tokenizer(reference):
    """A tokenizer that puts a space before every text would begin an answer of its own with another token."""
    lm = replace(reference, tokenizer=spaced())
    assert not pieces_fit(lm)
    assert pieces_fit(reference)
    filler = np.arange(3, 603)[None] % 150 + 3
    (prompt,) = build_prompts(lm, filler, seed=0)
    text = lm.tokenizer.decode(prompt.ids)
    for question, (key, code) in zip(prompt.questions, questions_in(text), strict=True):
        together = lm.encode(f"\nQuestion: what is the code of {key}? Answer: {code}")
        answer = prompt.ids[question.start : question.end].tolist()
        assert together[-len(answer) :] == answer
        assert lm.encode(f" {code}") != answer  # alone it begins with a space more
        assert lm.tokenizer.decode(answer).strip() == code


def test_a_tokenizer_that_cannot_part_them_says_so(reference):
    class Slow:
        """Tells no offsets, and what a text ends with depends on what follows."""

        is_fast = False

        def __call__(self, text, **kwargs):
            return {"input_ids": [len(text) % 50, *map(ord, text)]}

    lm = replace(reference, tokenizer=Slow())
    with pytest.raises(TokensApart, match=r"recall not measured: .* does not tell where its tokens stand"):
        build_prompts(lm, np.ones((1, 2000), dtype=np.int64), seed=0)
    assert pieces_fit(lm)  # nothing is measured, so nothing needs saying


def test_a_slow_tokenizer_whose_pieces_fit_is_served(reference):
    class Slow:
        is_fast = False

        def __call__(self, text, **kwargs):
            return {"input_ids": list(map(ord, text))}

    (prompt,) = build_prompts(replace(reference, tokenizer=Slow()), np.ones((1, 2000), dtype=np.int64), seed=0)
    for question in prompt.questions:
        assert "".join(map(chr, prompt.ids[question.start : question.end])).strip().isdigit()


@pytest.mark.parametrize(("bos", "coded"), [(None, (4, 260)), (0, (4, 260)), (None, (0, 400)), (0, (5, 120))])
def test_a_word_is_planted_among_coded_columns_and_asked_for_in_its_own_words(reference, prose, bos, coded):
    filler = prose[0, :1200].reshape(3, 400).numpy()
    prompts = build_prompts(reference, filler, 0, TokenForm(bos=bos), coded)
    assert [len(prompt.ids) for prompt in prompts] == [400] * 3
    for prompt in prompts:
        (question,) = prompt.questions
        text = reference.tokenizer.decode(prompt.ids)
        (key, word), (asked, answer) = re.findall(r"The secret word of the ([a-z]+ [a-z]+) is ([a-z]+)", text)
        assert (key, word) == (asked, answer)
        assert reference.tokenizer.decode(prompt.ids[question.start : question.end]).strip() == word
        statement = reference.encode(f"\nThe secret word of the {key} is {word}.\n")
        starts = [i for i in range(400) if prompt.ids[i : i + len(statement)].tolist() == statement]
        assert len(starts) == 1
        assert coded[0] <= starts[0]
        assert starts[0] + len(statement) <= coded[1]
    assert len({prompt.questions[0].depth for prompt in prompts}) == 3


def test_where_nothing_is_coded_no_word_can_be_planted(reference, prose):
    assert build_prompts(reference, prose[:, :400].numpy(), 0, None, (4, 10)) == []
