"""What the parts on speed share: c look-ups, d layouts, f splits, g tokens, i steps.

`part_x` yields records, `finding_x` says what they mean as rows of claim, theirs, ours, gpu (what was measured on a
GPU, None without one) and holds. The reports measured on GPUs, so times of a CPU decide nothing: they are stated and
`holds` is None. Counts are of the kernels' addresses and hold anywhere. A claim that names a context or a number of
bits is judged there only, its figure rounded to the digits of the claim.

A folder may hold records of several machines and settings. Figures of different ones are never compared: of every kind
of cell and device only the records that agree with the newest in `_SETTINGS` count. So all breakdowns have the same
number of repeats, whichever part asks for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from pqkv.config import BenchConfig
from pqkv.record import Record
from pqkv.reproduce.tables import Row

CLAIMED = 32768, 4  # context and bits of MILLION's 2.09x
_SETTINGS = (  # what a cell is measured on and with, beside what tells it from other cells of its kind
    "machine", "threads", "dtype", "repeats", "new_tokens", "page_size", "residual", "sink_tokens", "window", "seed",
    "weights", "kernels",
)  # fmt: skip


def on_devices(
    quick: bool,
    lengths: tuple[int, ...],
    **given: Any,  # noqa: ANN401 - settings by name
) -> list[BenchConfig]:
    """The same settings for backend `cpu` and, where there is a GPU, for `cuda`."""
    return [config_of(quick, lengths, backend="cpu", **given), *on_gpu(quick, lengths, **given)]


def config_of(quick: bool, lengths: tuple[int, ...], **given: Any) -> BenchConfig:  # noqa: ANN401 - settings by name
    """Settings of a grid over lengths: 4 bits unless given, fewer repeats for a quick run; codes as the reports have
    them, with nothing of recipe pqkv beside.
    """
    return parsed({"lengths": lengths, "bits": (4.0,), "repeats": 5 if quick else 11, "served": (), **given})


def parsed(values: dict[str, Any]) -> BenchConfig:
    """Settings that an error names as those of the parts on speed."""
    return BenchConfig.parse(values, source="speed parts of million")


def on_gpu(quick: bool, lengths: tuple[int, ...], **given: Any) -> list[BenchConfig]:  # noqa: ANN401 - settings by name
    """The same on a GPU, where there is one."""
    if not torch.cuda.is_available():
        return []
    return [config_of(quick, lengths, **{**given, "backend": "cuda", "dtype": "float16", "fallback": False})]


def comparable(records: Iterable[Record], mode: str | None = None, *, kind: str = "bench") -> list[Record]:
    """The records of a kind that ran, and of a mode of it, oldest first: for each device those whose machine and
    settings (`_SETTINGS`) are those of its newest record.
    """
    ran = [r for r in records if r.kind == kind and r.status == "ok"]
    ran = [r for r in ran if mode is None or str(r.config["mode"]).startswith(mode)]
    ran.sort(key=lambda r: (r.started_at, r.digest))
    newest = {r.config.get("device"): _settings(r) for r in ran}
    return [r for r in ran if _settings(r) == newest[r.config.get("device")]]


def _settings(record: Record) -> tuple[Any, ...]:
    return tuple(record.config.get(name) for name in _SETTINGS)


def cell_of(record: Record) -> tuple[Any, ...]:
    """What records of one cell share, in the order of `claims.csv`: wide codes first."""
    c = record.config
    return c["model"], -c["bits"], c["context"], c["batch"], c["device"]


def is_claimed(record: Record) -> bool:
    """Whether this is a cell of the context and the bits that MILLION names."""
    return (record.config["context"], record.config["bits"]) == CLAIMED


def layout_of(record: Record) -> tuple[str, str]:
    """Of keys and of values."""
    return record.config["key_layout"], record.config["value_layout"]


def where_of(cell: tuple[Any, ...]) -> str:
    """A cell in words."""
    model, bits, context, batch, _ = cell[:5]
    shape = f"{-bits:g} bits" if bits else "exact"
    return f"{shape}, {context} tokens, {model}{f', batch {batch}' if batch > 1 else ''}"


def parts_of(record: Record) -> dict[str, float]:
    """Median milliseconds by part."""
    return {row["part"]: row["median_ms"] for row in record.tables["breakdown"]}


def row_of(claim: str, theirs: str, ours: str, holds: bool | None, gpu: str | None = None) -> Row:
    """One line of claims.csv, less its part."""
    return {"claim": claim, "theirs": theirs, "ours": ours, "gpu": gpu, "holds": holds}


def change(saved: float, word: str) -> str:
    """A share saved, or what was added to it, in words."""
    return f"{saved:.0%} {word}" if saved >= 0 else f"{-saved:.0%} more"


def measured(claim: str, theirs: str, said: str, holds: bool | None, device: str) -> Row:
    """What was measured on a GPU goes to its own column too."""
    gpu = device == "cuda"
    return row_of(claim, theirs, f"{'GPU' if gpu else 'CPU'}: {said}", holds, said if gpu else None)
