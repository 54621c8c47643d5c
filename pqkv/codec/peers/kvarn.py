"""KVarN: tiles whose rows and columns are brought to one standard deviation before they are rounded."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from pqkv.codec.interface import Side, SideCodec, State
from pqkv.codec.peers.minmax import half
from pqkv.codec.planes import Plane, Planes
from pqkv.codec.transforms import hadamard
from pqkv.config import Settings

_DEVIATIONS = (1e-3, 1e3)  # a round divides by no less and no more
_LOGARITHMS = (-0.3, 10.0)  # all rounds together
_LEAST_SCALE = 1e-10


class KVarNOptions(Settings):
    """Published as k4v2 and k4v4, tiles of 128 or 64 tokens."""

    bits: int = Field(4, ge=1, le=8, description="of an element")
    group: int = Field(128, ge=1, description="tokens of a tile")
    rounds: int = Field(16, ge=0, description="of dividing columns, then rows")


class KVarN(SideCodec):
    """A tile is `group` tokens of a head behind a Hadamard matrix. Its rows are rounded, keys' rows being channels and
    values' rows tokens: x = (q s + z) s_other, with s and z a row's and s_other a column's, all float16.
    """

    Options = KVarNOptions
    source = "KVarN (arXiv 2606.03458)"

    options: KVarNOptions

    def __init__(self, options: Settings, side: Side, state: State) -> None:
        super().__init__(options, side, state)
        self.group = self.options.group

    def encode(self, layer: int, vectors: Tensor, positions: Tensor) -> Planes:
        """Codes (B, Hkv, tiles, rows, columns), scales and zeros (..., rows, 1), other scales (..., 1, columns); what
        is left over after whole tiles is a tile of its own, under `tail.`.
        """
        turned = vectors @ hadamard(vectors.shape[-1]).to(vectors)
        whole = vectors.shape[2] // self.group * self.group
        tiles = {"": turned[:, :, :whole].unflatten(2, (-1, self.group)), "tail.": turned[:, :, None, whole:]}
        planes: dict[str, Plane] = {}
        for name, tile in tiles.items():
            if tile.numel():
                planes |= self._encode_tiles(name, tile.mT if self.side == "keys" else tile)
        return planes

    def decode(self, layer: int, planes: Planes, positions: Tensor) -> Tensor:
        """Tiles put together and turned back."""
        found = []
        for name in ("", "tail."):
            if f"{name}codes" in planes:
                codes, scales, zeros, others = (
                    planes[f"{name}{part}"].values.float() for part in ("codes", "scales", "zeros", "others")
                )
                tile = (codes * scales + zeros) * others
                found.append((tile.mT if self.side == "keys" else tile).flatten(2, 3))
        joined = torch.cat(found, 2)
        return joined @ hadamard(joined.shape[-1]).to(joined)

    def _encode_tiles(self, name: str, tiles: Tensor) -> dict[str, Plane]:
        steps = 2**self.options.bits - 1
        rows, columns = balance(tiles, self.options.rounds)
        even = tiles / columns / rows
        low, high = even.amin(-1, keepdim=True), even.amax(-1, keepdim=True)
        scale = ((high - low) / steps).clamp(min=_LEAST_SCALE)
        codes = ((even - low) / scale).round().clamp(0, steps).to(torch.uint8)
        return {
            f"{name}codes": Plane(codes, self.options.bits),
            f"{name}scales": Plane(half(scale * rows)),
            f"{name}zeros": Plane(half(low * rows)),
            f"{name}others": Plane(half(columns)),
        }


def balance(tiles: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """What to divide rows (..., R, 1) and columns (..., 1, C) of tiles (..., R, C) by, so that all have about one
    standard deviation: of all rounds, the first included in which nothing is divided, the last one among the most even.
    """
    log_rows, log_columns = torch.zeros_like(tiles[..., :, :1]), torch.zeros_like(tiles[..., :1, :])
    best_rows, best_columns, least = log_rows, log_columns, _unevenness(tiles)
    for _ in range(rounds):
        even = tiles / (log_rows + log_columns).exp()
        log_columns = (log_columns + _deviation(even, -2).clamp(*_DEVIATIONS).log()).clamp(*_LOGARITHMS)
        even = tiles / (log_rows + log_columns).exp()
        log_rows = (log_rows + _deviation(even, -1).clamp(*_DEVIATIONS).log()).clamp(*_LOGARITHMS)
        found = _unevenness(tiles / (log_rows + log_columns).exp())
        better = found <= least
        least = torch.where(better, found, least)
        best_rows, best_columns = (
            torch.where(better, log_rows, best_rows),
            torch.where(better, log_columns, best_columns),
        )
    return best_rows.exp(), best_columns.exp()


def _unevenness(tiles: Tensor) -> Tensor:
    """Largest over least standard deviation of columns, plus that of rows, (..., 1, 1)."""
    ratios = []
    for dim in (-2, -1):
        deviations = _deviation(tiles, dim)
        ratios.append(deviations.amax((-2, -1), keepdim=True) / deviations.amin((-2, -1), keepdim=True).clamp(min=1e-8))
    return ratios[0] + ratios[1]


def _deviation(tiles: Tensor, dim: int) -> Tensor:
    """Standard deviation, 0 of one number."""
    return tiles.std(dim, keepdim=True, correction=min(1, tiles.shape[dim] - 1))
