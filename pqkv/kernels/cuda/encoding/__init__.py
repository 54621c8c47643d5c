"""Vectors into pages of codes; `kernel.py` says how."""

from pqkv.kernels.cuda.encoding.kernel import encode_kernel
from pqkv.kernels.cuda.encoding.variant import MOST_TOKENS, EncodeVariant

__all__ = ["MOST_TOKENS", "EncodeVariant", "encode_kernel"]
