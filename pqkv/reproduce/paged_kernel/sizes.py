"""Parts d and e: bytes of indices, of copies and of reads; a prefill by index beside one by pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from pqkv.kernels import PagedSide, PagedTokens, choose_backend
from pqkv.kernels.indexed import indexed_attention, indices_of
from pqkv.kernels.reported.memory import DeviceMemory, Transfers
from pqkv.record import Record
from pqkv.report.drawing import Plot
from pqkv.reproduce.devices import machines, measured_on
from pqkv.reproduce.paged_kernel.settings import Settings
from pqkv.reproduce.parts import part_cell
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import NO_CLAIM, NOT_HERE, Row, claim, lines, newest, of_kind, plot, table_rows
from pqkv.speed.timing import Contestant, race

BYTES, RACE = "paged-kernel-bytes", "paged-kernel-race"
INDEXED, PAGED, SDPA = "by index, a row and head at a time", "by pages", "sdpa, contiguous"
_LDS = 64 << 10  # of a workgroup of RDNA3
# the report's table of files, and what it says of them elsewhere: `pub mod` in line 13, the tests in lines 62 to 65
FILES = {"paged_kernel.rs": 548, "paged_tests.rs": 402, "mod.rs": 1 + 4}
SAID = 952


def part_d(settings: Settings, request: Request) -> Iterator[Record]:
    """Bytes that are counted."""
    shape = settings.model_dump(include={"block_size", "pools", "heads", "seed"})
    yield part_cell(BYTES, {"part": "d", **shape}, partial(_bytes, settings), request)


def part_e(settings: Settings, request: Request) -> Iterator[Record]:
    """A prefill at each length."""
    for device, machine in machines():
        for tokens in settings.raced:
            request.report(f"e: {tokens} tokens, {device}", 0, 1)
            shape = settings.model_dump(include={"block_size", "race_heads", "race_head_dim", "repeats", "seed"})
            config = {"part": "e", "tokens": tokens, "device": device, "machine": machine, **shape}
            yield part_cell(RACE, config, partial(_raced, settings, tokens, device), request)


def _pages(settings: Settings, tokens: int, heads: int, head_dim: int, device: str) -> PagedTokens:
    """One sequence in pages in any order."""
    P, generator = settings.block_size, torch.Generator().manual_seed(settings.seed)
    count = -(-tokens // P)
    keys, values = (PagedSide(torch.randn(count, heads, P, head_dim, generator=generator).to(device)) for _ in range(2))
    table = torch.randperm(count, generator=generator).int()[None].to(device)
    return PagedTokens(keys, values, table, torch.tensor([tokens], dtype=torch.int32, device=device), P)


def _bytes(settings: Settings) -> dict[str, Any]:
    """Indices of a token against a table's entries; what copying all blocks to the host moves."""
    P, tokens = settings.block_size, 3 * settings.block_size
    pages = _pages(settings, tokens, 1, 8, "cpu")
    indices, offsets = indices_of(pages, 0)
    rows = [{"what": "indices", "tokens": tokens, "bytes": indices.nbytes + offsets.nbytes},
            {"what": "table", "tokens": tokens, "bytes": pages.page_table.nbytes}]  # fmt: skip
    for blocks in settings.pools:
        memory = DeviceMemory()
        pool = [memory.empty(P, settings.heads, 64) for _ in range(2 * blocks)]
        with Transfers(memory):
            for buffer in pool:
                torch.empty(buffer.shape).copy_(buffer)
        rows.append({"what": "copies", "blocks": blocks, "tokens": tokens, "copies": memory.traffic.down_copies,
                     "bytes": memory.traffic.down_bytes})  # fmt: skip
    return {"tables": {"bytes": rows}}


def _raced(settings: Settings, tokens: int, device: str) -> dict[str, Any]:
    H, D = settings.race_heads, settings.race_head_dim
    pages = _pages(settings, tokens, H, D, device)
    query = torch.randn(1, tokens, H, D, generator=torch.Generator().manual_seed(settings.seed)).to(device)
    blocks, offsets = indices_of(pages, 0)
    slots = pages.keys.pages.transpose(1, 2), pages.values.pages.transpose(1, 2)
    chosen = choose_backend("auto", torch.device(device), torch.float32)
    keys, values = (
        side.pages[pages.page_table[0].long()].transpose(0, 1).flatten(1, 2)[None, :, :tokens].contiguous()
        for side in (pages.keys, pages.values)
    )
    rows = query.transpose(1, 2).contiguous()
    calls: dict[str, Callable[[], Any]] = {
        INDEXED: partial(indexed_attention, query[0], slots[0], slots[1], blocks, offsets, scale=D**-0.5),
        PAGED: partial(chosen.run, query, pages, None, None, scale=D**-0.5),
        SDPA: partial(torch.nn.functional.scaled_dot_product_attention, rows, keys, values, is_causal=True),
    }
    results = [calls[INDEXED]()[0], calls[PAGED]()[0][0], calls[SDPA]()[0].transpose(0, 1)]
    apart = max(float((found - results[0]).abs().max()) for found in results[1:])
    timings = race(
        [Contestant(name, [call], capture=False) for name, call in calls.items()], settings.repeats, always=list(calls),
        device=torch.device(device),
    )  # fmt: skip
    return {"tables": {"race": [
        {"way": name, "median_ms": timing.median, "apart": apart} for name, timing in timings.items()
    ]}}  # fmt: skip


