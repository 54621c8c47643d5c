"""The parts of `incremental-decode`."""

from __future__ import annotations

from functools import partial

from pqkv.reproduce.incremental_decode import race, state, steps
from pqkv.reproduce.parts import Part, derive_parts, run_parts

PARTS = {
    "a": Part(steps.part_a, steps.finding_a, {"a_steps": steps.step_rows}, steps.plots_a),
    "b": Part(state.part_b, state.finding_b, {"b_sizes": state.size_rows}),
    "c": Part(race.part_c, race.finding_c, {"c_race": race.race_rows}, race.plots_c),
}
LETTERS = "".join(PARTS)
MODEL_LETTERS = ""  # nothing here asks a model
cells = partial(run_parts, PARTS)
derive = partial(derive_parts, PARTS)
