"""Part a: a step of both decoders at each length, what it moves and how far its output is from float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pqkv.kernels.reported.decoder import ResidentLayer, RoundTripLayer
from pqkv.kernels.reported.memory import DeviceMemory, Traffic, Transfers
from pqkv.record import Record
from pqkv.report.drawing import Plot
from pqkv.reproduce.devices import devices
from pqkv.reproduce.incremental_decode.settings import Settings
from pqkv.reproduce.parts import part_cell
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import NO_CLAIM, Row, claim, lines, newest, of_kind, plot, table_rows

STEP = "incremental-step"
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
                yield part_cell(STEP, config, partial(_step, settings, decoder, length, device), request)


def layer_of(settings: Settings, decoder: str, memory: DeviceMemory) -> ResidentLayer:
    """An empty layer of a decoder."""
    s = settings
    if decoder == TRIP:
        return RoundTripLayer(memory, s.heads, s.head_dim, s.max_len)
    return ResidentLayer(memory, s.heads, s.kv_heads, s.head_dim, s.max_len)


def drawn(settings: Settings, layer: ResidentLayer, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A query, a key and a value of a token, on the host."""
    sizes = settings.heads, len(layer.keys), len(layer.keys)
    query, key, value = (torch.randn(n * settings.head_dim, generator=generator) for n in sizes)
    return query, key, value


def filled(settings: Settings, decoder: str, length: int, device: str) -> tuple[DeviceMemory, ResidentLayer]:
    """A layer that holds `length` random tokens, and NaN where it holds none."""
    memory = DeviceMemory(torch.device(device))
    layer = layer_of(settings, decoder, memory)
    generator = torch.Generator().manual_seed(settings.seed)
    for buffer in (layer.keys, layer.values):
        buffer.fill_(float("nan"))
        buffer[:, :length] = torch.randn(buffer[:, :length].shape, generator=generator).to(buffer.device)
    layer.length = length
    memory.traffic = Traffic()
    return memory, layer


def _step(settings: Settings, decoder: str, length: int, device: str) -> dict[str, Any]:
    memory, layer = filled(settings, decoder, length - 1, device)
    query, key, value = drawn(settings, layer, torch.Generator().manual_seed(settings.seed + 1))
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
    shown = lines(rows, lambda row: "all layers", "decoder", "length", "bytes_per_token")
    labels = ("tokens", "bytes between host and device")
    return [plot("a_bytes", "What a token moves", labels, shown, "decoder", log_x=True, log_y=True)]


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
              f"token's K and V are {own / _MIB:.2f} MiB; {slope:,.0f} bytes more with every token",
              longest["bytes_per_token"] <= own),
        claim(f"{TRIP} moves ~66 MB a token", "66 MB",
              f"at {at['MB']:.0f} tokens, 66 MiB at {at['MiB']:.0f}; {longest['bytes_per_token'] / 1e6:,.0f} MB at "
              f"{longest['length']:,}", slope == 0),
        claim(f"{RESIDENT} eliminates the transfer", "small transfers only",
              f"{resident[-1]['bytes_per_token']:,} bytes a token at every length, not none",
              len({row["bytes_per_token"] for row in resident}) == 1),
        claim(f"{TRIP}: calls of a token", "not said",
              f"{longest['copies_per_token']:,} copies at {longest['length']:,} tokens, {layers * longest['launches']} "
              f"launches; {RESIDENT} {resident[-1]['copies_per_token']} copies, "
              f"{layers * resident[-1]['allocations']} allocations and as many synchronizations as layers", NO_CLAIM),
        claim("no K/V go up below head_dim tokens", "flash attention needs seq_len >= head_dim",
              "; ".join(f"{row['length']} tokens: {row['copies_per_token']:,} copies, {row['bytes_per_token']:,} bytes"
                        for row in trip if row["length"] in few),
              len({row["up_bytes"] for row in trip if row["length"] in few}) == 1),
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
              f"{L:,} tokens; derived", L == 1),
        claim(f"{RESIDENT}: reads of a KV head", "PAR-021: h // group",
              f"{H // Hkv} times, once for each of its query heads; {2 * H * L * D * 4 / _MIB:.0f} MiB a layer at "
              f"{L:,} tokens in place of {2 * Hkv * L * D * 4 / _MIB:.0f}, where no cache helps; derived", NO_CLAIM),
        claim(f"{RESIDENT}: multiprocessors at work", "grid (heads, 1), block of 32 threads",
              f"{H} blocks of one warp: at most {H} of the 132 of an H100, one warp on each; derived", NO_CLAIM),
    ]  # fmt: skip
    if below:  # of each row L in the sum, and D times those up to its own in the products
        n = max(below)
        times = (n * n + D * n * (n + 1) // 2) / n
        result.append(
            claim(f"{TRIP}: exponentials below head_dim tokens", "standard softmax",
                  f"{times:,.0f} for each that one row needs at {n} tokens; derived", times <= 1)
        )  # fmt: skip
    return result


def _on_gpu(rows: list[Row]) -> list[Row]:
    """The counted steps once more where a GPU ran them."""
    if not rows:
        return []
    error = max(row["error"] for row in rows)
    said = f"{len(rows)} steps, errors at most {error:.1e}"
    return [claim("the same on a GPU", "correctness", said, error <= TOLERANCE) | {"gpu": said}]
