"""The same targets are scored with a beginning of sequence and without, in windows of the same length."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pqkv.lm.tokens import TokenForm
from pqkv.quality.inputs import model_inputs

BOS = 99
WINDOWS = np.arange(24).reshape(3, 8)


def predicted(inputs, newest):
    """(input token of the row, its target) of every scored row; `newest` rows of logits are kept, all for 0."""
    kept = inputs.ids[:, -newest:] if newest else inputs.ids
    return [
        [(int(kept[b, first + i]), int(target)) for i, target in enumerate(targets)]
        for b, (first, targets) in enumerate(zip(inputs.first, inputs.targets, strict=True))
    ]


@pytest.mark.parametrize("newest", [0, 3])
@pytest.mark.parametrize("bos", [None, BOS])
def test_every_target_is_predicted_by_the_row_of_the_token_before_it(bos, newest):
    inputs = model_inputs(WINDOWS, newest, TokenForm(bos))
    expected = [[(t - 1, t) for t in row[1:]] for row in WINDOWS.tolist()]
    assert predicted(inputs, newest) == [pairs[-newest:] for pairs in expected]


@pytest.mark.parametrize("newest", [0, 3])
def test_a_beginning_counts_within_the_context(newest):
    plain, begun = (model_inputs(WINDOWS, newest, TokenForm(bos)) for bos in (None, BOS))
    assert begun.ids.shape == plain.ids.shape == (3, 8 - bool(newest))
    assert (begun.targets == plain.targets).all()
    assert (begun.ids[:, 0] == BOS).all()
    assert (begun.ids == BOS).sum() == 3


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=7, max_size=7), min_size=1, max_size=4), st.sampled_from([0, 2, 4])
)
def test_no_window_begins_twice_and_no_target_is_lost(rows, newest):
    windows = np.array(rows)
    inputs = model_inputs(windows, newest, TokenForm(0))
    assert (inputs.ids[:, 0] == 0).all()
    plain = model_inputs(windows, newest, TokenForm())
    assert (inputs.targets == plain.targets).all()
    assert inputs.ids.shape == plain.ids.shape
    for window, ids in zip(windows, inputs.ids, strict=True):
        assert (
            ids[1] != 0 or window[0] == 0
        )  # two in a row only where the text itself has two, or its first token is one
    kept = inputs.ids[:, -newest:] if newest else inputs.ids
    for b, first in enumerate(inputs.first):
        rows_of_targets = kept[b, first : first + inputs.targets.shape[1]]
        assert len(rows_of_targets) == inputs.targets.shape[1]
        # the token of a row is the one before its target, but for the first row of all, which may be the beginning
        before = windows[b, -inputs.targets.shape[1] - 1 : -1]
        assert (rows_of_targets[2:] == before[2:]).all()
