"""The parts of `paged-kernel`."""

from __future__ import annotations

from functools import partial

from pqkv.reproduce.paged_kernel import checks, sizes
from pqkv.reproduce.parts import Part, derive_parts, run_parts

PARTS = {
    "a": Part(checks.part_a, checks.finding_a, {"a_tests": checks.test_rows}),
    "b": Part(checks.part_b, checks.finding_b),
    "c": Part(checks.part_c, checks.finding_c, {"c_waves": checks.wave_rows}),
    "d": Part(sizes.part_d, sizes.finding_d),
    "e": Part(sizes.part_e, sizes.finding_e, {"e_prefill": sizes.race_rows}, sizes.plots_e),
}
LETTERS = "".join(PARTS)
MODEL_LETTERS = ""  # nothing here asks a model
cells = partial(run_parts, PARTS)
derive = partial(derive_parts, PARTS)
