"""Attention on pages: plain arrays in, plain arrays out."""

from pqkv.kernels.registry import (
    ROUNDED,
    ChosenBackend,
    backend_names,
    check_backend,
    choose_backend,
    get_backend,
    page_encoder,
    register_backend,
    slot_writer,
)
from pqkv.kernels.types import AttentionBackend, CodedQuery, ExactTokens, Kept, PagedSide, PagedTokens

__all__ = [
    "ROUNDED",
    "AttentionBackend",
    "ChosenBackend",
    "CodedQuery",
    "ExactTokens",
    "Kept",
    "PagedSide",
    "PagedTokens",
    "backend_names",
    "check_backend",
    "choose_backend",
    "get_backend",
    "page_encoder",
    "register_backend",
    "slot_writer",
]
