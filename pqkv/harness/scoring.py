"""Log-likelihoods of continuations, several sequences to a forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pqkv.errors import ConfigError
from pqkv.harness.coded_model import CodedModel

Answer = tuple[float, bool]  # log-likelihood, and whether greedy decoding gives the continuation


@dataclass(frozen=True, slots=True)
class Scored:
    """Token ids that are run, and those that the newest of their rows predict."""

    ids: tuple[int, ...]
    targets: tuple[int, ...]

    @classmethod
    def of(cls, context: Sequence[int], continuation: Sequence[int], max_length: int) -> Scored:
        """A continuation after its context, whose oldest tokens are left out where both are too long. Raises
        `ConfigError` for a continuation that is too long by itself, and for one of no tokens.
        """
        if not 0 < len(continuation) <= max_length:
            raise ConfigError(
                f"a continuation of {len(continuation)} tokens cannot be scored by a model of {max_length} positions; "
                "take another model, or another task"
            )
        whole = (*context, *continuation)[-(max_length + 1) :]
        return cls(tuple(whole[:-1]), tuple(continuation))


def score(
    model: CodedModel, wanted: Sequence[Scored], batch_size: int, done: Callable[[int, Answer], None]
) -> list[Answer]:
    """An answer to each of `wanted`, in their order; `done` is told the number and answer of each as it comes.

    Continuations that differ in their last token only run once.
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    for number, one in enumerate(wanted):
        alike.setdefault(one.ids, []).append(number)
    found: dict[int, Answer] = {}
    for batch in _batches(sorted(alike, key=lambda ids: (-len(ids), ids)), batch_size, pads=model.pads):
        states = model.states(_padded(batch).to(model.lm.device))  # (B, T, hidden)
        for ids, own in zip(batch, states, strict=True):
            most = max(len(wanted[number].targets) for number in alike[ids])
            logits = model.lm.head(own[len(ids) - most : len(ids)])  # (most, V)
            for number in alike[ids]:
                targets = torch.tensor(wanted[number].targets, device=logits.device)
                found[number] = _answer(logits[-len(targets) :], targets)
                done(number, found[number])
    return [found[number] for number in range(len(wanted))]


def _answer(logits: Tensor, targets: Tensor) -> Answer:
    """Of logits (n, V) for targets (n,)."""
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    log_p = logits.log_softmax(-1).gather(-1, targets[:, None])
    return float(log_p.sum()), bool((logits.argmax(-1) == targets).all())


def _batches(ordered: Sequence[tuple[int, ...]], batch_size: int, *, pads: bool) -> Iterator[Sequence[tuple[int, ...]]]:
    """Up to `batch_size` sequences at a time, of one length unless it `pads`."""
    start = 0
    while start < len(ordered):
        stop = start + 1
        while stop < min(start + batch_size, len(ordered)) and (pads or len(ordered[stop]) == len(ordered[start])):
            stop += 1
        yield ordered[start:stop]
        start = stop


def _padded(batch: Sequence[tuple[int, ...]]) -> Tensor:
    """Ids (B, T), 0 on the right of what is shorter: rows see what is before them only."""
    ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.long)
    for row, own in zip(ids, batch, strict=True):
        row[: len(own)] = torch.tensor(own)
    return ids
