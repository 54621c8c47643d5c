"""Part c: the position that the rotary embedding is told for prefill's last and decode's first token, on a model that
runs: pqkv's decoding, the report's `pos - 1`, and transformers' own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pqkv.config import CacheConfig
from pqkv.errors import ModelError
from pqkv.lm import LanguageModel, load_model
from pqkv.lm.step import cache_argument
from pqkv.quality.logits import logit_errors
from pqkv.quality.modes import decoded_states
from pqkv.quality.prefills import prefill
from pqkv.record import Record
from pqkv.reproduce.parts import part_cell
from pqkv.reproduce.quality_degradation.settings import Settings
from pqkv.reproduce.quality_degradation.verdicts import LOGIT_TOLERANCE
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import Row, claim, newest, table_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POSITIONS = "degradation-positions"
OWN, SHIFTED, THEIRS = "pqkv", "pos - 1", "transformers"


def part_c(settings: Settings, request: Request) -> Iterator[Record]:
    """Prefill of the shortest context, then its steps."""
    lm = load_model(settings.model)
    request.report("c: positions", 0, 1)
    prefilled, steps = min(settings.contexts) - settings.decode_tokens, settings.decode_tokens
    config = {"part": "c", "model": lm.name, "model_weights": lm.fingerprint, "prefill": prefilled, "steps": steps,
              "seed": settings.seed}  # fmt: skip
    measure = partial(_positions, lm, prefilled, steps, settings.seed)
    yield part_cell(POSITIONS, config, measure, request)


@contextmanager
def told(model: nn.Module) -> Iterator[list[list[int]]]:
    """The positions that each forward of `model` tells its rotary embedding meanwhile, of its first sequence. Raises
    `ModelError` for a model that has none in one place.
    """
    decoder: Any = model.get_decoder()  # type: ignore[operator] # of PreTrainedModel
    rotary = getattr(decoder, "rotary_emb", None)
    if not isinstance(rotary, nn.Module):
        raise ModelError(f"{type(model).__name__} has no rotary embedding of all its layers to watch")
    found: list[list[int]] = []

    def note(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        positions: Tensor = named["position_ids"] if "position_ids" in named else args[1]
        found.append(positions[0].tolist())

    handle = rotary.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def _positions(lm: LanguageModel, prefilled: int, steps: int, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(lm.embedding_rows, (1, prefilled + steps), generator=generator)
    ways: dict[str, Callable[[], Tensor]] = {
        OWN: partial(_decoded, lm, ids, prefilled, 0), SHIFTED: partial(_decoded, lm, ids, prefilled, -1),
    }  # fmt: skip
    plain: Any = copy.deepcopy(lm.model)  # pqkv's attention is no part of it
    plain.set_attn_implementation("sdpa")
    with told(plain) as positions:
        theirs = _of_transformers(plain, ids, prefilled)
    rows = [{"way": THEIRS, **_first_and_last(positions), "error": 0.0}]
    for way, run in ways.items():
        with told(lm.model) as positions:
            states = run()
        error = float(logit_errors(theirs[0], states[0], lm.head).max())
        rows.append({"way": way, **_first_and_last(positions), "error": error})
    return {"tables": {"positions": rows}}


def _first_and_last(positions: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Of a prefill and the steps behind it."""
    steps = [step for (step,) in positions[1:]]
    return {"prefill_last": positions[0][-1], "decode_first": steps[0], "decode_last": steps[-1],
            "consecutive": steps == list(range(steps[0], steps[0] + len(steps)))}  # fmt: skip


def _decoded(lm: LanguageModel, ids: Tensor, prefilled: int, shift: int) -> Tensor:
    cache = prefill(lm, ids[:, :prefilled], None, CacheConfig())
    return decoded_states(lm, ids[:, prefilled:], cache, position_shift=shift)


def _of_transformers(model: PreTrainedModel, ids: Tensor, prefilled: int) -> Tensor:
    """States (1, steps, hidden) of the tokens behind the prefill, on transformers' own cache, told no positions."""
    from transformers import DynamicCache

    cache, decoder = DynamicCache(config=model.config), model.get_decoder()
    with torch.inference_mode():
        parts = [
            decoder(input_ids=part, use_cache=True, **cache_argument(decoder, cache)).last_hidden_state
            for part in (ids[:, :prefilled], *ids[:, prefilled:].split(1, 1))
        ]
    return torch.cat(parts[1:], 1)


def position_rows(records: Sequence[Record]) -> list[Row]:
    """Positions and errors of logits by model and way."""
    kept = ("model", "way", "prefill_last", "decode_first", "decode_last", "consecutive", "error")
    rows = [{key: row[key] for key in kept} for row in table_rows(records, POSITIONS, "positions")]
    return newest(rows, "model", "way")


def finding_c(records: Sequence[Record]) -> list[Row]:
    """The report's own check, done."""
    result, rows = [], position_rows(records)
    for model in dict.fromkeys(row["model"] for row in rows):
        at = {row["way"]: row for row in rows if row["model"] == model}
        own, shifted, theirs = (at[way] for way in (OWN, SHIFTED, THEIRS))
        places = {way: (row["prefill_last"], row["decode_first"], row["decode_last"]) for way, row in at.items()}
        said = (
            f"{own['prefill_last']} and {own['decode_first']}, transformers {theirs['prefill_last']} and "
            f"{theirs['decode_first']}, then one by one to {own['decode_last']} and {theirs['decode_last']}; logits of "
            f"the steps {own['error']:.1e} of the largest apart"
        )
        apart = own["decode_first"] == own["prefill_last"] + 1 and own["consecutive"]
        result.append(claim(
            "prefill's last and decode's first token stand side by side, as in transformers", "to be compared", said,
            apart and places[OWN] == places[THEIRS] and own["error"] <= LOGIT_TOLERANCE, model))  # fmt: skip
        said = (
            f"one less than transformers' own puts decode's first token on {shifted['decode_first']}, where prefill's "
            f"last stands ({shifted['prefill_last']}): logits {shifted['error']:.2g} of the largest off; but if its "
            f"pos counts the token that is decoded, pos - 1 is {theirs['decode_first']}, and right: the listing does "
            "not say what pos counts"
        )
        result.append(claim("cos_cache.narrow(0, pos - 1, 1) in decoding is off by one", "possibly; pos is right", said,
                            None, model))  # fmt: skip
    return result
