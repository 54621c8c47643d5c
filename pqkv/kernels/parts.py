"""The parts of a decoding step of each backend that can tell them apart, and how it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pqkv.errors import KernelError
from pqkv.kernels.registry import ROUNDED
from pqkv.kernels.types import Part

if TYPE_CHECKING:
    from pqkv.kernels.cpu.sides import Way

_CPU_WAYS: dict[str, Way] = {"cpu": "auto", "cpu-centroids": "centroids", "cpu-tables": "tables"}


@dataclass(frozen=True, slots=True)
class PartSource:
    """`parts` takes what an `AttentionBackend` takes; `method` says how parts are told apart."""

    parts: Callable[..., list[Part]]
    method: str


def part_source(backend: str) -> PartSource:
    """That of a backend; raises `KernelError` for one whose parts cannot be told apart."""
    if backend in _CPU_WAYS:
        from pqkv.kernels.cpu.parts import decode_parts

        way = _CPU_WAYS[backend]
        return PartSource(partial(decode_parts, ways=(way, way)), "each stage alone over the whole cache")
    if backend in ROUNDED:
        from pqkv.kernels.cpu.parts import decode_parts as byte_parts

        own = partial(byte_parts, rounded=True, planes=ROUNDED[backend])
        return PartSource(own, "each stage alone over the whole cache")
    if backend == "cuda":
        from pqkv.kernels.cuda.parts import decode_parts as device_parts

        return PartSource(device_parts, "kernels that end after a phase: a part is the difference of two")
    raise KernelError(f"the parts of backend '{backend}' cannot be told apart; use cpu or cuda")
