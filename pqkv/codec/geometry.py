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
    if problem := unknown_bits(bits):
        raise ConfigError(
            f"{problem}, or train codebooks of another (pqkv train-codebooks --num-subspaces M --nbits N)"
        )
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


def unknown_bits(*bits: float | None) -> str | None:
    """What is wrong with the first of these bits an element that has no geometry; None where all have one."""
    for b in bits:
        if b is not None and b not in BIT_CHOICES:
            return f"no default geometry for {b:g} bits; pick {', '.join(f'{known:g}' for known in BIT_CHOICES)}"
    return None
