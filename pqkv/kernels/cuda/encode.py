"""What enters the cache: pages of codes, encoded by one kernel; new exact tokens in their slots."""

from __future__ import annotations

import torch
from torch import Tensor

from pqkv.config import Layout
from pqkv.errors import KernelError
from pqkv.kernels.cuda.codes import Codes
from pqkv.kernels.cuda.device import SIMULATED
from pqkv.kernels.cuda.encoding import MOST_TOKENS, EncodeVariant, encode_kernel
from pqkv.kernels.cuda.launch import array, compiled, launch, words
from pqkv.kernels.cuda.slots import slots_kernel
from pqkv.packing import packed_size

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def encode_pages(
    vectors: Tensor,
    centroids: Tensor,
    channels: Tensor | None,
    weights: Tensor | None,
    nbits: int,
    layout: Layout,
    pages: Tensor,
    page_ids: Tensor,
) -> None:
    """Encode vectors (B, Hkv, n * page_size, D) into pages (num_pages, Hkv, lines, bytes) uint8 as
    `Codebook.encode` and `pack` do: page page_ids[b, i] takes the tokens i * page_size ... of sequence b.

    Vectors are float32, float16 or bfloat16; centroids (H, M, C, d_sub) float32 with H = 1 or Hkv; channels (H, D)
    int64 and weights (H, D) float32 as in `Codebook`; page_ids (B, n) int32 or int64.

    Ids must differ; those outside the pages write nothing. Raises `KernelError` before any launch for shapes, dtypes or
    devices that do not fit together, and for centroids too long for shared memory.
    """
    page_size = _checked(vectors, centroids, channels, weights, nbits, layout, pages, page_ids)
    _, kv_heads, T, _ = vectors.shape
    H, M, _, d_sub = centroids.shape
    dtype = str(vectors.dtype).removeprefix("torch.")
    variant = EncodeVariant(
        Codes(M, nbits, d_sub, layout),
        max(1, page_size),
        dtype,
        channels is not None,
        weights is not None,
        MOST_TOKENS,
    )
    if not variant.chunk:
        raise KernelError(f"{d_sub} elements to a code do not fit shared memory; use more subspaces")
    count, each = page_ids.numel(), page_ids.shape[1]
    if not count or not T or not kv_heads:
        return
    if vectors.dtype == torch.bfloat16:
        vectors = vectors.contiguous().view(torch.int16)
    pieces = count * -(-page_size // variant.piece)
    tiles = -(-pieces // (variant.tile // variant.piece))
    launch(
        compiled(encode_kernel, variant), (tiles * -(-M // variant.subspaces), kv_heads), 32 * variant.subspaces,
        array(vectors), array(centroids), array(centroids if channels is None else channels),
        array(centroids if weights is None else weights), array(page_ids),
        words(pages) if variant.unit == 4 else array(pages), count, each, kv_heads, H, pages.shape[0],
    )  # fmt: skip


def _checked(
    vectors: Tensor,
    centroids: Tensor,
    channels: Tensor | None,
    weights: Tensor | None,
    nbits: int,
    layout: Layout,
    pages: Tensor,
    page_ids: Tensor,
) -> int:
    """The page size, or `KernelError`; see `encode_pages`."""
    if vectors.ndim != 4 or vectors.dtype not in _DTYPES:
        raise KernelError(f"vectors are {_described(vectors)}, not (B, Hkv, T, D) in float32, float16 or bfloat16")
    B, heads, T, D = vectors.shape
    if centroids.ndim != 4 or centroids.dtype != torch.float32:
        raise KernelError(f"centroids are {_described(centroids)}, not float32 (H, M, C, d_sub)")
    H, M, C, d_sub = centroids.shape
    if not 1 <= nbits <= 12 or 2**nbits != C or H not in (1, heads) or M * d_sub != D or not D:
        raise KernelError(
            f"centroids are {_described(centroids)}: {nbits}-bit codes (1 to 12) of {heads} heads of {D} elements need "
            f"H = 1 or {heads}, C = 2**nbits and M * d_sub = {D}"
        )
    for name, part, dtype in (("channels", channels, torch.int64), ("weights", weights, torch.float32)):
        if part is not None and (tuple(part.shape) != (H, D) or part.dtype != dtype):
            raise KernelError(f"{name} are {_described(part)}, not {dtype} ({H}, {D})")
    if page_ids.ndim != 2 or page_ids.shape[0] != B or page_ids.dtype not in (torch.int32, torch.int64):
        raise KernelError(f"page_ids are {_described(page_ids)}, not int32 or int64 ({B}, pages)")
    n = page_ids.shape[1]
    if T % max(1, n) or (T and not n):
        raise KernelError(f"{T} tokens do not fill {n} pages")
    page_size = T // max(1, n)
    lines, codes = (page_size, M) if layout == "row" else (M, page_size)
    shape = (heads, lines, packed_size(codes, nbits))
    if n and (pages.ndim != 4 or pages.shape[1:] != shape or pages.dtype != torch.uint8 or not pages.is_contiguous()):
        raise KernelError(
            f"pages are {_described(pages)}, not contiguous uint8 (pages, {', '.join(map(str, shape))}) as layout "
            f"{layout} of {M} codes of {nbits} bits in pages of {page_size} tokens needs"
        )
    if pages.data_ptr() % 4:
        raise KernelError("pages do not start at a multiple of 4 bytes")
    _check_devices(vectors, centroids, channels, weights, pages, page_ids)
    return page_size


def write_slots(keys: Tensor, values: Tensor, key_buffer: Tensor, value_buffer: Tensor, positions: Tensor) -> None:
    """Copy one new token's keys and values (B, Hkv, 1, D) bit for bit into slot positions[b] (B,) int32 of the buffers
    (B, Hkv, capacity, D), all sequences in one launch. Positions outside 0 ... capacity - 1 are padding: nothing is
    written.

    Raises `KernelError` before the launch for shapes, devices or dtypes (any of 16 or 32 bits, the same for all) that
    do not fit together, and for buffers that are not contiguous.
    """
    if keys.ndim != 4 or keys.shape[2] != 1 or keys.shape != values.shape:
        raise KernelError(f"keys are {_described(keys)} and values {_described(values)}, not both (B, Hkv, 1, D)")
    B, heads, _, D = keys.shape
    if keys.element_size() not in (2, 4) or {t.dtype for t in (values, key_buffer, value_buffer)} != {keys.dtype}:
        raise KernelError("keys, values and buffers need one dtype of 16 or 32 bits")
    for name, buffer in (("key_buffer", key_buffer), ("value_buffer", value_buffer)):
        shaped = (
            buffer.ndim == 4 and buffer.shape == key_buffer.shape and buffer.shape == (B, heads, buffer.shape[2], D)
        )
        if not shaped or not buffer.is_contiguous():
            raise KernelError(f"{name} is {_described(buffer)}, not contiguous ({B}, {heads}, capacity, {D})")
    if tuple(positions.shape) != (B,) or positions.dtype != torch.int32:
        raise KernelError(f"positions are {_described(positions)}, not int32 ({B},)")
    _check_devices(keys, values, key_buffer, value_buffer, positions)
    if not keys.numel():
        return
    bits = torch.int32 if keys.element_size() == 4 else torch.int16
    parts = (array(part.contiguous().view(bits)) for part in (keys, values, key_buffer, value_buffer))
    launch(
        compiled(slots_kernel, None), (heads, B), min(128, 32 * -(-D // 32)),
        *parts, array(positions), key_buffer.shape[2], D,
    )  # fmt: skip


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


def _check_devices(first: Tensor, *others: Tensor | None) -> None:
    for tensor in (first, *others):
        if tensor is not None and (
            tensor.device != first.device or tensor.device.type != ("cpu" if SIMULATED else "cuda")
        ):
            raise KernelError(f"a tensor is on {tensor.device}, another on {first.device}; all need one CUDA device")
