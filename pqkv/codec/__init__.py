"""Vectors <-> codes: geometry, codebooks, training and the codebook file."""

from pqkv.codec.codebook import Codebook, CodebookSet
from pqkv.codec.geometry import code_bits, code_geometry

__all__ = ["Codebook", "CodebookSet", "code_bits", "code_geometry"]
