"""A contiguous cache of fixed size: one layer's keys and values of one sequence, laid out for a maximal length."""

from __future__ import annotations

import torch
from torch import Tensor

from pqkv.errors import CacheError
from pqkv.kernels import PagedSide, PagedTokens


class StaticStore:
    """Keys and values (Hkv, max_len, D) of one layer and sequence; the first `length` tokens count.

    A token counts once both its key and its value are there: whatever fails before leaves the store as it was.
    """

    def __init__(
        self,
        num_kv_heads: int,
        max_len: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        if min(num_kv_heads, max_len, head_dim) < 1:
            raise CacheError(f"a store of {num_kv_heads} heads, {max_len} tokens and {head_dim} channels holds nothing")
        self.keys, self.values = (
            torch.empty(num_kv_heads, max_len, head_dim, dtype=dtype, device=device) for _ in range(2)
        )
        self.length = 0

    @property
    def max_len(self) -> int:
        """Tokens that it has room for."""
        return self.keys.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of both, whatever is in use."""
        return 2 * self.keys.numel() * self.keys.element_size()

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Add tokens (Hkv, T, D). Raises `CacheError` for a shape that does not fit and for more than there is room
        for, before anything is written.
        """
        heads, _, head_dim = self.keys.shape
        for name, new in (("keys", keys), ("values", values)):
            if new.ndim != 3 or new.shape[0] != heads or new.shape[2] != head_dim:
                raise CacheError(f"{name} have shape {tuple(new.shape)}, the store takes ({heads}, T, {head_dim})")
        if keys.shape != values.shape:
            raise CacheError(f"{keys.shape[1]} keys and {values.shape[1]} values: every token has one of each")
        end = self.length + keys.shape[1]
        if end > self.max_len:
            raise CacheError(
                f"{self.length} tokens of {self.max_len} are in the store: {keys.shape[1]} more do not fit; "
                "nothing was written"
            )
        self.keys[:, self.length : end] = keys
        self.values[:, self.length : end] = values
        self.length = end

    def crop(self, length: int) -> None:
        """Keep the first `length` tokens."""
        if not 0 <= length <= self.length:
            raise CacheError(f"cannot keep {length} of {self.length} tokens")
        self.length = length

    def tokens(self) -> PagedTokens:
        """What attention backends take: the store is one page as long as itself."""
        device = self.keys.device
        return PagedTokens(
            PagedSide(self.keys[None]),
            PagedSide(self.values[None]),
            torch.zeros(1, 1, dtype=torch.int32, device=device),
            torch.tensor([self.length], dtype=torch.int32, device=device),
            self.max_len,
            trusted=True,
        )
