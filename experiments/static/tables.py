"""The tables of experiments/static/README.md: python experiments/static/tables.py taken|left

taken: what the model of `pqkv bench --static` takes for granted on an H100, with sources; left: what it leaves out of a
step on product codes of 4 bits, counted (that compiles three kernels).
"""

import sys

from pqkv.config import BenchConfig
from pqkv.speed.assumptions import assumptions, left_out
from pqkv.speed.static import GPUS, CodedVariant, variants

GPU = GPUS["h100"]


def taken() -> str:
    """Assumptions."""
    return _table(("taken for granted", "value", "source"), assumptions(GPU))


def left() -> str:
    """What has no time in the model, with four query heads a block."""
    config = BenchConfig(bits=(4,), heads=32, kv_heads=8)
    ((*_, variant),) = (one for one in variants(config, everything=False) if one[-1].group == 4)
    assert isinstance(variant, CodedVariant)
    return _table(("left out", "how much", "counted by"), left_out(config, variant, GPU))


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


TABLES = {"taken": taken, "left": left}


def printed(words: list[str]) -> str:
    """The table named on the command line."""
    return TABLES[words[0]]()


if __name__ == "__main__":
    if sys.argv[1:2] == [] or sys.argv[1] not in TABLES:
        sys.exit(__doc__)
    print(printed(sys.argv[1:]))
