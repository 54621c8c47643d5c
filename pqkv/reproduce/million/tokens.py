"""Part g of `million`: time per token of a whole model, encoding and flushes charged, against exact caches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from pqkv.record import Record
from pqkv.reproduce.million.speed import CLAIMED, cell_of, comparable, is_claimed, measured, parsed, where_of
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import Row
from pqkv.speed.end_to_end import end_to_end


def part_g(request: Request) -> Iterator[Record]:
    """Time per token of a whole model, encoding and flushes on the way (128 tokens are two pages), beside DynamicCache
    and StaticCache; 0 bits are exact pages, which a quick run leaves out. The bundled model on the CPU; on a GPU random
    weights in the shape of Llama-3.1-8B, quick the bundled model too.
    """
    small = {"lengths": (512,), "new_tokens": 66, "repeats": 1, "bits": (4.0,)}
    full = {"lengths": (512, 2048, 8192), "new_tokens": 128, "repeats": 3, "bits": (0.0, 4.0, 2.0)}
    large = {**full, "model": "llama-3.1-8b", "lengths": (4096, 32768)}
    own = small if request.quick else full
    given = [{**own, "backend": "cpu"}]
    if torch.cuda.is_available():
        on_gpu = {"backend": "cuda", "dtype": "float16", "fallback": False}
        given.append({**(small if request.quick else large), **on_gpu})
    for values in given:
        yield from end_to_end(
            parsed({"end_to_end": True, **values}), request.store, force=request.force, report=request.report
        )


def finding_g(records: Sequence[Record]) -> list[Row]:
    """Speed-up over the cache that grows by torch.cat, which is what the report compares with and so is judged, and
    over the strongest: of that, StaticCache and exact pages of the same length (those have a record of their own).
    """
    rows = []
    found = comparable(records, kind="end-to-end")
    caches = {cell_of(r): {row["name"]: row["tpot_ms"] for row in r.tables["caches"]} for r in found}
    for record in sorted(found, key=cell_of):
        c, cell = record.config, cell_of(record)
        own, exact = caches[cell]["pqkv"], {n: caches[cell][n] for n in ("DynamicCache", "StaticCache")}
        pages = caches.get((cell[0], 0, *cell[2:]))
        if c["bits"] and pages is not None:
            exact["exact pages"] = pages["pqkv"]
        strong = min(exact, key=lambda name: exact[name])
        grown = exact["DynamicCache"] / own
        said = (
            f"{own:.2f} ms a token, {grown:.2f}x over a cache grown by torch.cat ({exact['DynamicCache']:.2f} ms), "
            f"{exact[strong] / own:.2f}x over the strongest, {strong} ({exact[strong]:.2f} ms); encoding and flushes "
            "charged"
        )
        if c["context"] < CLAIMED[0]:
            said += "; nothing was claimed of so short contexts"
        holds = round(grown, 2) >= 2.09 if c["device"] == "cuda" and is_claimed(record) else None
        claim = "2.09x at 32K, encoding not charged"
        rows.append(measured(f"time per token, {where_of(cell)}", claim, said, holds, c["device"]))
    return rows
