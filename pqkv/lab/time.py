"""How long a lab will take, from one forward on this machine."""

from __future__ import annotations

import time

import torch

from pqkv.lab.config import LabConfig
from pqkv.lm import LanguageModel

_TRIED_TOKENS = 256
# a coded forward and its comparison take about twice a plain forward (SmolLM2, contexts of 1,024: 1.6 to 2.3)
_CODED = 2.0
_LEARNING = 20.0  # seconds a side and method, at 4 bits on two cores


def expected_seconds(config: LabConfig, lm: LanguageModel) -> float:
    """Seconds of measuring everything, records or not: a bound for those that miss some. Forwards of longer contexts
    take more than their tokens say.
    """
    ids = torch.zeros(1, _TRIED_TOKENS, dtype=torch.long, device=lm.device)
    lm.states(ids)  # the first one compiles and allocates
    start = time.perf_counter()
    lm.states(ids)
    per_token = (time.perf_counter() - start) / _TRIED_TOKENS
    tokens = sum(evaluation.context[0] * (evaluation.windows or 0) for evaluation in config.evaluations())
    methods = config.all_methods()
    learning = sum(len(spec.learnings()) for spec in methods.values())
    return per_token * tokens * (1 + _CODED * len(methods)) + _LEARNING * learning
