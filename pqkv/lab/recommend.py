"""The smallest recipe that was measured and that does what is asked: no figure here is made, all are looked up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pqkv.codec.catalog import part_of
from pqkv.codec.interface import WholeCodec
from pqkv.errors import ConfigError
from pqkv.record import Metric, Record
from pqkv.report.series import codec_name, mode_name

STATED = (2048, 32768, 131072)
_HALF = 2  # bytes an element has in the caches people run


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a recipe has to do; None is not asked. Ratios are of perplexity, over 1: 0.01 is one per cent."""

    max_ppl: float | None = None
    max_kld: float | None = None
    bits: float | None = None

    def __post_init__(self) -> None:
        if self.max_ppl is None and self.max_kld is None and self.bits is None:
            raise ConfigError("nothing is asked: give --max-ppl, --max-kld or --bits")

    def __str__(self) -> str:
        parts = [
            None if self.max_ppl is None else f"perplexity within {self.max_ppl:+.2%}",
            None if self.max_kld is None else f"KLD within {self.max_kld:g} nats",
            None if self.bits is None else f"at most {self.bits:g} bits an element",
        ]
        return " and ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A way of coding with everything that was measured of it, by text and context."""

    name: str
    records: tuple[Record, ...]

    @property
    def code_bits(self) -> float:
        """The most that any record counted."""
        return max(record.metrics["code_bits"].value or 0.0 for record in self.records)

    @property
    def longest(self) -> int:
        """The longest context it was measured at."""
        return max(int(record.config["context"]) for record in self.records)

    @property
    def places(self) -> frozenset[tuple[str, str, int]]:
        """Where it was measured: text, split and context, however often."""
        return frozenset((str(c["data"]), str(c["split"]), int(c["context"])) for c in (r.config for r in self.records))

    @property
    def windows(self) -> int:
        """Of all records."""
        return sum(int(record.config["windows"]) for record in self.records)

    @property
    def looks_below(self) -> bool:
        """Whether it predicts a layer from the one underneath, so that attention would have to restore every key."""
        coded = self.records[0].config.get("codec")
        kind = part_of(coded["keys"]).kind if coded else None
        return kind is not None and issubclass(kind, WholeCodec) and kind.looks_below

    def worst(self, metric: str) -> Metric:
        """The figure whose interval reaches highest."""
        return max((record.metrics[metric] for record in self.records), key=_upper)

    def does(self, wanted: Wanted) -> bool:
        """Whether the upper ends of all its intervals are within what is asked."""
        return (
            (wanted.bits is None or self.code_bits <= wanted.bits + 1e-9)
            and (wanted.max_ppl is None or _upper(self.worst("perplexity_ratio")) - 1 <= wanted.max_ppl)
            and (wanted.max_kld is None or _upper(self.worst("kld_mean")) <= wanted.max_kld)
        )

    def bytes_at(self, tokens: int) -> float:
        """Bytes of one sequence's cache: what its record states at two lengths, and the line through them."""
        rows = {row["tokens"]: row["cache_bytes"] for row in self.records[0].tables["memory"]}
        (a, at_a), (b, at_b) = sorted(rows.items())[-2:]
        return float(at_a + (at_b - at_a) * (tokens - a) / (b - a))


@dataclass(frozen=True, slots=True)
class Room:
    """What fits into memory beside the weights."""

    longest_context: int
    largest_batch: dict[int, int]


def recipes(records: Iterable[Record], fingerprint: str, mode: str) -> list[Recipe]:
    """Every code measured of this model in a mode (as `mode_name` has it), the cheapest first."""
    found: dict[str, list[Record]] = {}
    for record in records:
        c = record.config
        if record.status != "ok" or c.get("model_weights") != fingerprint or not c.get("bits") or c.get("floor"):
            continue
        if mode_name(c) == mode and {"perplexity_ratio", "kld_mean", "code_bits"} <= set(record.metrics):
            found.setdefault(recipe_name(record), []).append(record)
    made = [
        Recipe(name, tuple(sorted(measured, key=lambda record: (record.config["data"], record.config["context"]))))
        for name, measured in found.items()
    ]
    return sorted(made, key=lambda recipe: (recipe.code_bits, _upper(recipe.worst("kld_mean"))))


def recipe_name(record: Record) -> str:
    """What a record was coded with: the codec as `--codec` takes it, or the bits of codebooks."""
    return codec_name(record.config) or f"codebooks of {record.config['bits']:g} bits, {record.config['codebooks']}"


def measured_everywhere(found: Sequence[Recipe]) -> list[Recipe]:
    """Those that were measured wherever the most thoroughly measured one was (in most places, then on most windows)."""
    if not found:
        return []
    thorough = max(found, key=lambda recipe: (len(recipe.places), recipe.windows)).places
    return [recipe for recipe in found if recipe.places >= thorough]


def recommended(found: Sequence[Recipe], wanted: Wanted) -> Recipe | None:
    """The cheapest of those measured everywhere that does what is asked; asked for bits alone, the one that loses
    least. None if nothing does.
    """
    able = [recipe for recipe in measured_everywhere(found) if recipe.does(wanted)]
    if wanted.max_ppl is None and wanted.max_kld is None:
        return min(able, key=lambda recipe: _upper(recipe.worst("kld_mean")), default=None)
    return able[0] if able else None


def why_nothing(found: Sequence[Recipe], wanted: Wanted) -> str:
    """What comes nearest where nothing does what is asked, and what does it where it was measured, if anything does."""
    everywhere = measured_everywhere(found)
    nearest = min(everywhere, key=lambda recipe: _upper(recipe.worst("kld_mean")))
    ppl, kld = nearest.worst("perplexity_ratio"), nearest.worst("kld_mean")
    places = len(nearest.places)
    where = f" in all {places} places (text and context)" if places > 1 else ""
    reason = (
        f"nothing that was measured{where} has {wanted}; of {len(everywhere)} such recipes {nearest.name} loses least: "
        f"perplexity up to {_upper(ppl) - 1:+.2%} and KLD up to {_upper(kld):.3g} nats by its intervals, at "
        f"{nearest.code_bits:.4g} bits"
    )
    elsewhere = next((recipe for recipe in found if recipe.does(wanted)), None)
    if elsewhere is not None:
        within = len(elsewhere.places & nearest.places)
        reason += f"; {elsewhere.name} does at {elsewhere.code_bits:.4g} bits, and was measured in {within} of them"
    return reason


def room(recipe: Recipe, memory: int, weights: int, contexts: Sequence[int] = STATED) -> Room:
    """What `memory` bytes hold beside `weights`. Raises `ConfigError` where the weights alone do not fit."""
    free = memory - weights
    if free <= 0:
        raise ConfigError(f"the weights take {weights / 2**30:.1f} GiB, and {memory / 2**30:.1f} GiB are given")
    per_token = recipe.bytes_at(131072) - recipe.bytes_at(131071)
    longest = int(max(0.0, (free - recipe.bytes_at(0)) / per_token))
    return Room(longest, {context: int(free // recipe.bytes_at(context)) for context in contexts})


def exact_bytes(record: Record, tokens: int) -> int:
    """A cache of two bytes an element."""
    row = record.tables["memory"][-1]
    elements = 8 * row["cache_bytes"] / row["effective_bits"] / row["tokens"]
    return round(elements * tokens * _HALF)


def _upper(metric: Metric) -> float:
    value = metric.high if metric.high is not None else metric.value
    return float("inf") if value is None else value
