"""Optimizer, schedule and recipes."""

import numpy as np
import pytest
import torch
from refmodel.optim import orthogonal
from refmodel.recipe import CPU, GPU, TINY, Recipe, Stage
from refmodel.training import new_model

from pqkv.errors import ConfigError


@pytest.mark.parametrize("shape", [(64, 16), (16, 64), (32, 32)])
def test_orthogonal_brings_singular_values_near_one_and_turns_nothing(shape):
    generator = torch.Generator().manual_seed(0)
    rank = min(shape)
    left, right = (torch.linalg.qr(torch.randn(3, n, rank, generator=generator)).Q for n in shape)
    values = torch.stack([torch.logspace(low, 0, rank) for low in (-0.1, -1, -1.5)]) * torch.tensor(
        [[1e-4], [1], [1e4]]
    )
    made = orthogonal(left * values[:, None] @ right.mT)
    assert made.shape == (3, *shape)
    found = left.mT @ made @ right  # diagonal, if the singular vectors are still the same
    diagonal = found.diagonal(dim1=1, dim2=2)
    assert ((diagonal > 0.6) & (diagonal < 1.3)).all()
    assert (found - torch.diag_embed(diagonal)).abs().max() < 1e-3
    spectrum = torch.linalg.svdvals(made)
    assert ((spectrum > 0.6) & (spectrum < 1.3)).all()


def test_the_rate_warms_up_stays_and_falls_linearly():
    stage = Stage(name="all", length=64, sequences=1, steps=100, recall=0)
    recipe = Recipe(shape=TINY.shape, stages=(stage,), warmup_steps=10, decay_from=0.4, final_lr=0.1)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert rates[9:41] == [1.0] * 32
    assert np.diff(rates[40:]) == pytest.approx(np.full(59, -0.9 / 60))
    assert rates[70] == pytest.approx(0.55)
    assert 0.1 < rates[-1] < 0.12


def test_a_step_belongs_to_the_stage_it_falls_into():
    assert [TINY.stage_of(step) for step in (0, 3, 4, 7)] == [(0, 0), (0, 3), (1, 0), (1, 3)]
    with pytest.raises(ConfigError, match="8 steps"):
        TINY.stage_of(8)


def test_recipes_over_32_mib_or_beyond_their_positions_are_refused():
    values = GPU.model_dump()
    values["shape"]["vocabulary"] = 16384
    with pytest.raises(ConfigError, match="over 32 MiB"):
        Recipe(**values)
    values = TINY.model_dump()
    values["stages"][1]["length"] = 257
    with pytest.raises(ConfigError, match="stage long is longer than the 256 positions"):
        Recipe(**values)


@pytest.mark.parametrize(("recipe", "parameters"), [(CPU, 5_180_672), (GPU, 15_325_760), (TINY, 90_432)])
def test_parameters_are_counted_as_the_model_has_them(recipe, parameters):
    assert new_model(recipe, None).num_parameters() == recipe.shape.parameters() == parameters


def test_recipes_have_digests_of_their_own_that_survive_json():
    assert len({recipe.digest() for recipe in (CPU, GPU, TINY)}) == 3
    for recipe in (CPU, GPU, TINY):
        assert Recipe.model_validate_json(recipe.model_dump_json()).digest() == recipe.digest()
