"""The experiments by name. What an experiment needs is imported when it runs."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pqkv.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment: the folder `experiments/<name>` says what and why, `module` does it.

    The module has `Settings` (a pqkv.config.Settings: what experiments/<name>/experiment.toml may hold),
    `cells(settings, request)` (an iterator of records) and `derive(records, folder)` (tables and plots, from records
    and nothing else; returns the files it wrote); where it has parts, `LETTERS`, theirs, and `MODEL_LETTERS`, those of
    the parts whose figures are a model's, which another model can be put to.
    """

    name: str
    title: str
    module: str

    def load(self) -> Any:  # noqa: ANN401 - a module
        """The module that runs it."""
        return import_module(self.module)


EXPERIMENTS: dict[str, Experiment] = {
    found.name: found
    for found in (
        Experiment(
            "quality-degradation",
            "a paged attention that lost quality: its defects one by one, and what sees them",
            "pqkv.reproduce.quality_degradation",
        ),
        Experiment(
            "million", "MILLION and its paged, transposed extension: each claim measured", "pqkv.reproduce.million"
        ),
        Experiment(
            "incremental-decode",
            "a GPU-resident incremental decoder: what it copies, what a failed step leaves, how fast it is",
            "pqkv.reproduce.incremental_decode",
        ),
        Experiment(
            "paged-kernel",
            "a paged attention kernel for AMD: what its tests see, what its layout costs",
            "pqkv.reproduce.paged_kernel",
        ),
        Experiment(
            "attention-variants",
            "a lesson on flash attention, shared KV heads, windows and longer contexts: its figures and its listings",
            "pqkv.reproduce.attention_variants",
        ),
    )
}


def experiment(name: str) -> Experiment:
    """The experiment called `name`; raises `ConfigError` listing the known names."""
    if name not in EXPERIMENTS:
        raise ConfigError(f"unknown experiment '{name}'; known: {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]
