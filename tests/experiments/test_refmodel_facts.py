"""Facts that are stated and asked for, planted in text or dense."""

import numpy as np
import pytest
from made import TEXT
from refmodel.facts import dense, planted


def places(ids, piece):
    windows = np.lib.stride_tricks.sliding_window_view(ids, len(piece))
    return np.flatnonzero((windows == np.array(piece)).all(1)).tolist()


@pytest.mark.parametrize("seed", range(30))
def test_planted_questions_follow_their_statements_and_the_mask_is_their_answers(writer, seed):
    generator = np.random.default_rng(seed)
    facts = [writer.draw(generator) for _ in range(seed % 10)]
    T = sum(fact.cost for fact in facts) + (0, 1, 7, 300)[seed % 4] + (not facts)
    text = np.arange(TEXT, TEXT + T)
    ids, answers = planted(text, facts, generator)
    assert (ids.shape, answers.shape, ids.dtype, answers.dtype) == ((T,), (T,), np.int64, np.bool_)
    expected = np.zeros(T, bool)
    for fact in facts:
        (stated,), (asked,) = places(ids, fact.statement), places(ids, fact.question + fact.answer)
        assert stated + len(fact.statement) <= asked
        expected[asked + len(fact.question) :][: len(fact.answer)] = True
    assert (answers == expected).all()
    kept = ids[ids >= TEXT]
    assert (kept == text[: len(kept)]).all()
    assert len(kept) == T - sum(fact.cost for fact in facts)


def test_planted_distances_are_near_and_far(writer):
    generator = np.random.default_rng(0)
    distances = []
    for _ in range(600):
        fact = writer.draw(generator)
        ids, _ = planted(np.arange(TEXT, TEXT + 2000), [fact], generator)
        distances.append(places(ids, fact.question)[0] - places(ids, fact.statement)[0] - len(fact.statement))
    near, far = np.mean(np.array(distances) < 128), np.mean(np.array(distances) >= 512)
    room = 2000 - fact.cost
    assert near == pytest.approx(np.log(128 / 8) / np.log(room / 8), abs=0.04)
    assert far == pytest.approx(np.log(room / 512) / np.log(room / 8), abs=0.04)


@pytest.mark.parametrize("seed", range(30))
def test_dense_sequences_state_all_facts_then_ask_for_each_once(writer, seed):
    drawn = []

    class Noting:
        def draw(self, generator):
            drawn.append(writer.draw(generator))
            return drawn[-1]

    T = (100, 300, 1000)[seed % 3]
    text = np.arange(TEXT, TEXT + T)
    ids, answers = dense(text, Noting(), (0, 8), np.random.default_rng(seed))
    assert (ids.shape, answers.shape, ids.dtype, answers.dtype) == ((T,), (T,), np.int64, np.bool_)
    facts = [fact for fact in drawn if places(ids, fact.statement)]
    assert facts == drawn[: len(facts)]
    assert len(facts) >= len(drawn) - 1  # one may have been too long for what was left
    stated = [places(ids, fact.statement) for fact in facts]
    last = max((at[0] + len(fact.statement) for at, fact in zip(stated, facts, strict=True)), default=0)
    expected = np.zeros(T, bool)
    for fact, at in zip(facts, stated, strict=True):
        assert len(at) == 1
        asked = [
            start + len(form)
            for form in (fact.question, fact.repeat)
            for start in places(ids, form + fact.answer)
            if start >= last
        ]
        assert len(asked) == 1
        expected[asked[0] :][: len(fact.answer)] = True
    assert (answers == expected).all()
    before = ids[:last]
    assert (before >= TEXT).sum() <= 8 * len(facts)
    kept = ids[ids >= TEXT]
    assert (kept == text[: len(kept)]).all()


def test_dense_questions_take_both_forms_in_an_order_of_their_own(writer):
    forms, in_order = [], []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        ids, answers = dense(np.arange(TEXT, TEXT + 1000), writer, (0, 8), generator)
        starts = np.flatnonzero(np.diff(answers.astype(int), prepend=0) == 1)
        forms += [ids[start - 1] == writer._is[-1] for start in starts]
        width = len(writer.draw(generator).answer)
        asked = [ids[start : start + width].tolist() for start in starts]
        first = [places(ids, answer)[0] for answer in asked]
        in_order.append(first == sorted(first))
    assert 0.35 < np.mean(forms) < 0.65
    assert np.mean(in_order) < 0.5
