"""NSNQuant: normalise, shift, normalise, and one codebook for a Gaussian that needs no calibration."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from pydantic import Field
from torch import Tensor

from pqkv.codec.codebook import Codebook
from pqkv.codec.gaussian import gaussian_codebook
from pqkv.codec.interface import Side, SideCodec, State
from pqkv.codec.peers.minmax import half, safe
from pqkv.codec.planes import Plane, Planes
from pqkv.codec.transforms import hadamard
from pqkv.config import BIT_CHOICES, Settings
from pqkv.errors import ConfigError


class NSNOptions(Settings):
    """Published with 2 bits and with 1."""

    bits: Literal[1, 2] = Field(2, description="of codes, an element: 256 centroids of 8 or of 4 channels")
    group: int = Field(64, ge=1, description="tokens that share the mean that is taken out")


class NSN(SideCodec):
    """x = n1 (m + n2 H c): n1 and n2 are root mean squares of a token and head, m the mean of the group's normalised
    tokens, all float16; H is a Hadamard matrix and c are centroids for N(0, 1).
    """

    Options = NSNOptions
    source = "NSNQuant (arXiv 2505.18231)"

    options: NSNOptions

    def __init__(self, options: Settings, side: Side, state: State) -> None:
        super().__init__(options, side, state)
        self.group = self.options.group
        self.d_sub, self.nbits = BIT_CHOICES[self.options.bits]
        self._centroids = gaussian_codebook(self.d_sub, self.nbits)
        self._books: dict[tuple[int, torch.device], Codebook] = {}

    def encode(self, layer: int, vectors: Tensor, positions: Tensor) -> Planes:
        """Codes (B, Hkv, T, D / d_sub), both norms (B, Hkv, T, 1), means (B, Hkv, groups, D)."""
        T, D = vectors.shape[2:]
        first = half(_rms(vectors))
        unit = vectors / safe(first.to(vectors))
        padded = F.pad(unit, (0, 0, 0, -T % self.group)).unflatten(2, (-1, self.group))  # zeros change no sum
        counts = torch.full((padded.shape[2], 1), self.group, device=vectors.device)
        counts[-1] = T - (len(counts) - 1) * self.group
        means = half(padded.sum(3) / counts)
        shifted = unit - self._at_tokens(means, T).to(unit)
        second = half(_rms(shifted))
        gaussian = shifted / safe(second.to(shifted)) @ hadamard(D).to(shifted)
        return {
            "codes": Plane(self._book(D, vectors.device).encode(gaussian), self.nbits),
            "norms": Plane(first),
            "means": Plane(means),
            "second_norms": Plane(second),
        }

    def decode(self, layer: int, planes: Planes, positions: Tensor) -> Tensor:
        """The three steps backwards."""
        codes, first, second = (planes[name].values for name in ("codes", "norms", "second_norms"))
        D = codes.shape[-1] * self.d_sub
        gaussian = self._book(D, codes.device).decode(codes)
        shifted = gaussian @ hadamard(D).to(gaussian) * second.float()
        return (shifted + self._at_tokens(planes["means"].values, codes.shape[2]).float()) * first.float()

    def fixed_bytes(self) -> int:
        """Of the one codebook."""
        return self._centroids.nbytes

    def _at_tokens(self, means: Tensor, tokens: int) -> Tensor:
        return means.repeat_interleave(self.group, 2)[:, :, :tokens]

    def _book(self, head_dim: int, device: torch.device) -> Codebook:
        if head_dim % self.d_sub:
            raise ConfigError(
                f"nsn of {self.options.bits} bits codes {self.d_sub} channels at once, which do not divide a head of "
                f"{head_dim}"
            )
        if (head_dim, device) not in self._books:
            centroids = self._centroids.to(device).expand(1, head_dim // self.d_sub, -1, -1)
            self._books[head_dim, device] = Codebook(centroids)
        return self._books[head_dim, device]


def _rms(vectors: Tensor) -> Tensor:
    return vectors.square().mean(-1, keepdim=True).sqrt()
