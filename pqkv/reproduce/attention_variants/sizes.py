"""Part b: bytes of scores and of caches, and the lesson's listings on tokens that carry their number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from pqkv.record import Record
from pqkv.reproduce.attention_variants.listings import UNWRITTEN, compressed, scaling_factor, seen_in_window, shifted
from pqkv.reproduce.attention_variants.settings import Settings
from pqkv.reproduce.parts import part_cell
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import NO_CLAIM, Row, claim, of_kind

BYTES, LISTINGS = "attention-bytes", "attention-listings"
_TOKENS, _SCORED = 4096, 2048
_MIB = 2**20
_WINDOW = {"head": 1000, "new": 100, "window": 1024}  # of the shift, as the lesson's window of 1,024
_MISTRAL = {"layers": 32, "kv_heads": 8, "head_dim": 128, "window": 4096}  # which the lesson names


def part_b(settings: Settings, request: Request) -> Iterator[Record]:
    """Counted on tensors without memory; and the listings."""
    shape = settings.model_dump(include={"layers", "heads", "kv_heads", "head_dim", "seed"})
    yield part_cell(BYTES, {"part": "b", **shape}, partial(_bytes, settings), request)
    yield part_cell(LISTINGS, {"part": "b", "seed": settings.seed}, _listings, request)


def _bytes(settings: Settings) -> dict[str, Any]:
    s, meta = settings, torch.device("meta")
    rows = [
        {"what": "scores of a head", "bytes": torch.empty(_SCORED, _SCORED, device=meta).nbytes},
        {"what": "scores of a layer", "bytes": torch.empty(s.heads, _SCORED, _SCORED, device=meta).nbytes},
        {"what": "scores of a decoding step", "bytes": torch.empty(s.heads, 1, _SCORED, device=meta).nbytes},
    ]
    for kv_heads in s.kv_heads:
        side = torch.empty(s.layers, kv_heads, _TOKENS, s.head_dim, dtype=torch.float16, device=meta)
        rows.append({"what": "cache", "kv_heads": kv_heads, "bytes": 2 * side.nbytes})
    m = _MISTRAL
    row = torch.empty(m["layers"], m["kv_heads"], m["window"] - 1, m["head_dim"], dtype=torch.float16, device=meta)
    rows.append({"what": "a shift of a full window", "bytes": 2 * row.nbytes})
    return {"tables": {"bytes": rows}}


def _listings() -> dict[str, Any]:
    rows, head = shifted(**_WINDOW)
    moved = rows[:head]
    try:
        shifted(0, 3000, _WINDOW["window"])
        refused = ""
    except ValueError as error:
        refused = str(error)
    total = _WINDOW["head"] + _WINDOW["new"]
    window = {
        "seen": seen_in_window(476, 1500), "right": 1024, "head": head, "right_head": min(total, _WINDOW["window"]),
        "moved": len(moved), "never_written": int((moved == UNWRITTEN).sum()),
        "kept": int((moved != UNWRITTEN).sum()), "empty": refused,
    }  # fmt: skip
    trained, dim, scale = 2048, 128, 2.0
    factors = {str(p): scaling_factor(p, 1e4, scale, trained, dim) for p in (2047, 2048, 2049, 4096)}
    # the same pair at the same distance, before and behind the trained length: channel pair i of frequency f is turned
    # by p f factor(p)
    frequency = 1e4 ** (-2 * np.arange(dim // 2) / dim)
    places = ((100, 0), (2148, 2048), (4096, 3996))
    turns = [[p * scaling_factor(p, 1e4, scale, trained, dim) * frequency for p in pair] for pair in places]
    angles = [float(np.abs((a - b) - 100 * frequency).max()) for a, b in turns]
    bases = scaling_factor(4096, 1e4, scale, trained, dim) == scaling_factor(4096, 5e5, scale, trained, dim)
    chosen = compressed(np.arange(5), np.array([0.1, 0.5, 0.2, 0.9, 0.3]), 8)
    return {"tables": {
        "window": [window],
        "factor": [{"factors": factors, "angles": angles, "base_ignored": bases}],
        "compressed": [{"asked": 8, "of": 5, "kept": chosen.tolist()}],
    }}  # fmt: skip


def finding_b(records: Sequence[Record]) -> list[Row]:
    """What the bytes come to, and what the listings do."""
    result: list[Row] = []
    for record in of_kind(records, BYTES)[-1:]:
        result += _of_bytes(record)
    for record in of_kind(records, LISTINGS)[-1:]:
        result += _of_listings(record)
    return result


def _of_bytes(record: Record) -> list[Row]:
    rows, c = record.tables["bytes"], record.config
    sizes = {row["what"]: row["bytes"] for row in rows if row["what"] != "cache"}
    caches = {row["kv_heads"]: row["bytes"] for row in rows if row["what"] == "cache"}
    all_heads = caches[c["heads"]]
    saved = {kv_heads: 1 - nbytes / all_heads for kv_heads, nbytes in caches.items()}
    return [
        claim("16 MB of scores a layer at 2,048 tokens, 512 MB of a model", "16 MB x 32 layers = 512 MB",
              f"{sizes['scores of a head'] / _MIB:.0f} MiB are one head's; a layer of {c['heads']} heads takes "
              f"{sizes['scores of a layer'] / _MIB:.0f} MiB, all {c['layers']} layers at once "
              f"{c['layers'] * sizes['scores of a layer'] / 2**30:.0f} GiB; a decoding step "
              f"{sizes['scores of a decoding step'] / 2**10:.0f} KiB a layer", sizes["scores of a layer"] == 16 * _MIB),
        claim("GQA saves 75% of the cache", "75%; example: 4 of 32 heads",
              "; ".join(f"{n} KV heads {nbytes / _MIB:,.0f} MiB, {saved[n]:.1%} less" for n, nbytes in caches.items())
              + ": 75% are 8 heads, its example saves more", round(100 * saved.get(4, 0.0)) == 75),
        claim("MQA saves 97% of the cache", "97%", f"{saved[min(caches)]:.1%}", round(100 * saved[min(caches)]) == 97),
        claim("shifting a window is how a fixed cache is kept", "memmove",
              f"{sizes['a shift of a full window'] / 1e6:.0f} MB a token in Mistral's shape (window "
              f"{_MISTRAL['window']:,}, fp16); a ring moves none", NO_CLAIM),
    ]  # fmt: skip


def _of_listings(record: Record) -> list[Row]:
    (window,), (factor,), (chosen,) = (record.tables[name] for name in ("window", "factor", "compressed"))
    factors, angles = factor["factors"], factor["angles"]
    return [
        claim("a window of 1,024: token 1500 sees [476 ... 1500]", "1,024 tokens",
              f"{window['seen']:,} tokens; 1,024 begin at {1500 - window['right'] + 1}",
              window["seen"] == window["right"]),
        claim("llama_kv_cache_update_swa keeps the newest tokens", "window 1,024, 1,000 cached, 100 new",
              f"moves {window['moved']} rows of which {window['never_written']} were never written, keeps "
              f"{window['kept']}, leaves the head at {window['head']} in place of {window['right_head']:,}",
              window["never_written"] == 0 and window["head"] == window["right_head"]),
        claim("more new tokens than the window holds", "3,000 on an empty cache",
              f"{window['empty']}: a size that is unsigned there", not window["empty"]),
        claim("yarn_get_scaling_factor extends RoPE", "1 / alpha^(2 / dim)",
              f"{factors['2048']:.3f} at 2,048 and {factors['2049']:.3f} at 2,049: it jumps; base_freq is "
              f"{'ignored' if factor['base_ignored'] else 'used'}; at a distance of 100 the angle of a pair is off "
              f"by {angles[0]:.2g} before, {angles[1]:.3g} across and {angles[2]:.3g} behind the trained length: "
              "a factor a position breaks relative angles", max(angles) < 1e-6),
        claim("compress_context keeps the most important tokens", "target_len tokens",
              f"asked for {chosen['asked']} of {chosen['of']} it returns {chosen['kept']}: token 0 again and again; "
              "importance is never defined", len(set(chosen["kept"])) == chosen["asked"]),
        claim("llama_kv_cache_update_swa and yarn_get_scaling_factor are llama.cpp's", "file and line",
              "found in no other public source that could be searched", None),
        # read in the report, which announces it and ends without it
        claim("sparse attention", "announced in the goals", "never delivered", False),
    ]  # fmt: skip
