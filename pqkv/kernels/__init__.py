"""Attention on pages: plain arrays in, plain arrays out."""

from pqkv.kernels.registry import backend_names, get_backend, register_backend
from pqkv.kernels.types import AttentionBackend, ExactTokens, PagedSide, PagedTokens

__all__ = [
    "AttentionBackend",
    "ExactTokens",
    "PagedSide",
    "PagedTokens",
    "backend_names",
    "get_backend",
    "register_backend",
]
