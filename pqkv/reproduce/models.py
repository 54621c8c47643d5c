"""Several models and one experiment: whether it can be put to one, and what it found on each, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pqkv.errors import ConfigError
from pqkv.lm.named import REFERENCE
from pqkv.lm.positions import positions_refusal
from pqkv.record import atomic_write
from pqkv.reproduce.tables import Row

if TYPE_CHECKING:
    from pqkv.lm import LanguageModel

MODELS_FILE = "models.md"


def model_order(name: str) -> tuple[bool, str]:
    """Sorts models: the bundled one, whose claims the others stand beside, comes first."""
    return name != REFERENCE, name


def check_contexts(name: str, lm: LanguageModel, contexts: Iterable[int]) -> None:
    """Raise `ConfigError` for contexts of the experiment `name` beyond the model's positions: before its first cell,
    not after the hours that the shorter ones take.
    """
    longest = max(contexts)
    if positions_refusal(lm, longest) is not None:
        raise ConfigError(
            f"{name} cannot ask {lm.name}: it takes {longest} tokens, the model has {lm.max_positions} positions; "
            f'give shorter ones in a table [models."{lm.name}"] of experiments/{name}/experiment.toml'
        )


def side_by_side(claims: Sequence[Row]) -> list[str]:
    """Lines of a Markdown table: each claim that was put to several models, what was found on each and whether they
    agree. None where no claim was.
    """
    answers: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in claims:
        if row.get("model"):
            answers.setdefault((row["part"], row["claim"], row["theirs"]), {})[row["model"]] = row
    shared = {key: found for key, found in answers.items() if len(found) > 1}
    models = sorted({model for found in shared.values() for model in found}, key=model_order)
    if not models:
        return []
    head = ["part", "claim", "theirs", *(word for model in models for word in (model, "holds")), "agree"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for (part, claim, theirs), found in shared.items():
        cells = [word for model in models for word in _answer(found.get(model))]
        agree = "yes" if len({row["holds"] for row in found.values()}) == 1 else "no"
        lines.append(f"| {' | '.join([part, claim, theirs, *cells, agree])} |")
    return lines


def write_models(claims: Sequence[Row], folder: Path) -> list[Path]:
    """`models.md`, where a claim was put to several models."""
    lines = side_by_side(claims)
    if not lines:
        return []
    text = (
        "# The same claims on each model\n\n"
        + "\n".join(lines)
        + "\n\nClaims that were put to one model alone stand in `claims.csv`.\n"
    )
    atomic_write(folder / MODELS_FILE, text.encode())
    return [folder / MODELS_FILE]


def _answer(row: Row | None) -> tuple[str, str]:
    return ("not asked", "") if row is None else (row["ours"], row["holds"])
