"""What a model is given of a window of text, and which of its rows predict what is scored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pqkv.lm.tokens import TokenForm, with_bos


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """ids (n, T) for the model; targets (n, S), those that are scored; `first` (n,): the row among those whose logits
    are kept that predicts the first target of its window; `position` of that row in a window.
    """

    ids: np.ndarray
    targets: np.ndarray
    first: np.ndarray
    position: int


def model_inputs(windows: np.ndarray, newest: int, form: TokenForm, score_after: int = 0) -> Inputs:
    """Windows of text -> what is run and scored. Without a chat template these are the same targets with a beginning of
    sequence and without, whose positions are counted in tokens of text; of a conversation they are the tokens of the
    answer, and positions count the template. Those before `score_after` are not scored.

    With `newest` 0 windows are (n, T): rows predict the token after theirs, and what is put in front, which counts
    within T, takes the place of the newest tokens. Otherwise they are (n, T + 1), the logits of the newest rows are
    kept, and the last token is predicted only: there a beginning takes the place of the oldest.
    """
    found = _conversations(windows, newest, form) if form.chat else _texts(windows, newest, form.bos)
    early = max(0, score_after - found.position)
    return Inputs(found.ids, found.targets[:, early:], found.first + early, found.position + early)


def _texts(windows: np.ndarray, newest: int, bos: int | None) -> Inputs:
    n, length = windows.shape
    if not newest:
        ids = with_bos(windows, bos)
        moved = np.zeros(n, int) if bos is None else (windows[:, 0] != bos).astype(int)
        return Inputs(ids, windows[:, 1:], moved, 0)
    ids = windows[:, :-1]
    if bos is not None:
        ids = ids.copy()
        twice = ids[:, 1] == bos  # the text begins again there: what stood before it moves behind the beginning
        ids[twice, 1] = ids[twice, 0]
        ids[:, 0] = bos
    return Inputs(ids, windows[:, -newest:], np.zeros(n, int), length - 1 - newest)


def _conversations(windows: np.ndarray, newest: int, form: TokenForm) -> Inputs:
    """The first half of a window's text asked by the user, the second answered, as much as the template leaves."""
    assert form.chat is not None
    n, length = windows.shape
    T = length - bool(newest)
    asked = (T - form.template_tokens) // 2
    opening, between = (np.tile(np.array(part, windows.dtype), (n, 1)) for part in (form.opening, form.chat.between))
    text = windows[:, : length - form.template_tokens]
    whole = np.concatenate([opening, text[:, :asked], between, text[:, asked:]], 1)  # (n, length)
    answer = len(form.opening) + asked + len(form.chat.between)  # where it begins
    position = max(answer - 1, T - newest if newest else 0)
    kept = T - newest if newest else 0
    return Inputs(whole[:, :T], whole[:, position + 1 :], np.full(n, position - kept), position)
