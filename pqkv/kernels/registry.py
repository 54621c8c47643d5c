"""Attention backends by name. A backend is named in a configuration and in every result."""

from __future__ import annotations

from collections.abc import Callable

from pqkv.errors import ConfigError
from pqkv.kernels.types import AttentionBackend

_FACTORIES: dict[str, Callable[[], AttentionBackend]] = {}


def register_backend(name: str, factory: Callable[[], AttentionBackend]) -> None:
    """Add a backend; `factory` runs each time it is asked for: its imports cost nothing before, it should be cheap."""
    if name in _FACTORIES:
        raise ValueError(f"backend {name!r} is registered already")
    _FACTORIES[name] = factory


def get_backend(name: str) -> AttentionBackend:
    """The backend called `name`; raises `ConfigError` listing the known names."""
    if name not in _FACTORIES:
        raise ConfigError(f"unknown backend '{name}'; known: {', '.join(backend_names())}")
    return _FACTORIES[name]()


def backend_names() -> tuple[str, ...]:
    """All registered names, sorted."""
    return tuple(sorted(_FACTORIES))


def _reference() -> AttentionBackend:
    from pqkv.kernels.reference import attention

    return attention


register_backend("reference", _reference)
