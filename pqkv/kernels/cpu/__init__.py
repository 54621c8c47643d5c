"""Attention on pages for the CPU: Numba kernels with explicit vector code, every core, codes read where they lie."""
