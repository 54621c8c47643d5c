"""Attention on exact keys and values in pages and in rows; `kernel.py` says how."""

from pqkv.kernels.cuda.exact.kernel import exact_kernel, rows_kernel
from pqkv.kernels.cuda.exact.variant import SHARED_BYTES, ExactVariant, fitting

__all__ = ["SHARED_BYTES", "ExactVariant", "exact_kernel", "fitting", "rows_kernel"]
