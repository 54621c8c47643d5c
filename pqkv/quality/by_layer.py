"""Where damage comes from: one layer coded at a time, its keys, its values, and both, everything else exact."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pqkv.config import EvalConfig
from pqkv.errors import ConfigError
from pqkv.lm.tokens import TokenForm
from pqkv.quality.batches import FORWARD_TOKENS
from pqkv.quality.cells import Cell
from pqkv.quality.exact_states import ExactStates
from pqkv.quality.inputs import Inputs, model_inputs
from pqkv.quality.measures import compare
from pqkv.quality.modes import coded_states
from pqkv.quality.summary import bootstrap, finite
from pqkv.record import Metric

MODES = ("exact-schedule", "all-coded")  # of one forward
SIDES = {"keys": (True, False), "values": (False, True), "both": (True, True)}


def measure_by_layer(
    cell: Cell,
    windows: np.ndarray,
    config: EvalConfig,
    exact: ExactStates,
    form: TokenForm,
    step: Callable[[int, int], None],
) -> dict[str, Any]:
    """What a record holds of windows (n, T): table `by_layer`, a row a coded layer, with the mean KLD in nats and its
    95% interval over windows of its keys, values and both coded alone; and the KLD of all layers coded together.
    """
    lm, inputs = exact.lm, model_inputs(windows, 0, form, config.score_after)
    layers = len(lm.coded_layers)
    alone = {(k, side): [((False, False), pair)[i == k] for i in range(layers)] for k in range(layers)
             for side, pair in SIDES.items()}  # fmt: skip
    total = 1 + len(alone)
    whole = _kld(cell, config, exact, inputs, None)
    step(1, total)
    rows: list[dict[str, Any]] = [{"layer": layer} for layer in lm.coded_layers]
    for done, ((k, side), sides) in enumerate(alone.items(), 2):
        found = _kld(cell, config, exact, inputs, sides)
        low, high = bootstrap([found], _mean, config.seed)
        rows[k] |= {side: finite(float(found.mean())), f"{side}_low": finite(low), f"{side}_high": finite(high)}
        step(done, total)
    low, high = bootstrap([whole], _mean, config.seed)
    mean = Metric(value=finite(float(whole.mean())), low=finite(low), high=finite(high), unit="nats", n=len(whole))
    return {"metrics": {"kld_mean": mean}, "tables": {"by_layer": rows}, "notes": [*lm.notes]}


def _mean(values: np.ndarray) -> np.ndarray:
    return np.asarray(values.mean(-1))


def _kld(
    cell: Cell, config: EvalConfig, exact: ExactStates, inputs: Inputs, sides: list[tuple[bool, bool]] | None
) -> np.ndarray:
    """Mean KLD of each window with these sides of the layers coded."""
    if cell.coding.codes is None:
        raise ConfigError("by_layer is about codes: the exact cache has no layer to code")
    lm, found = exact.lm, []
    together = max(1, FORWARD_TOKENS // inputs.ids.shape[1])
    run: Callable[[Tensor], Tensor] = partial(
        coded_states, lm, books=cell.coding.codes, config=config.cache(), mode=cell.mode,
        coded_sinks=cell.coded_sinks, sides=sides,
    )  # fmt: skip
    for start in range(0, len(inputs.ids), together):
        rows = slice(start, start + together)
        ids = torch.from_numpy(inputs.ids[rows]).to(lm.device)
        references, coded = exact(ids), run(ids)
        for b, first in enumerate(inputs.first[rows]):
            targets = torch.from_numpy(inputs.targets[rows][b]).to(lm.device)
            scored = slice(first, first + len(targets))
            found.append(float(compare(references[b, scored], coded[b, scored], targets, (1,), lm.head).kld.mean()))
    return np.array(found)
