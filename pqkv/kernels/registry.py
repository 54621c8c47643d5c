"""Attention backends by name. A backend is named in a configuration and in every result.

`auto` is the fastest one that can serve a device and dtype; a backend that cannot serve them gives way to the next
one, and says so, or is an error where fallbacks are off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pqkv.cpu_path import cpu_path
from pqkv.errors import ConfigError, KernelError
from pqkv.kernels.faults.catalog import FAULTS, PREFIX, Fault, canonical_name
from pqkv.kernels.types import AttentionBackend, ExactTokens, PagedTokens
from pqkv.reasons import reason

if TYPE_CHECKING:
    from pqkv.kernels.cpu.sides import Way

AUTO = "auto"
# backends that round centroids of floats to bytes, and of how many bytes queries and weights are in their look-ups
ROUNDED = {"cpu-bytes": 2, "cpu-8bit": 1}

Obstacle = Callable[[torch.device, torch.dtype], str | None]
HeadsObstacle = Callable[[int], str | None]


@dataclass(frozen=True, slots=True)
class _Entry:
    factory: Callable[[], AttentionBackend]
    obstacle: Obstacle
    replaceable: bool = True
    heads: HeadsObstacle = lambda head_dim: None
    prefill: str | None = None

    def reason(self, device: torch.device, dtype: torch.dtype, head_dim: int | None) -> str | None:
        """Why it cannot serve such queries, or None."""
        return self.obstacle(device, dtype) or (None if head_dim is None else self.heads(head_dim))


@dataclass(frozen=True, slots=True)
class ChosenBackend:
    """A backend that can run; `note` says why it is not the one asked for, if it is not, and `prefill` names what
    computes several queries a sequence at once, where the backend itself does not.
    """

    name: str
    run: AttentionBackend
    note: str | None = None
    prefill: str | None = None

    @property
    def prefill_note(self) -> str | None:
        """What a record of a run with prefills says of them, or None."""
        if self.prefill is None:
            return None
        return f"backend '{self.name}' takes one query a sequence: several at once (prefill) are of '{self.prefill}'"


_ENTRIES: dict[str, _Entry] = {}
_PREFERENCE = ("cuda", "cpu", "reference")  # of `auto`, and of what stands in for a backend that cannot run


def register_backend(
    name: str,
    factory: Callable[[], AttentionBackend],
    obstacle: Obstacle = lambda device, dtype: None,
    *,
    replaceable: bool = True,
    heads: HeadsObstacle = lambda head_dim: None,
    prefill: str | None = None,
) -> None:
    """Add a backend. `factory` runs each time it is asked for: its imports cost nothing before, it should be cheap.
    `obstacle(device, dtype)` is the reason why it cannot serve queries there, or None, `heads(head_dim)` why not heads
    of so many elements; another one then runs instead, if it is `replaceable`. `prefill` is `ChosenBackend.prefill`.
    """
    if name in _ENTRIES or name == AUTO:
        raise ValueError(f"backend {name!r} is registered already")
    _ENTRIES[name] = _Entry(factory, obstacle, replaceable, heads, prefill)


def get_backend(name: str) -> AttentionBackend:
    """The backend called `name`; raises `ConfigError` listing the known names."""
    name = canonical_name(name)
    check_backend(name)
    if name == AUTO:
        raise ConfigError("backend 'auto' depends on device and dtype; use choose_backend")
    return _ENTRIES[name].factory()


def check_backend(name: str) -> None:
    """Raise `ConfigError`, listing the known names, for one that is not among them."""
    if name == AUTO or canonical_name(name) in _ENTRIES:
        return
    if name.startswith(PREFIX):
        raise ConfigError(f"unknown fault '{name}'; known: {', '.join(FAULTS)}")
    sound = [known for known in backend_names() if known not in FAULTS]
    raise ConfigError(f"unknown backend '{name}'; known: {', '.join((AUTO, *sound))}, {PREFIX}NAME")


def choose_backend(
    name: str, device: torch.device, dtype: torch.dtype, *, head_dim: int | None = None, fallback: bool = True
) -> ChosenBackend:
    """The backend that serves queries of `dtype` and `head_dim` (None: any) on `device`: `name`, or without it the next
    that can.

    Raises `KernelError` if `name` cannot and `fallback` is off, or `name` is a fault: nothing else has it.
    """
    check_backend(name)
    name = canonical_name(name)
    reason = None
    if name != AUTO:
        reason = _ENTRIES[name].reason(device, dtype, head_dim)
        if reason is None:
            return _chosen(name, None)
        if not fallback or not _ENTRIES[name].replaceable:
            raise KernelError(f"backend '{name}' cannot run: {reason}")
    for other in _PREFERENCE:
        if other != name and _ENTRIES[other].reason(device, dtype, head_dim) is None:
            return _chosen(other, reason and f"backend '{name}' cannot run: {reason}; '{other}' ran instead")
    raise KernelError(f"no backend serves {dtype} on {device}")


def _chosen(name: str, note: str | None) -> ChosenBackend:
    entry = _ENTRIES[name]
    return ChosenBackend(name, entry.factory(), note, entry.prefill)


@cache
def page_encoder(device: torch.device, dtype: torch.dtype) -> Callable[..., None] | None:
    """`pqkv.kernels.cuda.encode.encode_pages` for vectors of `dtype` where it can run, or None: torch encodes."""
    if _cuda_obstacle(device, dtype) is not None:
        return None
    from pqkv.kernels.cuda.encode import encode_pages

    return encode_pages


@cache
def slot_writer(device: torch.device, dtype: torch.dtype) -> Callable[..., None] | None:
    """`pqkv.kernels.cuda.encode.write_slots` where it can run, or None: torch copies."""
    if _cuda_obstacle(device, dtype) is not None:
        return None
    from pqkv.kernels.cuda.encode import write_slots

    return write_slots


def backend_names() -> tuple[str, ...]:
    """All registered names, sorted."""
    return tuple(sorted(_ENTRIES))


def _reference() -> AttentionBackend:
    from pqkv.kernels.reference import attention

    return attention


def _cpu() -> AttentionBackend:
    from pqkv.kernels.cpu.backend import attention

    return attention


def _cpu_one_way(way: Way) -> AttentionBackend:
    """Backend `cpu` with codes of keys and values looking up this, whatever costs less."""
    from pqkv.kernels.cpu.backend import attention

    return partial(attention, ways=(way, way))


def _cpu_bytes(planes: int) -> AttentionBackend:
    """Backend `cpu` with centroids of floats rounded to bytes, wherever those are looked up; with one plane, a query's
    numbers and weights are a byte each there.
    """
    from pqkv.kernels.cpu.backend import attention

    return partial(attention, rounded=True, planes=planes)


def _bytes_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    if obstacle := _cpu_obstacle(device, dtype):
        return obstacle
    path = cpu_path()
    return f"path 'float' looks nothing up in bytes ({path.reason})" if path.name == "float" else None


def _cpu_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"the tensors are on {device}"
    if dtype == torch.float64:
        return "it computes in float32 and the model in float64"
    return None


def _cuda() -> AttentionBackend:
    from pqkv.kernels.cuda.backend import attention

    return attention


def _cuda_naive() -> AttentionBackend:
    from pqkv.kernels.cuda.naive import attention

    return attention


def _reported(name: str) -> AttentionBackend:
    from pqkv.kernels.reported.backends import attention

    return partial(attention, name, _sound)


def _indexed() -> AttentionBackend:
    from pqkv.kernels.indexed import attention

    return attention


def _reported_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    if dtype != torch.float32:
        return f"it serves float32 as its report does, not {dtype}"
    return _cuda_obstacle(device, dtype) if device.type == "cuda" else None


def _cuda_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"the tensors are on {device}, not on an NVIDIA GPU; `pqkv env` says whether torch finds one"
    if device.index:
        return f"it runs on the first GPU only, not on {device}; CUDA_VISIBLE_DEVICES says which GPU is the first"
    if dtype == torch.float64:
        return "it accumulates in float32 and the model in float64"
    if find_spec("numba_cuda") is None:
        return "the package numba-cuda is not installed; pip install 'pqkv[cuda]'"
    if (capability := torch.cuda.get_device_capability(device)) < (8, 0):
        return (
            f"its kernels need compute capability 8.0 (Ampere) or later, this GPU has {'.'.join(map(str, capability))}"
        )
    return _numba_obstacle()


def _cuda_heads(head_dim: int) -> str | None:
    return f"it reads rows 128 bits at a time, and {head_dim} elements are no multiple of 8" if head_dim % 8 else None


def _numba_obstacle() -> str | None:
    """Why Numba cannot compile for and reach the GPU that torch has, or None."""
    try:
        cuda, driver, nvvm = _numba_cuda()
    except (ImportError, AttributeError) as error:  # of a NumPy that is newer than it, say
        return f"numba-cuda cannot be imported ({reason(error)}); pip install 'pqkv[cuda]' has what fits"
    if cuda.is_available():
        return None
    try:
        found = driver.driver.is_available
    except driver.CudaSupportError:
        found = False
    if not found:
        return "Numba finds no CUDA driver; nvidia-smi shows whether one is installed"
    if not nvvm.is_available():
        return "Numba finds no NVVM to compile with; pip install 'pqkv[cuda]'"
    return "Numba cannot use this CUDA driver; `numba -s` says more"


def _numba_cuda() -> tuple[Any, Any, Any]:
    from numba import cuda
    from numba.cuda.cudadrv import driver, nvvm

    return cuda, driver, nvvm


def _register_fault(name: str, fault: Fault) -> None:
    def factory() -> AttentionBackend:
        from pqkv.kernels.faults.backend import FaultyAttention

        return FaultyAttention(fault, _sound)

    register_backend(name, factory, _fault_obstacle, replaceable=False)


def _sound(
    query: Tensor,
    pages: PagedTokens | None,
    sinks: ExactTokens | None,
    residual: ExactTokens | None,
    *,
    scale: float,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """What runs where a fault has nothing to spoil: the best backend there is."""
    chosen = choose_backend(AUTO, query.device, query.dtype, head_dim=query.shape[-1])
    return chosen.run(query, pages, sinks, residual, scale=scale, window=window)


def _fault_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    return _cpu_obstacle(device, dtype) if device.type == "cpu" else _cuda_obstacle(device, dtype)


register_backend("reference", _reference)
register_backend("cpu", _cpu, _cpu_obstacle)
for _name, _planes in ROUNDED.items():
    register_backend(_name, partial(_cpu_bytes, _planes), _bytes_obstacle)
register_backend("cpu-centroids", partial(_cpu_one_way, "centroids"), _cpu_obstacle)
register_backend("cpu-tables", partial(_cpu_one_way, "tables"), _cpu_obstacle)
register_backend("cuda", _cuda, _cuda_obstacle, heads=_cuda_heads, prefill="reference")
register_backend("cuda-naive", _cuda_naive, _cuda_obstacle)
register_backend("indexed", _indexed, _reported_obstacle, replaceable=False)
for _name in ("one-warp", "all-rows", "round-trip"):
    register_backend(_name, partial(_reported, _name), _reported_obstacle, replaceable=False)
for _name, _fault in FAULTS.items():
    _register_fault(_name, _fault)
