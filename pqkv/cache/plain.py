"""An exported cache in NumPy alone: tokens out of pages, and attention over them, written for reading, not for speed.

The layout is `pqkv.cache.exported`'s; nothing here knows how a cache works.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from pqkv.errors import CacheError

_KEY = "pqkv-export"


@dataclass(frozen=True, slots=True)
class PlainCache:
    """The tensors of a file by name, and its header."""

    tensors: dict[str, np.ndarray]
    header: dict[str, Any]

    @property
    def num_sequences(self) -> int:
        """B."""
        return len(self.tensors["last_page_len"])

    def attend(self, layer: int, query: np.ndarray, scale: float) -> np.ndarray:
        """Attention of query (B, Hq, D) over every token of each sequence -> (B, Hq, D) float64."""
        out = np.empty(query.shape)
        for b, rows in enumerate(query.astype(np.float64)):
            keys, values = self.vectors(b, layer, "keys"), self.vectors(b, layer, "values")
            group = rows.shape[0] // keys.shape[0]  # query heads on one KV head
            for h, q in enumerate(rows):
                scores = keys[h // group] @ q * scale
                weights = np.exp(scores - scores.max())
                out[b, h] = weights @ values[h // group] / weights.sum()
        return out

    def vectors(self, sequence: int, layer: int, side: str) -> np.ndarray:
        """Keys or values of a sequence in order of position, (Hkv, n, D) float64: sinks, pages, residual."""
        part = {
            name.rsplit(".", 1)[1]: t for name, t in self.tensors.items() if name.startswith(f"layers.{layer}.{side}.")
        }
        start, stop = self.tensors["kv_indptr"][sequence : sequence + 2]
        pages = self.tensors["kv_indices"][start:stop]
        count = (len(pages) - 1) * self.header["page_size"] + int(self.tensors["last_page_len"][sequence])
        found = []
        if len(pages):
            found.append(
                self._coded(part, layer, side, pages, count) if "centroids" in part else _exact(part, pages, count)
            )
        for name, place in (("sinks", 0), ("residual", len(found) + 1)):
            if name in part:
                kept = part[name][sequence][:, : self.tensors[f"{name.removesuffix('s')}_len"][sequence]]
                found.insert(place, kept.astype(np.float64))
        return np.concatenate(found, 1)

    def _coded(self, part: dict[str, np.ndarray], layer: int, side: str, pages: np.ndarray, count: int) -> np.ndarray:
        how = self.header[side][layer]
        codes = _codes(part["pages"][pages], how, self.header["page_size"])[:, :, :count]  # (Hkv, M, n)
        Hkv, M, _ = codes.shape
        centroids = part["centroids"].astype(np.float64)
        if "scales" in part:
            centroids = centroids * part["scales"][:, :, None]
        centroids = np.broadcast_to(centroids, (Hkv, M, *centroids.shape[2:]))
        rows = np.stack([[centroids[h, m][codes[h, m]] for m in range(M)] for h in range(Hkv)])  # (Hkv, M, n, D / M)
        y = rows.transpose(0, 2, 1, 3).reshape(Hkv, count, -1)
        if "channels" in part:
            natural, channels = np.empty_like(y), np.broadcast_to(part["channels"], (Hkv, y.shape[2]))
            for h in range(Hkv):
                natural[h][:, channels[h]] = y[h]
            y = natural
        if "gains" in part:
            gains = part["gains"][pages].transpose(1, 0, 2).reshape(Hkv, -1)[:, :count]
            y = y * np.take_along_axis(part["gain_values"], gains.astype(np.int64), 1)[..., None]
        if "inverse" in part:
            y = y @ part["inverse"]
        if "mean" in part:
            y = y + part["mean"][:, None]
        if "turning" in part:
            half = len(part["frequencies"])
            angles = (self.header["sink_tokens"] + np.arange(count))[:, None] * part["frequencies"]  # (n, R / 2)
            a, b = (one[:, None].astype(np.float64) for one in np.split(part["turning"], [half], 1))
            y[..., :half] += a * np.cos(angles) - b * np.sin(angles)
            y[..., half : 2 * half] += b * np.cos(angles) + a * np.sin(angles)
        return y


def load_export(path: Path) -> PlainCache:
    """Read a file that `pqkv export` wrote. Raises `CacheError` for any other."""
    try:
        with safe_open(str(path), framework="np") as file:
            header = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return PlainCache(tensors, header)
    except KeyError as error:
        raise CacheError(f"{path} is a safetensors file but no exported cache; make one with pqkv export") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise CacheError(f"{path} is not a readable safetensors file ({error}); export it again") from error


def _codes(pages: np.ndarray, how: dict[str, Any], page_size: int) -> np.ndarray:
    """Packed pages (n, Hkv, lines, bytes) -> codes (Hkv, M, n * page_size)."""
    per_line = page_size if how["layout"] == "transposed" else how["num_subspaces"]
    bits = np.unpackbits(pages, axis=-1, bitorder="little")[..., : per_line * how["nbits"]]
    codes = bits.reshape(*bits.shape[:-1], per_line, how["nbits"]) @ (1 << np.arange(how["nbits"]))
    if how["layout"] == "row":
        codes = codes.swapaxes(2, 3)  # (n, Hkv, M, page_size)
    return codes.transpose(1, 2, 0, 3).reshape(codes.shape[1], codes.shape[2], -1)


def _exact(part: dict[str, np.ndarray], pages: np.ndarray, count: int) -> np.ndarray:
    vectors = part["pages"][pages].transpose(1, 0, 2, 3)  # (Hkv, pages, page_size, D)
    return vectors.reshape(vectors.shape[0], -1, vectors.shape[3])[:, :count].astype(np.float64)
