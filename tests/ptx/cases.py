"""Small launches that tell much of a kernel: ragged lengths around a page, several warps, several splits, a window."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from batches import Spec, brute_force, build

from pqkv.kernels.cuda import backend
from pqkv.kernels.cuda.launch import array, numbers
from pqkv.kernels.cuda.merge import MergeVariant, merge_block, merge_kernel
from ptx.encoded import Case as Encoded
from ptx.encoded import check as check_encoded

# of the largest element of a row, and of lse: fp16 tables hold 11 bits of a centroid, and sums are in fp16x2
TOLERANCE = {torch.float32: (3e-5, 1e-5), torch.float16: (3e-3, 3e-3), torch.bfloat16: (1e-2, 3e-3)}
# of a number: half a step of the type that it is rounded to, or what sums in float32 are off by
_ROUNDED = {torch.float32: 1e-6, torch.float16: 1.01 * 2.0**-11, torch.bfloat16: 1.01 * 2.0**-8}


class Wrong(Exception):
    """The result is."""


@dataclass(frozen=True, slots=True)
class Launched:
    """What runs the kernel `kernel`, in one variant, and raises `Wrong` or `AssertionError` where its result is."""

    kernel: str
    run: Callable[[], None]


def attend(
    spec: Spec,
    *,
    window: int | None = None,
    splits: int | None = None,
    sharper: float = 1,
    cancelling: bool = False,
) -> None:
    """One decoding step as the backend launches it, against float64, its scores `sharper` times as far apart.
    `cancelling`: errors are seen beside the sum of absolute products: with gains a few tokens may cancel each other.
    """
    batch, scale = build(spec), sharper * spec.head_dim**-0.5
    out, lse = backend.Step(*batch.inputs, scale, window or 0, splits).run()
    expected, expected_lse = brute_force(batch, scale, window)
    summed = expected
    if cancelling:
        summed = brute_force(replace(batch, values=[np.abs(one) for one in batch.values]), scale, window)[0]
    check_rows((out, lse), (expected, expected_lse), spec.dtype, summed, sharper=sharper != 1)


def check_rows(found, expected, dtype, summed=None, *, sharper=False):
    """`found` (out, lse) are those expected, but for what `dtype` rounds; an error of out is seen beside the largest
    number of its row, in `summed` or in what is expected.
    """
    bound, lse_bound = TOLERANCE[dtype]
    size = np.maximum(np.abs(expected[0] if summed is None else summed).max(-1, keepdims=True), 1e-6)
    error = (np.abs(found[0].double().numpy() - expected[0]) / size).max()
    if not error <= bound:
        raise Wrong(f"out is off by {error:.1e}")
    _close("lse", found[1], expected[1], lse_bound, lse_bound if sharper else 1e-6)


def merge(variant: MergeVariant, heads: int, kv_heads: int = 1, block: int = 0) -> None:
    """Partial results made here: more than one round of them, few of many heads, whose sums are of any size, and maxima
    so far apart that the wrong one overflows.
    """
    for slots, sequences, apart in (130, 2, 1), (5, 12, 1), (260, 2, 100):
        _merge(variant, heads, kv_heads, block, slots, sequences, apart)


def _merge(variant, heads, kv_heads, block, slots, B, apart):
    """`block` of the heads of a KV head are one block's, if not 0; the last sequence has tokens in few slots."""
    own = heads // kv_heads
    block = block or own
    rows = -(-own // block) * block
    draw, D = np.random.default_rng(0), variant.head_dim
    partial = draw.standard_normal((B, kv_heads, rows, slots, D + 2))
    partial[..., D] = apart * (3 * partial[..., D] + np.linspace(0, 6, slots))  # later slots count, not only the first
    partial[..., D + 1] = 2.0 ** draw.uniform(0, 6, partial.shape[:-1])
    partial[0, ..., :: 1 + slots // 40, D + 1] = 0
    partial[-1, ..., D + 1] *= draw.random(partial.shape[1:-1]) < 0.02
    partial[-1, -1, -1, :, D + 1] = 0
    partial[0, 0, 0, :, 1] = np.nan
    partial[..., : D + 1][partial[..., D + 1] == 0] = np.nan  # what a slot without tokens holds is not to be read
    partial = partial.astype(np.float32)
    given = torch.from_numpy(partial.reshape(-1).copy())
    dtype = getattr(torch, variant.dtype)
    out, lse = torch.empty(B, heads, D, dtype=dtype), torch.empty(B, heads)
    uneven = (own, rows, block) if variant.uneven else ()
    backend.launch(
        backend.compiled(merge_kernel, variant), (heads, B), merge_block(D), array(given), slots, numbers(out),
        array(lse), uneven,
    )  # fmt: skip
    expected, expected_lse = np.zeros((B, heads, D)), np.full((B, heads), -np.inf)
    for b, head in product(range(B), range(heads)):
        row = head % own
        if row >= own // block * block:  # the last block ends with the last head
            row += rows - own
        parts = partial[b, head // own, row].astype(np.float64)
        parts = parts[parts[:, D + 1] != 0]
        if len(parts):
            top = parts[:, D].max()
            weight = np.exp2(parts[:, D] - top)
            total = weight @ parts[:, D + 1]
            expected[b, head] = weight @ parts[:, :D] / total
            expected_lse[b, head] = (top + np.log2(total)) * np.log(2)
    _close("out", out, expected, 1e-6, _ROUNDED[dtype])
    _close("lse", lse, expected_lse, 1e-5)


def _close(name, found, expected, bound, relative=1e-6):
    if not np.allclose(found.double().numpy(), expected, rtol=relative, atol=bound, equal_nan=True):
        raise Wrong(f"{name} is off")


_CODED = Spec(
    context=(65, 1030), heads=2, group=4, head_dim=64, nbits=8, subspaces=(32, 32), dtype=torch.float16,
    unused="poison",
)  # fmt: skip
_THETAS = 1.0, 0.3, 0.05, 0.02, 0.01, 0.004  # three turn fast, and the slow ones far enough to be told from 0
_TURNED = _CODED.but(heads=2, group=2, turning=_THETAS, gains=True, nbits=6, layouts=("row", "row"))
_EXACT = _CODED.but(nbits=None, layouts=("row", "row"), dtype=torch.float32, context=(0, 33, 65, 200), group=2)
_ROWS = _EXACT.but(context=(0, 1, 2), sinks=(0, 4, 1), residual=(33, 70, 0), dtype=torch.float16)
_PLAIN = _TURNED.but(dtype=torch.float32, nbits=3, context=(0, 65, 300))


def _attend(spec: Spec, window: int, **other) -> Callable[[], None]:
    """Three steps: as `spec` has it, with a window and what `other` changes, and with scores so far apart that a
    maximum that is none overflows.
    """

    def run():
        attend(spec, splits=2)
        attend(spec.but(seed=1, **other), window=window, splits=3)
        attend(spec.but(seed=2), splits=2, sharper=64)

    return run


LAUNCHED = {
    "coded": Launched("coded_kernel", _attend(_CODED, 700, page_size=48)),
    "coded with bias and gains": Launched("coded_kernel", _attend(_TURNED, 700, page_size=48, turning=_THETAS[1:5])),
    "exact": Launched("exact_kernel", _attend(_EXACT, 37, page_size=40)),
    "rows": Launched("rows_kernel", _attend(_ROWS, 37)),
    "plain": Launched("plain_kernel", _attend(_PLAIN, 170, page_size=40, turning=_THETAS[1:5])),
    "merge": Launched("merge_kernel", lambda: merge(MergeVariant(192), 1)),
    "merge of uneven groups": Launched(
        "merge_kernel", lambda: merge(MergeVariant(64, "bfloat16", uneven=True), 6, kv_heads=2, block=2)
    ),
    "encode": Launched("encode_kernel", lambda: check_encoded(Encoded(subspaces=10, pages=8))),
}
