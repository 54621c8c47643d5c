"""Part b: what the report's listings do, on scores that are made up: blocks of 32 threads, as a comment of them has it,
the repaired reduction on memory that nobody cleared, and the bytes of the repaired buffer of scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from pqkv.kernels.faults import Fault
from pqkv.kernels.faults.emulated import naive_row
from pqkv.record import Record
from pqkv.reproduce.parts import part_cell
from pqkv.reproduce.quality_degradation.reduction import NEUTRAL, WARP, block_reduced
from pqkv.reproduce.quality_degradation.settings import Settings
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import Row, claim, newest, table_rows

BLOCKS, REDUCED = "degradation-blocks", "degradation-reduction"
TOLERANCE = 2e-5  # of a row's largest element, against float64: ten times what a sound row of float32 is off by
_CONTEXTS = (1, 31, 32, 33, 64, 129, 700)
_THREADS = (32, 64, 128, 256, 512, 1024)
# what block_max held before, over the largest score: floats left by another block, and what no float should be
GARBAGE = {
    "the largest - 50": -50.0, "the largest + 20": 20.0, "the largest + 80": 80.0, "the largest + 110": 110.0,
    "infinity": np.inf, "NaN": np.nan,
}  # fmt: skip
SHARED_BYTES = {"without opting in": 48 << 10, "opted in on an H100": 227 << 10}  # of a block, CUDA's own limits
_HEAD_DIM, _POSITIONS = 128, 131_072  # of Llama 3.1 8B: the report's model is a Llama that it does not name
_FLOAT = 4


def part_b(settings: Settings, request: Request) -> Iterator[Record]:
    """Blocks of one to four warps, and the repaired reduction."""
    request.report("b: blocks of threads", 0, 1)
    shape = {"part": "b", "seed": settings.seed}
    blocks = {**shape, "contexts": list(_CONTEXTS), "blocks": [32, 64, 128]}
    yield part_cell(BLOCKS, blocks, partial(_by_block, settings.seed), request)
    reduced = {**shape, "threads": list(_THREADS), "garbage": list(GARBAGE)}
    yield part_cell(REDUCED, reduced, partial(_reductions, settings.seed), request)


def shared_bytes(context: int, head_dim: int) -> int:
    """Dynamic shared memory that the repaired launch asks for: (head_dim + max_context) * size_of::<f32>()."""
    return (head_dim + context) * _FLOAT


def most_tokens(limit: int, head_dim: int, static: int = 0) -> int:
    """The longest context whose dynamic shared memory fits into `limit` bytes beside `static` ones."""
    return (limit - static) // _FLOAT - head_dim


def _by_block(seed: int) -> dict[str, Any]:
    """The emulated kernel with the reductions of issues 2 and 4, each alone, against float64."""
    generator, rows = np.random.default_rng(seed), []
    for context in _CONTEXTS:
        query, keys, values = (2 * generator.standard_normal(s) for s in ((4, 64), (2, context, 64), (2, context, 64)))
        scores = np.einsum("hgd,htd->hgt", query.reshape(2, 2, 64), keys) / 8
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        exact = (weights @ values / weights.sum(-1, keepdims=True)).reshape(4, 64)
        given = [torch.from_numpy(x).float() for x in (query / 8 * np.log2(np.e), keys, values)]
        for block in (32, 64, 128):
            for name, fault in (
                ("maximum", Fault("", "", block, own_warp_max=True)),
                ("sum", Fault("", "", block, own_warp_sum=True)),
            ):
                found = naive_row(given[0], given[1], given[2], fault)[0].double().numpy()
                error = float((np.abs(found - exact).max(-1) / np.abs(exact).max(-1)).max())
                rows.append({"context": context, "block": block, "reduction": name, **_judged(error)})
    return {"tables": {"blocks": rows}}


def _reductions(seed: int) -> dict[str, Any]:
    """A softmax over one score a thread, its maximum or its sum taken by the listing."""
    generator, rows = np.random.default_rng(seed), []
    for threads in _THREADS:
        scores = (4 * generator.standard_normal(threads)).astype(np.float32)
        exact = np.exp(scores.astype(np.float64) - float(scores.max()))
        exact /= exact.sum()
        for reduction, neutral in NEUTRAL.items():
            for name, above in {**GARBAGE, "cleared": None}.items():
                held = neutral if above is None else float(scores.max()) + above
                memory = np.full(WARP, held, np.float32)
                with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                    found = _softmax(scores, memory, reduction).astype(np.float64)
                    error = float(np.abs(found - exact).max() / exact.max())
                rows.append({"threads": threads, "reduction": reduction, "held": name, **_judged(error)})
    return {"tables": {"reduction": rows}}


def _softmax(scores: np.ndarray, memory: np.ndarray, reduction: str) -> np.ndarray:
    """In float32, with one of its two reductions as listed and the other one right."""
    top = block_reduced(scores, memory, "maximum") if reduction == "maximum" else scores.max()
    weights = np.exp(scores - top)
    return weights / (block_reduced(weights, memory, "sum") if reduction == "sum" else weights.sum())


def _judged(error: float) -> dict[str, Any]:
    finite = bool(np.isfinite(error))
    return {"error": error if finite else None, "wrong": not finite or error > TOLERANCE}


def block_rows(records: Sequence[Record]) -> list[Row]:
    """Errors of the emulated kernel by context, block and reduction."""
    kept = ("context", "block", "reduction", "error", "wrong")
    return newest([{key: row[key] for key in kept} for row in table_rows(records, BLOCKS, "blocks")], *kept[:3])


def reduction_rows(records: Sequence[Record]) -> list[Row]:
    """Errors of a softmax by threads of the block, reduction, and what the memory held."""
    kept = ("threads", "reduction", "held", "error", "wrong")
    return newest([{key: row[key] for key in kept} for row in table_rows(records, REDUCED, "reduction")], *kept[:3])


def finding_b(records: Sequence[Record]) -> list[Row]:
    """The comment on blocks, the repaired reductions, the repaired buffer."""
    return [*_blocks(block_rows(records)), *_repaired(reduction_rows(records)), *_buffer(bool(block_rows(records)))]


def _blocks(rows: Sequence[Row]) -> Iterator[Row]:
    if not rows:
        return
    one, more = ([row for row in rows if (row["block"] == 32) is single] for single in (True, False))
    wrong = [row for row in one if row["wrong"]]
    worst = max(row["error"] or 0 for row in one)
    other = {
        name: sorted({row["context"] for row in more if row["reduction"] == name and not row["wrong"]})
        for name in ("maximum", "sum")
    }
    spared = ", ".join(map(str, other["maximum"])) or "none"
    said = (
        f"{len(wrong)} of {len(one)} cases wrong at contexts to {max(_CONTEXTS)}, errors at most {worst:.1e} of a "
        f"row's largest element; in blocks of 64 and 128, {sum(row['wrong'] for row in more)} of {len(more)}, the "
        f"maximum right at contexts {spared} alone, the sum at {', '.join(map(str, other['sum'])) or 'none'}"
    )
    yield claim("issues 2 and 4 in blocks of 32 threads", "a defect, of a listing with blockDim.x = 32", said,
                bool(wrong))  # fmt: skip


def _repaired(rows: Sequence[Row]) -> Iterator[Row]:
    for reduction in dict.fromkeys(row["reduction"] for row in rows):
        own = [row for row in rows if row["reduction"] == reduction and row["held"] != "cleared"]
        wrong = [row for row in own if row["wrong"]]
        harmless = [name for name in GARBAGE if not any(row["wrong"] for row in own if row["held"] == name)]
        sound = [f"{n:,}" for n in sorted({row["threads"] for row in own} - {row["threads"] for row in wrong})]
        where = f", nor if the memory held {', '.join(harmless)}" if harmless else ", whatever the memory held"
        said = (
            f"lanes past the block's warps read what nobody wrote: wrong in {len(wrong)} of {len(own)} cases; never in "
            f"blocks of {', '.join(sound) or 'any'} threads{where}"
        )
        yield claim(f"the repaired block-level {reduction} is right", "two-step reduction, warp then block", said,
                    not wrong)  # fmt: skip
    cleared = [row for row in rows if row["held"] == "cleared"]
    if cleared:
        yield claim("with block_max cleared before it, it is", "not in the report",
                    f"wrong in {sum(row['wrong'] for row in cleared)} of {len(cleared)} cases",
                    not any(row["wrong"] for row in cleared))  # fmt: skip


def _buffer(asked: bool) -> Iterator[Row]:
    """Derived from the formula alone; stands beside what was measured."""
    if not asked:
        return
    free, opted = (most_tokens(limit, _HEAD_DIM) for limit in SHARED_BYTES.values())
    beside = most_tokens(SHARED_BYTES["without opting in"], _HEAD_DIM, WARP * _FLOAT)
    said = (
        f"heads of {_HEAD_DIM}: {free:,} tokens in the {SHARED_BYTES['without opting in'] >> 10} KiB of a block that "
        f"does not opt in ({beside:,} beside block_max[32]), {opted:,} in the "
        f"{SHARED_BYTES['opted in on an H100'] >> 10} KiB that one of an H100 may opt in to; past that it cannot be "
        f"launched, and Llama 3.1 has {_POSITIONS:,} positions; derived"
    )
    yield claim("a buffer as long as the longest context mends the overflow", "(head_dim + max_context) * 4 bytes",
                said, opted >= _POSITIONS)  # fmt: skip
