"""How many codes a vector gets: from bits per element to (num_subspaces, nbits)."""

from __future__ import annotations

from pqkv.config import BIT_CHOICES, CodeShape
from pqkv.errors import ConfigError


def code_geometry(shape: CodeShape, head_dim: int) -> tuple[int, int]:
    """Resolve a requested code shape to `(num_subspaces, nbits)` for vectors of `head_dim` elements.

    Raises `ConfigError` when the bits have no default geometry or head_dim does not divide.
    """
    if shape.num_subspaces is not None and shape.nbits is not None:
        if head_dim % shape.num_subspaces:
            raise ConfigError(
                f"head_dim {head_dim} is not divisible by num_subspaces {shape.num_subspaces}; "
                f"pick one of {[m for m in range(1, head_dim + 1) if head_dim % m == 0]}"
            )
        return shape.num_subspaces, shape.nbits
    bits = 4 if shape.bits is None else shape.bits
    if bits not in BIT_CHOICES:
        known = ", ".join(f"{b:g}" for b in BIT_CHOICES)
        raise ConfigError(f"no default geometry for {bits:g} bits; pick {known}, or give --num-subspaces/--nbits")
    d_sub, nbits = BIT_CHOICES[bits]
    if head_dim % d_sub:
        raise ConfigError(
            f"head_dim {head_dim} is not divisible by {d_sub}, which {bits:g} bits needs; "
            "give --num-subspaces and --nbits instead"
        )
    return head_dim // d_sub, nbits


def code_bits(num_subspaces: int, nbits: int, head_dim: int) -> float:
    """Marginal cost of one element in bits: M * nbits / D."""
    return num_subspaces * nbits / head_dim
