"""Parts a, b and c: what the report's six tests see, what its validation lets through, and its reductions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from pqkv.errors import KernelError
from pqkv.kernels.indexed import indexed_attention
from pqkv.record import Record
from pqkv.reproduce.paged_kernel.emulated import FAULTS, Case, paged_attention, reduced, right
from pqkv.reproduce.paged_kernel.settings import Settings
from pqkv.reproduce.parts import part_cell
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import Row, claim, newest, of_kind, table_rows

MATRIX, VALIDATION, WAVES = "paged-kernel-tests", "paged-kernel-validation", "paged-kernel-waves"
TOLERANCE = 2e-5  # of a row's largest element, against float64
# what the report calls its tests, without the one that creates an object and the one of mismatched lengths, which
# compute nothing
TESTS = ("single_block", "multiple_blocks", "mqa", "block_boundary")
BLIND = ("kernel_compilation", "invalid_input")


def part_a(settings: Settings, request: Request) -> Iterator[Record]:
    """Every test with every fault."""
    for head_dim in settings.head_dims:
        request.report(f"a: heads of {head_dim}", 0, 1)
        shape = settings.model_dump(include={"block_size", "heads", "kv_heads", "seed"})
        config = {"part": "a", "head_dim": head_dim, "faults": list(FAULTS), **shape}
        yield part_cell(MATRIX, config, partial(_matrix, settings, head_dim), request)


def part_b(settings: Settings, request: Request) -> Iterator[Record]:
    """Inputs that name no slot."""
    config = {"part": "b", **settings.model_dump(include={"block_size", "seed"})}
    yield part_cell(VALIDATION, config, partial(_validated, settings), request)


def part_c(settings: Settings, request: Request) -> Iterator[Record]:
    """Reductions of blocks of one to eight waves."""
    config = {"part": "c", "waves": list(settings.waves), "seed": settings.seed}
    yield part_cell(WAVES, config, partial(_reductions, settings), request)


def cases_of(settings: Settings, head_dim: int) -> dict[str, list[Case]]:
    """What each test computes on; slots that no token has hold NaN."""
    P = settings.block_size
    several = np.array([2, 0, 1])
    made = partial(_case, settings, head_dim)
    return {
        "single_block": [made(np.array([0]), P, settings.heads)],
        "multiple_blocks": [made(several, 3 * P, settings.heads)],
        "mqa": [made(np.array([0]), P, settings.kv_heads)],
        "block_boundary": [made(np.arange(-(-n // P)), n, settings.heads) for n in (P - 1, P, P + 1)],
    }


def _case(settings: Settings, head_dim: int, order: np.ndarray[Any, Any], tokens: int, kv_heads: int) -> Case:
    generator = np.random.default_rng(settings.seed)
    P, places = settings.block_size, np.arange(tokens)
    blocks, offsets = order[places // P].astype(np.int64), places % P
    sides = []
    for _ in range(2):
        side = np.full((len(order) + 1, P, kv_heads, head_dim), np.nan, np.float32)
        side[blocks, offsets] = generator.standard_normal((tokens, kv_heads, head_dim))
        sides.append(side)
    query = generator.standard_normal((tokens, settings.heads, head_dim)).astype(np.float32)
    keys, values = sides
    return Case(query, keys, values, blocks, offsets)


def _matrix(settings: Settings, head_dim: int) -> dict[str, Any]:
    rows = []
    for test, cases in cases_of(settings, head_dim).items():
        for fault in FAULTS:
            errors = []
            for case in cases:
                exact, found = right(case), paged_attention(case, fault).astype(np.float64)
                size = np.abs(exact).max(-1)
                errors.append(float((np.abs(found - exact).max(-1) / size).max()))
            finite = bool(np.isfinite(errors).all())
            worst = max(errors) if finite else None
            rows.append({"test": test, "fault": fault, "error": worst, "finite": finite,
                         "seen": worst is None or worst > TOLERANCE})  # fmt: skip
    rows += [
        {"test": test, "fault": fault, "error": None, "finite": True, "seen": False}
        for test in BLIND for fault in FAULTS
    ]  # fmt: skip
    return {"tables": {"tests": rows}}


def _validated(settings: Settings) -> dict[str, Any]:
    """What `indexed_attention` says of each bad input, and whether its lengths alone give it away."""
    P, blocks, tokens = settings.block_size, 4, 2 * settings.block_size
    generator = torch.Generator().manual_seed(settings.seed)
    keys, values = (torch.randn(blocks, P, 2, 16, generator=generator) for _ in range(2))
    query = torch.randn(tokens, 4, 16, generator=generator)
    places = torch.arange(tokens)
    indices, offsets = (places // P).int(), (places % P).int()
    live = torch.tensor([True, True, False, False])

    def changed(which: torch.Tensor, value: int) -> torch.Tensor:
        other = which.clone()
        other[3] = value
        return other

    inputs = {
        "fewer indices than tokens": (indices[:-1], offsets),
        "index past the pool": (changed(indices, blocks), offsets),
        "negative index": (changed(indices, -1), offsets),
        "offset past the block": (indices, changed(offsets, P)),
        "negative offset": (indices, changed(offsets, -1)),
        "index of a freed block": (changed(indices, 2), offsets),
        "sound": (indices, offsets),
    }
    rows = []
    for name, (which, where) in inputs.items():
        told = ""
        try:
            indexed_attention(query, keys, values, which, where, scale=0.25, live=live)
        except KernelError as error:
            told = str(error)
        rows.append({"input": name, "lengths_fit": len(which) == len(where) == tokens, "told": told})
    return {"tables": {"validation": rows}}


def _reductions(settings: Settings) -> dict[str, Any]:
    generator, rows = np.random.default_rng(settings.seed), []
    for wave in settings.waves:
        for taken in settings.waves:
            for threads in (64, 128, 256):
                values = np.exp(3 * generator.standard_normal(threads)).astype(np.float32)  # few hold most of it
                for what, exact in (("sum", float(values.sum(dtype=np.float64))), ("maximum", float(values.max()))):
                    found = reduced(values, wave, taken, largest=what == "maximum")
                    rows.append({"device_wave": wave, "taken_wave": taken, "threads": threads, "reduction": what,
                                 "times_right": float(found[0]) / exact})  # fmt: skip
    return {"tables": {"waves": rows}}


def test_rows(records: Sequence[Record]) -> list[Row]:
    """The matrix, by head_dim."""
    kept = ("head_dim", "test", "fault", "error", "finite", "seen")
    rows = [{key: row[key] for key in kept} for row in table_rows(records, MATRIX, "tests")]
    return newest(rows, "head_dim", "test", "fault")


def wave_rows(records: Sequence[Record]) -> list[Row]:
    """Reductions by what the device has and what is taken."""
    kept = ("device_wave", "taken_wave", "threads", "reduction", "times_right")
    rows = [{key: row[key] for key in kept} for row in table_rows(records, WAVES, "waves")]
    return newest(rows, *kept[:-1])


def finding_a(records: Sequence[Record]) -> list[Row]:
    """Which faults the six tests see, held to float64; and what that says of the fallback as an oracle."""
    rows = test_rows(records)
    if not rows:
        return []
    faults = [fault for fault in FAULTS if fault != "none"]
    seen = {fault: sorted({row["test"] for row in rows if row["fault"] == fault and row["seen"]}) for fault in FAULTS}
    unseen = [fault for fault in faults if not seen[fault]]
    worst = max(row["error"] for row in rows if row["fault"] == "none" and row["error"] is not None)
    raw = [row for row in rows if row["fault"] == "no normalisation"]
    low = min(row["error"] for row in raw if row["error"] is not None)
    blind = [fault for fault in faults
             if all(row["finite"] for row in rows if row["fault"] == fault)]  # fmt: skip
    result = [
        claim("the tests pass a sound kernel, held to float64", "6 passed",
              f"errors at most {worst:.1e} of a row's largest element", worst <= TOLERANCE),
        claim("six comprehensive tests", "comprehensive",
              f"held to float64 they see {len(faults) - len(unseen)} of {len(faults)} faults; none sees "
              f"{', '.join(unseen) or 'nothing else'}", not unseen),
        claim("the same, if they look at shapes and finite numbers only", "the assertions are not in the report",
              f"they see {len(faults) - len(blind)} of {len(faults)}, by poisoned slots: "
              f"{', '.join(f for f in faults if f not in blind) or 'none'}", len(blind) == 0),
        claim("the CPU fallback tests the GPU kernel", "test GPU kernel output against CPU fallback",
              f"not full softmax: without its sum a row errs by {low:.2g} of its largest element at least, so a "
              "right kernel would fail", low <= TOLERANCE),
        claim("test_paged_attention_kernel_compilation verifies the kernel", "verifies kernel creation",
              "it compiles nothing: the kernel is a string until phase 3b; sees no fault", False),
    ]  # fmt: skip
    result.append(
        claim("test_paged_attention_mqa is about multi-query attention", "MQA: 8 query heads, 2 KV heads",
              "four query heads share a KV head: grouped-query attention; of MQA's one KV head there is no test", False)
    )  # fmt: skip
    result += [
        claim(f"a test sees: {fault}", "6 passed", f"seen by {', '.join(seen[fault]) or 'no test'}", bool(seen[fault]))
        for fault in faults
    ]
    return result


def finding_b(records: Sequence[Record]) -> list[Row]:
    """What a check of lengths lets through."""
    found = of_kind(records, VALIDATION)
    if not found:
        return []
    rows = [row for row in found[-1].tables["validation"] if row["input"] != "sound"]
    through = [row["input"] for row in rows if row["lengths_fit"]]
    refused = [row for row in rows if row["told"]]
    return [
        claim("comprehensive input validation", "mismatch of block_indices and seq_len",
              f"lengths alone let through {len(through)} of {len(rows)}: {', '.join(through)}", not through),
        claim("pqkv's indexed attention refuses each by name", "ours",
              f"{len(refused)} of {len(rows)}: {'; '.join(row['told'] for row in refused)}", len(refused) == len(rows)),
    ]  # fmt: skip


def finding_c(records: Sequence[Record]) -> list[Row]:
    """Wave 64 on devices of both widths."""
    rows = wave_rows(records)
    result = []
    for wave, taken in dict.fromkeys((row["device_wave"], row["taken_wave"]) for row in rows):
        own = [row for row in rows if (row["device_wave"], row["taken_wave"]) == (wave, taken)]
        sums = [row["times_right"] for row in own if row["reduction"] == "sum"]
        tops = [row["times_right"] for row in own if row["reduction"] == "maximum"]
        held = all(abs(x - 1) < TOLERANCE for x in (*sums, *tops))
        said = f"sums {min(sums):.2f} to {max(sums):.2f} of what is right, maxima {min(tops):.2f} to {max(tops):.2f}"
        device = " (an RX 7900 XT's default)" if wave == 32 else ""
        result.append(
            claim(f"a reduction for waves of {taken} on a device of {wave}{device}", "wavefront size 64", said, held)
        )
    return result