def race_rows(records: Sequence[Record]) -> list[Row]:
    """Milliseconds of a prefill."""
    kept = ("machine", "device", "tokens", "way", "median_ms", "apart")
    rows = [{key: row[key] for key in kept} for row in table_rows(records, RACE, "race")]
    return newest(rows, "machine", "device", "tokens", "way")


def finding_d(records: Sequence[Record]) -> list[Row]:
    """Bytes counted, and bytes, lines and limits derived."""
    found = of_kind(records, BYTES)
    result = []
    if found:
        rows, P = found[-1].tables["bytes"], found[-1].config["block_size"]
        own, table = (next(row for row in rows if row["what"] == what) for what in ("indices", "table"))
        result.append(claim(
            "an index and an offset for every position", "the same mapping as the page table",
            f"{own['bytes'] / own['tokens']:g} bytes a token where a table of blocks of {P} takes "
            f"{table['bytes'] / table['tokens']:g}", NO_CLAIM))  # fmt: skip
        copies = [row for row in rows if row["what"] == "copies"]
        said = "; ".join(f"{row['blocks']:,} blocks {row['bytes'] / 2**20:,.0f} MiB" for row in copies)
        tokens = copies[0]["tokens"]
        result.append(claim(
            "the fallback copies all blocks to the host", "copies all blocks to host",
            f"a call moves what the pool holds, not the sequence: {said}, for {tokens} tokens in {-(-tokens // P)} "
            "blocks", len({row["bytes"] / row["blocks"] for row in copies}) == 1))  # fmt: skip
    L, H, D = 2048, 32, 128
    reads = 2 * L * L * H * D * 2
    result += [
        claim("a block for each (position, head)", "each block processes one (position, head) pair",
              f"{L:,} x {H} rows each read all keys and values: {reads / 1e9:.1f} GB a layer in fp16 of {D} channels, "
              f"{reads / 2e9:.1f} with a causal mask; tiles of rows divide it; derived", NO_CLAIM),
        claim("scores in shared memory", "__shared__ for attention score reduction",
              f"a row of float32 scores fills the {_LDS >> 10} KiB of a workgroup at {_LDS // 4:,} tokens; derived",
              NO_CLAIM),
        claim("the signature serves decoding and MQA", "q, k_blocks, v_blocks, indices, offsets, output, seq_len, "
              "num_heads, head_dim, block_size",
              "no KV heads, no scale, no mask, no batch, no length of the query apart from the cache's", False),
        claim("blocks as T**", "const T** k_blocks",
              "one more load that the next one waits for, a token and head; derived", NO_CLAIM),
        claim("a complete kernel template", "template<typename T>",
              "HIPRTC needs a name expression for an instance of a template; no HIP compiler here", NOT_HERE),
        claim("complete implementation", "COMPLETE",
              "compiling and launching are phase 3b of the report's own next steps", False),
        claim("lines of the files", f"{SAID} in all, mod.rs 2",
              f"mod.rs {FILES['mod.rs']} by its own line numbers, {sum(FILES.values())} in all", False),
        claim("ready to integrate with KvCache", "ready", "the code is not in the report", None),
        claim("tests were written first", "TDD", "the report shows no history", None),
    ]  # fmt: skip
    return result


def finding_e(records: Sequence[Record]) -> list[Row]:
    """A row and head at a time against tiles."""
    rows, result = race_rows(records), []
    for machine in dict.fromkeys(row["machine"] for row in rows):
        own = [row for row in rows if row["machine"] == machine]
        most = max(row["tokens"] for row in own)
        at = {row["way"]: row["median_ms"] for row in own if row["tokens"] == most}
        said = (
            f"{at[INDEXED] / at[PAGED]:.1f} times as long as pages in tiles and {at[INDEXED] / at[SDPA]:.1f} times "
            f"torch's on contiguous keys, {most:,} tokens, {machine}; all agree within "
            f"{max(row['apart'] for row in own):.1e}"
        )
        row = claim(
            "one row and head at a time, before tiles", "FlashAttention-style tiling is future work", said, None
        )
        result.append(measured_on(own[0]["device"], row))
    return result


def plots_e(records: Sequence[Record]) -> list[Plot]:
    """Milliseconds against tokens."""
    drawn = lines(race_rows(records), lambda row: row["machine"], "way", "tokens", "median_ms")
    return [
        plot("e_prefill", "A prefill of one layer", ("tokens", "milliseconds"), drawn, "way", log_x=True, log_y=True)
    ]
