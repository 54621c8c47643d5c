"""What a model is given of a window of text, and which of its rows predict what is scored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pqkv.lm.tokens import with_bos


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """ids (n, T) for the model; targets (n, S); `first` (n,): the row among those whose logits are kept that predicts
    the first target of its window.
    """

    ids: np.ndarray
    targets: np.ndarray
    first: np.ndarray


def model_inputs(windows: np.ndarray, newest: int, bos: int | None) -> Inputs:
    """Windows of text -> what is run and scored: the same targets with a beginning of sequence and without.

    With `newest` 0 windows are (n, T): rows predict the token after theirs, and a beginning, which counts within T,
    takes the place of the newest token, whose row predicts nothing. Otherwise they are (n, T + 1), the logits of the
    newest rows are kept, and the last token is predicted only: there a beginning takes the place of the oldest.
    """
    if not newest:
        ids = with_bos(windows, bos)
        moved = np.zeros(len(windows), int) if bos is None else (windows[:, 0] != bos).astype(int)
        return Inputs(ids, windows[:, 1:], moved)
    ids = windows[:, :-1]
    if bos is not None:
        ids = ids.copy()
        twice = ids[:, 1] == bos  # the text begins again there: what stood before it moves behind the beginning
        ids[twice, 1] = ids[twice, 0]
        ids[:, 0] = bos
    return Inputs(ids, windows[:, -newest:], np.zeros(len(windows), int))
