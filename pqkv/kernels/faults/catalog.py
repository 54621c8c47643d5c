"""The defects that two engineering reports describe, one by one, and the same kernel without any of them.

A fault is a backend called `fault:NAME/CASE`; `fault:NAME` is its first case. Faults of the kernel sit in the naive
one (`pqkv.kernels.cuda.naive`, a block for each query head, thread t takes tokens t, t + block, ...), as the report's
did; faults of the bookkeeping change what a correct backend is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "fault:"


@dataclass(frozen=True, slots=True)
class Fault:
    """One defect. What is not set is right.

    `block`: threads of a block. `room`: scores the buffer holds, where the context may be longer; what is written past
    it is dropped (and reads as zero) or lands on `index % room`. `own_warp_max`, `own_warp_sum`: a thread takes the
    result of its own warp for that of the block. `unread`: lengths are rounded up to whole pages, and the slots past
    the true length hold zeros, stale vectors or NaN. `position_shift`: added to the position of tokens decoded after
    the prefill. `first_head_page`: every KV head reads the page of the first. `double_count`: the tokens of the newest
    full page count once more.
    """

    name: str
    summary: str
    block: int = 128
    room: int | None = None
    past_room: Literal["dropped", "aliased"] = "dropped"
    own_warp_max: bool = False
    own_warp_sum: bool = False
    unread: Literal["zero", "stale", "nan"] | None = None
    position_shift: int = 0
    first_head_page: bool = False
    double_count: bool = False

    @property
    def in_kernel(self) -> bool:
        """Whether it runs on the naive kernel, which takes exact pages only."""
        return not (self.first_head_page or self.double_count)


def _all_five(block: int) -> Fault:
    """The five defects of one report at once: scores past 2,048 are dropped, slots past the length are stale. In blocks
    of 32 threads, which a comment of its listing states, two of the five are none.
    """
    return Fault(
        f"all-five/{block}", f"the five defects of one report together, {block} threads", block, room=2048,
        own_warp_max=True, own_warp_sum=True, unread="stale", position_shift=-1,
    )  # fmt: skip


def _faults() -> list[Fault]:
    found = [
        Fault(f"none/{block}", f"the naive kernel with every fix, {block} threads", block=block)
        for block in (128, 64, 32)
    ]
    found += [
        Fault(f"shared-memory-2048/{past}", f"scores past 2,048 are {past}", room=2048, past_room=past)
        for past in ("dropped", "aliased")
    ]  # fmt: skip
    for block in (128, 64, 32):
        found.append(Fault(f"warp-max/{block}", f"maximum of the own warp of {block // 32}", block, own_warp_max=True))
    for block in (128, 64, 32):
        found.append(Fault(f"warp-sum/{block}", f"sum of the own warp of {block // 32}", block, own_warp_sum=True))
    for unread in ("zero", "stale", "nan"):
        found.append(
            Fault(f"block-granular-length/{unread}", f"length in whole pages, slots past it {unread}", unread=unread)
        )
    return [
        *found,
        Fault("rope-minus-one", "decoded tokens one position too early", position_shift=-1),
        *(_all_five(block) for block in (128, 32)),
        Fault("first-head-page", "all KV heads read the first one's page", first_head_page=True),
        Fault("double-count", "the newest full page counts twice", double_count=True),
    ]


FAULTS: dict[str, Fault] = {PREFIX + fault.name: fault for fault in _faults()}


def canonical_name(name: str) -> str:
    """The full name of a fault that is named without its case: `fault:warp-max` is `fault:warp-max/128`; any other
    name as it is.
    """
    if name in FAULTS or not name.startswith(PREFIX):
        return name
    return next((known for known in FAULTS if known.split("/")[0] == name), name)


def fault_of(name: str) -> Fault | None:
    """The fault that the backend `name` has, None for any other backend."""
    return FAULTS.get(canonical_name(name))
