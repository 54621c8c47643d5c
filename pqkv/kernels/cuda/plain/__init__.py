"""Attention on codes of any width in float32; `kernel.py` says how."""

from pqkv.kernels.cuda.plain.kernel import plain_kernel
from pqkv.kernels.cuda.plain.variant import PlainVariant

__all__ = ["PlainVariant", "plain_kernel"]
