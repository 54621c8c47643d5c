"""Attention on pages for the CPU: Numba kernels with explicit vector code, every core, codes read where they lie."""

from pqkv.kernels.cpu.unpack import unpack_lines
from pqkv.vector_code import drop_stale_code

drop_stale_code(unpack_lines)
