"""The batch of a step, as a function of the recipe and the step alone: no state, so a run resumes exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pqkv.config import digest_of
from refmodel.facts import FactWriter, dense, planted
from refmodel.packing import Packing, pack
from refmodel.recipe import Recipe, Stage
from refmodel.tokens import TokenFile


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """`batches[step]` is ids (B, T + 1) int64 and the mask (B, T + 1) of answer tokens."""

    def __init__(self, recipe: Recipe, tokens: TokenFile, writer: FactWriter, folder: Path) -> None:
        self._recipe, self._tokens, self._writer = recipe, tokens, writer
        self._packings = [_packing(recipe, number, tokens, folder) for number in range(len(recipe.stages))]

    def __len__(self) -> int:
        return self._recipe.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        index, number = self._recipe.stage_of(step)
        stage, packing = self._recipe.stages[index], self._packings[index]
        rows = [
            self._sequence(stage, packing, number * stage.sequences + row, (self._recipe.seed, step, row))
            for row in range(stage.sequences)
        ]
        return torch.from_numpy(np.stack([r[0] for r in rows])), torch.from_numpy(np.stack([r[1] for r in rows]))

    def _sequence(
        self, stage: Stage, packing: Packing, number: int, seed: tuple[int, int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(seed)
        text = packing.sequence(self._tokens.tokens, number)
        if stage.fillers is not None:
            return dense(text, self._writer, stage.fillers, generator)
        budget = stage.recall * len(text)
        facts = []
        while budget > 0:
            fact = self._writer.draw(generator)
            # the last fact is planted with the probability that makes the share right on average
            if fact.cost > budget and generator.random() > budget / fact.cost:
                break
            if sum(f.cost for f in facts) + fact.cost > 0.75 * len(text):
                break
            facts.append(fact)
            budget -= fact.cost
        return planted(text, facts, generator)


def _packing(recipe: Recipe, number: int, tokens: TokenFile, folder: Path) -> Packing:
    """The packing of a stage, made once and kept beside the tokens."""
    stage = recipe.stages[number]
    count, length = stage.steps * stage.sequences, stage.length + 1
    key = digest_of([len(tokens.tokens), len(tokens.starts), count, length, recipe.seed, number])
    path = folder / f"packing-{key}.npz"
    if path.exists():
        kept = np.load(path)
        return Packing(kept["spans"], kept["first"])
    packing = pack(np.asarray(tokens.starts), length, count, recipe.seed + number)
    temporary = folder / f"packing-{key}.tmp.npz"
    np.savez(temporary, spans=packing.spans, first=packing.first)
    temporary.replace(path)
    return packing
