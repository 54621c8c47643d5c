"""The parts of `attention-variants`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pqkv.record import Record
from pqkv.reproduce.attention_variants import kept, pooled, reach, sharing, sizes, softmax, stacked, windows
from pqkv.reproduce.models import write_models
from pqkv.reproduce.parts import Part, claims_of, derive_parts, run_parts

PARTS = {
    "a": Part(
        softmax.part_a,
        softmax.finding_a,
        {"a_memory": softmax.memory_rows, "a_defects": softmax.defect_rows, "a_kernel": softmax.kernel_rows},
        softmax.plots_a,
    ),
    "b": Part(sizes.part_b, sizes.finding_b),
    "c": Part(sharing.part_c, sharing.finding_c, {"c_sharing": sharing.sharing_rows}),
    "d": Part(
        windows.part_d,
        windows.finding_d,
        {"d_windows": windows.window_rows, "d_recall": windows.depth_rows},
        windows.plots_d,
    ),
    "e": Part(reach.part_e, reach.finding_e, {"e_reach": reach.reach_rows}, reach.plots_e),
    "f": Part(kept.part_f, kept.finding_f, {"f_kept": kept.kept_rows}, kept.plots_f),
    "g": Part(pooled.part_g, pooled.finding_g, {"g_pooled": pooled.pooled_rows}),
    "h": Part(stacked.part_h, stacked.finding_h, {"h_stacked": stacked.stacked_rows}),
}
LETTERS = "".join(PARTS)
MODEL_LETTERS = "defg"  # what asks a model
cells = partial(run_parts, PARTS)


def derive(records: list[Record], folder: Path) -> list[Path]:
    """Tables, pictures and claims of all parts, and those that were put to several models side by side."""
    said = claims_of(PARTS, records)
    return [*derive_parts(PARTS, records, folder, said), *write_models(said, folder)]
