"""Parts a and b: steps of both decoders at each length, what they move and how far their output is from float64; what
they do when a step fails; and what their caches take.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pqkv.cache import Geometry, KVCache, StaticStore
from pqkv.cell import run_cell
from pqkv.config import CacheConfig
from pqkv.env import environment, git_state
from pqkv.errors import CacheError, KernelError
from pqkv.kernels.reported.decoder import ResidentLayer, RoundTripLayer
from pqkv.kernels.reported.memory import DeviceMemory, Traffic, Transfers
from pqkv.record import Record
from pqkv.report.drawing import Plot
from pqkv.reproduce.devices import devices
from pqkv.reproduce.incremental_decode.settings import Settings
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import Row, claim, lines, newest, of_kind, plot, table_rows

STEP, STATE, SIZES = "incremental-step", "incremental-state", "incremental-sizes"
TRIP, RESIDENT = "PAR-018", "PAR-020"
TOLERANCE = 2e-5  # of a row's largest element, against float64
CLAIMED_MB = 66
_MIB = 2**20


def part_a(settings: Settings, request: Request) -> Iterator[Record]:
    """A step of each decoder at each length."""
    shape = settings.model_dump(include={"layers", "heads", "kv_heads", "head_dim", "max_len", "seed"})
    for device in devices():
        for decoder in (TRIP, RESIDENT):
            for length in settings.lengths:
                request.report(f"a: {decoder}, {length} tokens, {device}", 0, 1)
                config = {"part": "a", "decoder": decoder, "length": length, "device": device, **shape}
                yield _cell(STEP, config, partial(_step, settings, decoder, length, device), request)


def part_b(settings: Settings, request: Request) -> Iterator[Record]:
    """What is left of a step that fails, and the bytes of caches."""
    shape = settings.model_dump(include={"layers", "heads", "kv_heads", "head_dim", "max_len", "seed"})
    yield _cell(STATE, {"part": "b", **shape}, partial(_states, settings), request)
    yield _cell(SIZES, {"part": "b", "lengths": list(settings.lengths), **shape}, partial(_sizes, settings), request)


def _cell(kind: str, config: dict[str, Any], measure: Any, request: Request) -> Record:  # noqa: ANN401 - see run_cell
    return run_cell(
        measure, kind=kind, config=config, seed=config["seed"], env=environment(), git=git_state(),
        store=request.store, force=request.force,
    )  # fmt: skip


def _layer(settings: Settings, decoder: str, memory: DeviceMemory) -> ResidentLayer:
    s = settings
    if decoder == TRIP:
        return RoundTripLayer(memory, s.heads, s.head_dim, s.max_len)
    return ResidentLayer(memory, s.heads, s.kv_heads, s.head_dim, s.max_len)


def _drawn(settings: Settings, layer: ResidentLayer, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A query, a key and a value of a token, on the host."""
    sizes = settings.heads, len(layer.keys), len(layer.keys)
    query, key, value = (torch.randn(n * settings.head_dim, generator=generator) for n in sizes)
    return query, key, value


def _filled(settings: Settings, decoder: str, length: int, device: str) -> tuple[DeviceMemory, ResidentLayer]:
    """A layer that holds `length` random tokens, and NaN where it holds none."""
    memory = DeviceMemory(torch.device(device))
    layer = _layer(settings, decoder, memory)
    generator = torch.Generator().manual_seed(settings.seed)
    for buffer in (layer.keys, layer.values):
        buffer.fill_(float("nan"))
        buffer[:, :length] = torch.randn(buffer[:, :length].shape, generator=generator).to(buffer.device)
    layer.length = length
    memory.traffic = Traffic()
    return memory, layer


def _step(settings: Settings, decoder: str, length: int, device: str) -> dict[str, Any]:
    memory, layer = _filled(settings, decoder, length - 1, device)
    query, key, value = _drawn(settings, layer, torch.Generator().manual_seed(settings.seed + 1))
    with Transfers(memory):
        found = layer.step(query, key, value)
    right = _attention(query, layer.keys[:, :length].cpu(), layer.values[:, :length].cpu())
    rows = found.double().view_as(right) - right
    error = float((rows.abs().amax(-1) / right.abs().amax(-1)).max())
    return {"tables": {"step": [{**asdict(memory.traffic), "error": error}]}}


