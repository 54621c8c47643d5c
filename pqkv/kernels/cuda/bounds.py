"""How many blocks of a kernel a multiprocessor is to have room for, where a GPU said that asking for more pays.

Left alone, `ptxas` gives a thread the registers it likes, and they decide how many blocks run at a time. Asked for more
blocks it makes do with fewer registers: faster where warps are what is missing, more than twice as slow where it
has to spill. So nothing is asked that was not timed, and only on the capability that it was timed on
(`experiments/checks/launch_bounds.py`: 32 query heads on 8 KV heads, a batch of 8, 32,768 tokens; float16 pages and
codes on an H100 and an H200, bfloat16 pages on an H100 alone; `experiments/gpu/README.md` has the figures).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from pqkv.kernels.cuda.coded import CodedVariant, Codes
from pqkv.kernels.cuda.exact import ExactVariant
from pqkv.kernels.cuda.plain import PlainVariant

_CODES = Codes(64, 8, 2, "transposed")
# by capability: blocks of the variant, in place of 3 of exact pages and of 4
_MEASURED: dict[tuple[int, int], dict[Hashable, int]] = {
    (9, 0): {
        ExactVariant("float16", 128, 4): 4,
        ExactVariant("bfloat16", 128, 4, query="bfloat16"): 4,  # spills 8 bytes for it, and takes 0.65 of the time
        CodedVariant(4, _CODES, _CODES): 5,
    }
}


def launch_bounds(variant: Hashable, capability: tuple[int, int]) -> tuple[int, int] | None:
    """(threads of a block, blocks that a multiprocessor is to have room for) as Numba takes them, None where nothing is
    asked. A variant's own `blocks` go before what was measured. A kernel that ends early is bound as the whole one is,
    of which it would be no part otherwise.
    """
    if not isinstance(variant, CodedVariant | ExactVariant | PlainVariant):
        return None
    whole = replace(variant, last="values") if isinstance(variant, CodedVariant) else variant
    blocks = _MEASURED.get(capability, {}).get(whole, 0) if variant.blocks is None else variant.blocks
    return (variant.block, blocks) if blocks else None
