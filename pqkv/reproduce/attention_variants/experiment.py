"""The parts of `attention-variants`."""

from __future__ import annotations

from functools import partial

from pqkv.reproduce.attention_variants import sharing, sizes, softmax
from pqkv.reproduce.parts import Part, derive_parts, run_parts

PARTS = {
    "a": Part(
        softmax.part_a,
        softmax.finding_a,
        {"a_memory": softmax.memory_rows, "a_defects": softmax.defect_rows, "a_kernel": softmax.kernel_rows},
        softmax.plots_a,
    ),
    "b": Part(sizes.part_b, sizes.finding_b),
    "c": Part(sharing.part_c, sharing.finding_c, {"c_sharing": sharing.sharing_rows}),
}
LETTERS = "".join(PARTS)
MODEL_LETTERS = ""  # nothing here asks a model
cells = partial(run_parts, PARTS)
derive = partial(derive_parts, PARTS)
