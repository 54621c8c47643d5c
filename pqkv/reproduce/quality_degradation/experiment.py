"""The parts of `quality-degradation`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pqkv.lm import load_model
from pqkv.record import Record
from pqkv.reproduce.models import check_contexts, write_models
from pqkv.reproduce.parts import Part, claims_of, derive_parts, run_parts
from pqkv.reproduce.quality_degradation import cells as grid
from pqkv.reproduce.quality_degradation import claims, float64, listing, positions
from pqkv.reproduce.quality_degradation.fingerprint import write_fingerprint
from pqkv.reproduce.quality_degradation.settings import Settings
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import Row


def finding_a(records: Sequence[Record]) -> list[Row]:
    """The claims on quality: their own names stand for the part."""
    return [found.row() for found in claims.claims_of(records)]


PARTS = {
    "b": Part(
        listing.part_b,
        listing.finding_b,
        {"b_blocks": listing.block_rows, "b_reduction": listing.reduction_rows},
    ),
    "c": Part(positions.part_c, positions.finding_c, {"c_positions": positions.position_rows}),
    "d": Part(float64.part_d, float64.finding_d, {"d_float64": float64.float64_rows}),
    "a": Part(grid.part_a, finding_a),  # the long one: what is short is known before it begins
}
MODEL_LETTERS = "acd"
LETTERS = "".join(sorted(PARTS))


def cells(settings: Settings, request: Request) -> Iterator[Record]:
    """The parts that are asked for, of another model those that ask one. Raises `ConfigError` for a model that has
    fewer positions than the longest context.
    """
    wanted = request.parts or tuple(MODEL_LETTERS if request.model is not None else LETTERS)
    if set(wanted) & set(MODEL_LETTERS):
        check_contexts("quality-degradation", load_model(settings.model), settings.contexts)
    yield from run_parts(PARTS, settings, replace(request, parts=wanted))


def derive(records: list[Record], folder: Path) -> list[Path]:
    """The fingerprint, as CSV, Markdown and pictures, the claims beside what was found, the tables of the other parts,
    and the models side by side.
    """
    folder, said = Path(folder), claims_of(PARTS, records)
    written = [*write_fingerprint(records, folder), *derive_parts(PARTS, records, folder, said)]
    return [*written, *write_models(said, folder)]
