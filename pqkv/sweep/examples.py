"""Sweeps that ship with pqkv: files to begin from."""

from __future__ import annotations

from importlib.resources import files

from pqkv.errors import ConfigError


def example_names() -> list[str]:
    """Of all of them."""
    return sorted(path.name.removesuffix(".toml") for path in files("pqkv.sweep").joinpath("examples").iterdir())


def example(name: str) -> str:
    """The text of one. Raises `ConfigError` for a name that there is not."""
    if name not in example_names():
        raise ConfigError(f"there is no example '{name}'; there are {', '.join(example_names())}")
    return files("pqkv.sweep").joinpath("examples", f"{name}.toml").read_text(encoding="utf-8")