def _attention(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """(Hq, D) in float64."""
    Hkv, _, D = keys.shape
    grouped = query.double().view(Hkv, -1, D)
    weights = (grouped @ keys.double().mT / D**0.5).softmax(-1)
    return (weights @ values.double()).flatten(0, 1)


def _states(settings: Settings) -> dict[str, Any]:
    """Tokens a layer says that it holds after a step that failed and was tried again, by what failed."""
    rows = []
    for decoder in (TRIP, RESIDENT):
        before = settings.head_dim + 3  # past the branch, so that the first decoder launches too
        for what in ("launch", "copy between key and value"):
            memory, layer = _filled(settings, decoder, before, "cpu")
            given = _drawn(settings, layer, torch.Generator().manual_seed(settings.seed + 1))
            with Transfers(memory):
                if what == "launch":
                    memory.fail_launch = True
                else:
                    memory.fail_copy = len(layer.keys)  # all of the key, nothing of the value
                told = _refusal(layer, given)
                layer.step(*given)
            twice = bool(torch.equal(layer.keys[:, before], layer.keys[:, before + 1]))
            rows.append({
                "decoder": decoder, "failed": what, "told": told, "tokens": before + 1, "length": layer.length,
                "token_twice": twice,
            })  # fmt: skip
        memory, layer = _filled(settings, decoder, settings.max_len, "cpu")
        kept = layer.keys.clone(), layer.values.clone()
        with Transfers(memory):
            told = _refusal(layer, _drawn(settings, layer, torch.Generator().manual_seed(settings.seed + 1)))
        same = torch.equal(layer.keys, kept[0]) and torch.equal(layer.values, kept[1])
        rows.append({
            "decoder": decoder, "failed": "overflow", "told": told, "tokens": settings.max_len,
            "length": layer.length, "token_twice": not same,
        })  # fmt: skip
    rows.append(_ours(settings))
    memory, layer = _filled(settings, TRIP, 0, "cpu")
    resident = _layer(settings, RESIDENT, DeviceMemory())
    told = _refusal(layer, _drawn(settings, resident, torch.Generator().manual_seed(settings.seed)))
    rows.append({"decoder": TRIP, "failed": "KV heads of their own", "told": told, "tokens": 0, "length": layer.length})
    return {"tables": {"states": rows}}


def _refusal(layer: ResidentLayer, given: tuple[Tensor, Tensor, Tensor]) -> str:
    try:
        layer.step(*given)
    except KernelError as error:
        return str(error)
    return ""


def _ours(settings: Settings) -> Row:
    """A full static store of ours, asked for one more."""
    store = StaticStore(settings.kv_heads, settings.max_len, settings.head_dim)
    content = torch.randn(settings.kv_heads, settings.max_len, settings.head_dim)
    store.append(content, content)
    told = ""
    try:
        store.append(content[:, :1], content[:, :1])
    except CacheError as error:
        told = str(error)
    same = torch.equal(store.keys, content) and torch.equal(store.values, content)
    return {"decoder": "StaticStore", "failed": "overflow", "told": told, "tokens": settings.max_len,
            "length": store.length, "token_twice": not same}  # fmt: skip


def _sizes(settings: Settings) -> dict[str, Any]:
    """Bytes of all layers, of caches that hold so many tokens."""
    from transformers.cache_utils import DynamicCache

    s, rows = settings, []
    stores = {"static": s.kv_heads, "static, a KV head for each query head": s.heads}
    for length in s.lengths:
        content = torch.zeros(1, s.kv_heads, length, s.head_dim)
        for name, heads in stores.items():
            nbytes = s.layers * StaticStore(heads, s.max_len, s.head_dim).nbytes
            rows.append({"cache": name, "length": length, "bytes": nbytes})
        geometry = Geometry(1, s.kv_heads, s.head_dim, torch.float32, torch.device("cpu"))
        paged = KVCache(CacheConfig(page_size=64), geometry, s.layers)
        grown = DynamicCache()
        for i, layer in enumerate(paged.layers):
            layer.append(content, content)
            grown.update(content.clone(), content.clone(), i)
        rows.append({"cache": "paged, 64 tokens a page", "length": length, "bytes": paged.memory().total})
        held = sum(side.nbytes for layer in grown.layers for side in (layer.keys, layer.values))
        rows.append({"cache": "growing (DynamicCache)", "length": length, "bytes": held})
    return {"tables": {"sizes": rows}}


def step_rows(records: Sequence[Record]) -> list[Row]:
    """Copies, bytes and errors of a step of one layer, and the bytes of a token."""
    kept = ("decoder", "length", "device", "up_copies", "up_bytes", "down_copies", "down_bytes", "allocations",
            "launches", "synchronizations", "error")  # fmt: skip
    rows = [
        {key: row[key] for key in kept}
        | {"bytes_per_token": row["layers"] * (row["up_bytes"] + row["down_bytes"]),
           "copies_per_token": row["layers"] * (row["up_copies"] + row["down_copies"])}
        for row in table_rows(records, STEP, "step")
    ]  # fmt: skip
    return newest(rows, "device", "decoder", "length")


def plots_a(records: Sequence[Record]) -> list[Plot]:
    """Bytes of a token against its length."""
    rows = [row for row in step_rows(records) if row["device"] == "cpu"]
    drawn = lines(rows, lambda row: "all layers", "decoder", "length", "bytes_per_token")
    labels = ("tokens", "bytes between host and device")
    return [plot("a_bytes", "What a token moves", labels, drawn, "decoder", log_x=True, log_y=True)]


def size_rows(records: Sequence[Record]) -> list[Row]:
    """Bytes by cache and length."""
    rows = [{key: row[key] for key in ("cache", "length", "bytes")} for row in table_rows(records, SIZES, "sizes")]
    return newest(rows, "cache", "length")


def planned_bytes(decoder: str, length: int, shape: dict[str, Any]) -> int:
    """Of a layer and token, from the listing: what the counts are held to."""
    H, Hkv, D = shape["heads"], shape["kv_heads"], shape["head_dim"]
    number = torch.float32.itemsize
    if decoder == RESIDENT:  # K and V of the token, the query, the output
        return number * (2 * Hkv * D + 2 * H * D)
    moved = 6 if length >= D else 2  # K, V down; Q, K, V up and the output down, of all rows
    return number * (moved * length * H * D + 2 * H * D)


def finding_a(records: Sequence[Record]) -> list[Row]:
    """What a step moves, and whether its output is right."""
    found = of_kind(records, STEP)
    if not found:
        return []
    shape, rows = found[-1].config, step_rows(records)
    cpu = [row for row in rows if row["device"] == "cpu"]
    trip, resident = ([row for row in cpu if row["decoder"] == name] for name in (TRIP, RESIDENT))
    longest, layers = trip[-1], shape["layers"]
    own = layers * planned_bytes(RESIDENT, 1, {**shape, "kv_heads": shape["heads"]}) // 2
    planned = all(
        row["up_bytes"] + row["down_bytes"] == planned_bytes(row["decoder"], row["length"], shape) for row in rows
    )
    high = [row for row in trip if row["length"] >= shape["head_dim"]]
    slope = (high[-1]["bytes_per_token"] - high[0]["bytes_per_token"]) / (high[-1]["length"] - high[0]["length"])
    rest = high[0]["bytes_per_token"] - slope * high[0]["length"]
    at = {unit: (CLAIMED_MB * size - rest) / slope for unit, size in (("MB", 1e6), ("MiB", _MIB))}
    few = sorted({row["length"] for row in trip} - {row["length"] for row in high})
    worst = {name: max(row["error"] for row in own_rows) for name, own_rows in ((TRIP, trip), (RESIDENT, resident))}
    near = [row for row in trip if abs(row["length"] - shape["head_dim"]) <= 1]
    result = [
        claim("the bytes derived from the listings are those that were copied", "derived by hand",
              f"equal in {len(rows)} of {len(rows)} steps" if planned else "they differ", planned),
        claim(f"{TRIP}: only the new K/V vectors are transferred to the GPU",
              "hidden_dim floats each",
              f"{longest['bytes_per_token'] / 2**30:.2f} GiB a token at {longest['length']:,} tokens, of which the new "
              f"token's K and V are {own / _MIB:.2f} MiB; {slope:,.0f} bytes more with every token", False),
        claim(f"{TRIP} moves ~66 MB a token", "66 MB",
              f"at {at['MB']:.0f} tokens, 66 MiB at {at['MiB']:.0f}; {longest['bytes_per_token'] / 1e6:,.0f} MB at "
              f"{longest['length']:,}", False),
        claim(f"{RESIDENT} eliminates the transfer", "small transfers only",
              f"{resident[-1]['bytes_per_token']:,} bytes a token at every length, not none",
              len({row["bytes_per_token"] for row in resident}) == 1),
        claim(f"{TRIP}: calls of a token", "not said",
              f"{longest['copies_per_token']:,} copies at {longest['length']:,} tokens, {layers * longest['launches']} "
              f"launches; {RESIDENT} {resident[-1]['copies_per_token']} copies, "
              f"{layers * resident[-1]['allocations']} allocations and as many synchronizations as layers", None),
        claim("no K/V go up below head_dim tokens", "flash attention needs seq_len >= head_dim",
              "; ".join(f"{row['length']} tokens: {row['copies_per_token']:,} copies, {row['bytes_per_token']:,} bytes"
                        for row in trip if row["length"] in few), None),
        claim(f"both branches of {TRIP} are right around {shape['head_dim']} tokens", "correctness",
              ", ".join(f"{row['length']}: {row['error']:.1e}" for row in near) + " of a row's largest element",
              all(row["error"] <= TOLERANCE for row in near)),
        claim("outputs agree with float64 at every length", "correctness",
              ", ".join(f"{name} at most {error:.1e}" for name, error in worst.items()),
              max(worst.values()) <= TOLERANCE),
    ]  # fmt: skip
    result += _work(shape, [row["length"] for row in trip])
    return [*result, *_on_gpu([row for row in rows if row["device"] == "cuda"])]


def _work(shape: dict[str, Any], lengths: list[int]) -> list[Row]:
    """Products, exponentials and reads of a step, by the listings: derived from the shape, not measured."""
    H, Hkv, D, L = shape["heads"], shape["kv_heads"], shape["head_dim"], max(lengths)
    below = [n for n in lengths if n < D]
    result = [
        claim(f"{TRIP}: products of a step", "one query", f"(L + 1) / 2 times those of one row, {(L + 1) / 2:,.1f} at "
              f"{L:,} tokens; derived", None),
        claim(f"{RESIDENT}: reads of a KV head", "PAR-021: h // group",
              f"{H // Hkv} times, once for each of its query heads; {2 * H * L * D * 4 / _MIB:.0f} MiB a layer at "
              f"{L:,} tokens in place of {2 * Hkv * L * D * 4 / _MIB:.0f}, where no cache helps; derived", None),
        claim(f"{RESIDENT}: multiprocessors at work", "grid (heads, 1), block of 32 threads",
              f"{H} blocks of one warp: at most {H} of the 132 of an H100, one warp on each; derived", None),
    ]  # fmt: skip
    if below:  # of each row L in the sum, and D times those up to its own in the products
        n = max(below)
        times = (n * n + D * n * (n + 1) // 2) / n
        result.append(
            claim(f"{TRIP}: exponentials below head_dim tokens", "standard softmax",
                  f"{times:,.0f} for each that one row needs at {n} tokens; derived", None)
        )  # fmt: skip
    return result


def _on_gpu(rows: list[Row]) -> list[Row]:
    """The counted steps once more where a GPU ran them."""
    if not rows:
        return []
    error = max(row["error"] for row in rows)
    said = f"{len(rows)} steps, errors at most {error:.1e}"
    return [claim("the same on a GPU", "correctness", said, error <= TOLERANCE) | {"gpu": said}]


def finding_b(records: Sequence[Record]) -> list[Row]:
    """What a failed step leaves, and what caches take."""
    rows: list[Row] = []
    for record in of_kind(records, STATE)[-1:]:
        for row in record.tables["states"]:
            if row["decoder"] == "StaticStore":
                text, theirs = "a full static store of pqkv's changes nothing", "ours"
            elif row["failed"] == "KV heads of their own":
                text, theirs = f"{TRIP} serves grouped KV heads", "sizes K/V by query heads"
                rows.append(claim(text, theirs, f"refused: {row['told']}", False))
                continue
            elif row["failed"] == "overflow":
                text, theirs = f"{row['decoder']}: a token past max_len changes nothing", "an error"
            else:
                text, theirs = f"{row['decoder']}: a step whose {row['failed']} fails can be tried again", "not said"
            left = f"{row['length']:,} tokens where there are {row['tokens']:,}"
            held = row["length"] == row["tokens"] and not row["token_twice"]
            if row["failed"] == "overflow" and held:
                left = f"refused, nothing changed: {row['told']}"
            rows.append(claim(text, theirs, left, held))
    sizes = size_rows(records)
    if sizes:
        most = max(row["length"] for row in sizes)
        least = min(row["length"] for row in sizes)
        for length in (least, most):
            said = "; ".join(
                f"{row['cache']} {row['bytes'] / _MIB:,.1f} MiB" for row in sizes if row["length"] == length
            )
            rows.append(claim(f"memory of {length:,} tokens", "max_len is allocated", said, None))
    rows.append(
        claim("host copies are ordered with compute_stream", "copy_from_host, then a launch on compute_stream",
              "the listing does not show which stream copies use", None)
    )  # fmt: skip
    return rows
