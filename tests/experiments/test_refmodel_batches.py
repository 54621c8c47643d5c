"""A batch depends on recipe and step alone; how much of it is planted."""

import numpy as np
import pytest
import torch
from made import TEXT, batches, same
from refmodel import tokens
from refmodel.batches import Batches
from refmodel.recipe import TINY, Stage


def test_a_batch_depends_on_recipe_and_step_alone(prepared, folder):
    first, again = batches(prepared), batches(folder)
    forward_order = [first[step] for step in range(8)]
    for step in (7, 2, 5, 0, 7):
        assert same(list(again[step]), list(forward_order[step]))
    for step, (ids, answers) in enumerate(forward_order):
        stage = TINY.stages[TINY.stage_of(step)[0]]
        assert ids.shape == answers.shape == (stage.sequences, stage.length + 1)
        assert (ids.dtype, answers.dtype) == (torch.int64, torch.bool)
    assert not same(forward_order[4][0], forward_order[5][0])
    assert not same(batches(folder, TINY.model_copy(update={"seed": 1}))[4][0], forward_order[4][0])


def test_two_stages_alike_read_different_text(folder):
    stage = Stage(name="same", length=128, sequences=2, steps=2, recall=0)
    made = batches(folder, TINY.model_copy(update={"stages": (stage, stage)}))
    assert not same(made[0][0], made[2][0])
    assert not same(made[1][0], made[3][0])


def test_the_steps_of_a_stage_read_on_in_the_text(writer, tmp_path):
    file = tokens.TokenFile(np.arange(TEXT, TEXT + 5500, dtype=np.uint16), np.arange(0, 5501, 50))
    stage = Stage(name="text", length=99, sequences=4, steps=5, recall=0)
    made = Batches(TINY.model_copy(update={"stages": (stage,)}), file, writer, tmp_path)
    ids = torch.cat([made[step][0] for step in range(5)])
    assert len(ids.unique()) == ids.numel() == 5 * 4 * 100


def test_the_share_of_planted_tokens_is_recall_on_average(writer, tmp_path):
    ids = np.arange(TEXT, TEXT + 5000, dtype=np.uint16)
    file = tokens.TokenFile(ids, np.arange(0, 5001, 50))
    for recall in (0.05, 0.15, 0.4):
        stage = Stage(name="text", length=512, sequences=300, steps=1, recall=recall)
        made, _ = Batches(TINY.model_copy(update={"stages": (stage,)}), file, writer, tmp_path)[0]
        assert float((made < TEXT).double().mean()) == pytest.approx(recall, rel=0.07)
