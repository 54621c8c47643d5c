"""KVarN against its recipe, tile by tile."""

import numpy as np
import pytest
import torch
from recipes import agree, hadamard_of, half

from pqkv.codec.peers.kvarn import KVarN, KVarNOptions, balance


def spread(tile):
    """Largest over least deviation of columns and of rows."""
    columns, rows = tile.std(0, ddof=1), tile.std(1, ddof=1)
    return columns.max() / max(columns.min(), 1e-8) + rows.max() / max(rows.min(), 1e-8)


def evened(tile, rounds):
    """Divisors of the rows and of the columns of a tile (R, C), of its best round."""
    R, C = tile.shape
    rows, columns = np.zeros(R), np.zeros(C)
    states = [(spread(tile), rows, columns)]
    for _ in range(rounds):
        even = tile / np.exp(rows)[:, None] / np.exp(columns)[None]
        columns = np.clip(columns + np.log(np.clip(even.std(0, ddof=1), 1e-3, 1e3)), -0.3, 10)
        even = tile / np.exp(rows)[:, None] / np.exp(columns)[None]
        rows = np.clip(rows + np.log(np.clip(even.std(1, ddof=1), 1e-3, 1e3)), -0.3, 10)
        states.append((spread(tile / np.exp(rows)[:, None] / np.exp(columns)[None]), rows, columns))
    least = min(state[0] for state in states)
    _, rows, columns = [state for state in states if state[0] == least][-1]
    return np.exp(rows), np.exp(columns)


def restored(tile, bits, rounds):
    rows, columns = evened(tile, rounds)
    found = np.zeros(tile.shape)
    for r in range(len(tile)):
        row = tile[r] / columns / rows[r]
        step = max((row.max() - row.min()) / (2**bits - 1), 1e-10)
        codes = np.clip(np.round((row - row.min()) / step), 0, 2**bits - 1)
        found[r] = (codes * half(step * rows[r]) + half(row.min() * rows[r])) * half(columns)
    return found


@pytest.mark.parametrize("rounds", [0, 1, 8])
@pytest.mark.parametrize("side", ["keys", "values"])
@pytest.mark.parametrize("tokens", [32, 43])
def test_tiles_follow_the_recipe(side, tokens, rounds):
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(2, 2, tokens, 8, generator=generator) * 6
    x = x * torch.randn(2, 2, tokens, 1, generator=generator).exp()  # tokens of other lengths
    x[..., 3] *= 20
    matrix = hadamard_of(8)
    expected = np.zeros(x.shape)
    for b, h in np.ndindex(2, 2):
        for first in range(0, tokens, 16):
            tile = x[b, h, first : first + 16].double().numpy() @ matrix
            found = restored(tile.T, 3, rounds).T if side == "keys" else restored(tile, 3, rounds)
            expected[b, h, first : first + 16] = found @ matrix
    codec = KVarN(KVarNOptions(bits=3, group=16, rounds=rounds), side, {})
    agree(codec.restore(0, x.double(), torch.arange(tokens)), expected)


def test_even_rows_and_columns_are_what_rounds_make():
    generator = torch.Generator().manual_seed(0)
    lengths = 1 + 0.5 * torch.rand(3, 64, 1, generator=generator)
    x = 90 * torch.randn(3, 64, 256, generator=generator).double() * lengths
    assert x.std(-1).amax() > 1.3 * x.std(-1).amin()
    rows, columns = balance(x, 8)  # far shorter rows would take longer: no round makes one more than e^0.3 longer
    even = x / rows / columns
    for dim in (-1, -2):
        torch.testing.assert_close(even.std(dim), torch.ones_like(even.std(dim)), rtol=0.02, atol=0)


def test_a_token_far_longer_than_others_does_not_coarsen_them():
    x = torch.randn(1, 1, 128, 64, generator=torch.Generator().manual_seed(0)) * 3
    x[:, :, 7] *= 100
    others = [t for t in range(128) if t != 7]

    def error(rounds):
        found = KVarN(KVarNOptions(bits=2, rounds=rounds), "keys", {}).restore(0, x, torch.arange(128))
        return float((found - x)[:, :, others].square().mean())

    assert error(8) < error(0) / 20
