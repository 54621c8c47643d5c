"""Exact attention on contiguous keys and values: every form that may be the fastest on the device at hand."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pqkv.config import BenchConfig
from pqkv.reasons import reason
from pqkv.speed.timing import Contestant, copies_beyond_cache

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
_CPU = torch.device("cpu")


def grouped_sdpa(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Query heads of a group as rows, (B, Hkv, G, D): on the CPU up to 8 times faster than `enable_gqa`."""
    return F.scaled_dot_product_attention(query, keys, values)


def matmul(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Two products with a softmax in float32 between."""
    scores = torch.matmul(query, keys.mT).float() * query.shape[-1] ** -0.5
    return torch.matmul(scores.softmax(-1).to(values.dtype), values)


FORMS: dict[str, tuple[Attend, torch.dtype]] = {
    "sdpa float32": (grouped_sdpa, torch.float32),
    "sdpa bfloat16": (grouped_sdpa, torch.bfloat16),
    "matmul float32": (matmul, torch.float32),
    "matmul bfloat16": (matmul, torch.bfloat16),
}


def forms_on(device: torch.device, dtype: torch.dtype) -> dict[str, tuple[Attend, torch.dtype]]:
    """The forms by name with the dtype they run in. On a GPU: every SDPA backend, a group's query heads as rows or as
    heads of their own, and FlashAttention and FlashInfer where installed, all in the query's half precision.
    """
    if device.type != "cuda":
        return FORMS
    half = torch.float16 if dtype == torch.float16 else torch.bfloat16
    found: dict[str, tuple[Attend, torch.dtype]] = {"matmul": (matmul, half)}
    for name, kind in (
        ("flash", SDPBackend.FLASH_ATTENTION),
        ("cudnn", SDPBackend.CUDNN_ATTENTION),
        ("efficient", SDPBackend.EFFICIENT_ATTENTION),
        ("math", SDPBackend.MATH),
    ):
        found[f"sdpa {name}, rows"] = (_sdpa(kind, heads=False), half)
        found[f"sdpa {name}, heads"] = (_sdpa(kind, heads=True), half)
    if find_spec("flash_attn") is not None:
        found["flash-attn"] = (_flash_attn, half)
    if find_spec("flashinfer") is not None:
        found["flashinfer"] = (_flashinfer, half)
    return found


def exact_contestants(
    config: BenchConfig, lengths: Sequence[int], device: torch.device = _CPU
) -> tuple[list[Contestant], list[str]]:
    """Each form on caches of these lengths, and what could not run with its reason; sequences of unequal length run one
    after another.
    """
    found: list[Contestant] = []
    missing: list[str] = []
    forms = forms_on(device, getattr(torch, config.dtype))
    for dtype in dict.fromkeys(kind for _, kind in forms.values()):
        caches = _caches(config, lengths, dtype, device)
        for name, (attend, kind) in forms.items():
            if kind != dtype:
                continue
            if device.type == "cuda" and (reason := _obstacle(attend, caches[0])):
                missing.append(f"{name}: {reason}")
                continue
            found.append(Contestant(name, [_call(attend, cache) for cache in caches]))
    return found, missing


def _sdpa(kind: SDPBackend, *, heads: bool) -> Attend:
    def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        with sdpa_kernel(kind):
            if not heads:
                return F.scaled_dot_product_attention(query, keys, values)
            flat = query.flatten(1, 2)[:, :, None]  # (B, Hkv, G, D) -> (B, Hq, 1, D)
            return F.scaled_dot_product_attention(flat, keys, values, enable_gqa=query.shape[2] > 1)

    return attend


def _flash_attn(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    out: Tensor = importlib.import_module("flash_attn").flash_attn_with_kvcache(
        query.flatten(1, 2)[:, None], keys.transpose(1, 2), values.transpose(1, 2)
    )
    return out


def _flashinfer(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    decode = importlib.import_module("flashinfer").single_decode_with_kv_cache
    rows = [decode(q.flatten(0, 1), k, v, kv_layout="HND") for q, k, v in zip(query, keys, values, strict=True)]
    return torch.stack(rows)


def _obstacle(attend: Attend, cache: list[tuple[Tensor, Tensor, Tensor]]) -> str | None:
    """Why a form does not run on this device, or None."""
    try:
        attend(*cache[0])
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:  # the others may need less: what SDPA's math form copies, flash reads in place
        torch.cuda.empty_cache()
        return "out of memory"
    except (RuntimeError, AttributeError, TypeError, ValueError, ImportError) as error:
        return reason(error)
    return None


def _call(attend: Attend, cache: list[tuple[Tensor, Tensor, Tensor]]) -> Callable[[], object]:
    return lambda: [attend(*tensors) for tensors in cache]


def _caches(
    config: BenchConfig, lengths: Sequence[int], dtype: torch.dtype, device: torch.device
) -> list[list[tuple[Tensor, Tensor, Tensor]]]:
    """Enough copies of query, keys and values that none is in the cache when its turn comes again."""
    Hkv, G, D = config.kv_heads, config.heads // config.kv_heads, config.head_dim
    equal = len(set(lengths)) == 1
    groups = [(len(lengths), lengths[0])] if equal else [(1, n) for n in lengths]
    visible = [(b, n if config.window is None else min(n, config.window)) for b, n in groups]
    nbytes = sum(2 * b * n * Hkv * D * dtype.itemsize for b, n in visible)
    # numbers are drawn in the dtype where the device can: in float32 they would need twice the memory for a moment
    drawn = dtype if device.type == "cuda" else torch.float32

    def tensors(b: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
        keys, values = (torch.randn(b, Hkv, n, D, dtype=drawn, device=device).to(dtype) for _ in range(2))
        return torch.randn(b, Hkv, G, D, dtype=drawn, device=device).to(dtype), keys, values

    return [[tensors(b, n) for b, n in visible] for _ in range(copies_beyond_cache(nbytes, device))]
