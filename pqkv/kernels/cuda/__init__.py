"""Attention on pages by Numba kernels for NVIDIA GPUs."""
