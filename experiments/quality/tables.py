"""The tables of the READMEs, made of records: python experiments/quality/tables.py MODEL TEXT [CONTEXT,...] [RECIPE]

RECIPE is that of the codebooks, pqkv unless `product` is named. A row for each context and number of bits, in three
ways to run text through the cache; where the noise floor was measured, what rounding alone does. 95% intervals stand
in brackets. The standard library is another text under another Python, so its rows name theirs and hold cells of no
other. `steps MODEL TEXT` has the modes that go through the real cache step by step, recipe pqkv.
"""

import sys
from pathlib import Path

from pqkv.record import Record, load_records

RESULTS = Path(__file__).parents[2] / "results/quality"
WAYS = (("exact-schedule", 0), ("all-coded", 4), ("all-coded", 0))
HEAD = """\
| context | bits | PPL, exact schedule | top-1 | KLD, nats | PPL, all coded but 4 | KLD | PPL, all coded | KLD |
|---|---|---|---|---|---|---|---|---|"""


STEPS_HEAD = """\
| context | bits | mode | PPL | top-1 | KLD, nats | largest error of the softmax |
|---|---|---|---|---|---|---|"""


def steps(model: str, text: str, folder: Path = RESULTS) -> str:
    """Markdown rows of the modes token, chunk and decode."""
    rows = [STEPS_HEAD]
    found = [r for r in load_records(folder) if r.config.get("recipe") == "pqkv" and r.status == "ok"]
    for record in sorted(found, key=lambda r: (r.config["context"], -r.config["bits"], r.config["mode"])):
        c, m = record.config, record.metrics
        if (c["model"], c["data"]) == (model, text) and c["mode"] in ("token", "chunk", "decode") and "kld_mean" in m:
            errors = [m[name].value for name in ("softmax_mass_error", "lse_mass_error") if name in m]
            words = [_row(c["context"], _edition(record)), f"{c['bits']:.3g}", c["mode"]]
            words += [
                _percent(m["perplexity_ratio"].value),
                _share(record),
                _nats(record),
                f"{max(errors):.1e}" if errors else "",
            ]
            rows.append(f"| {' | '.join(words)} |")
    return "\n".join(rows)


def table(model: str, text: str, contexts: tuple[int, ...] = (), folder: Path = RESULTS, recipe: str = "pqkv") -> str:
    """Markdown rows of a model on a text; of all contexts that have records unless some are named."""
    found = [r for r in load_records(folder) if (r.config["model"], r.config["data"]) == (model, text)]
    found = [r for r in found if r.config.get("floor") or r.config.get("recipe", "product") == recipe]
    cells = {_way(record): record for record in found if record.status == "ok"}
    rows = [HEAD]
    for context, edition in sorted({key[:2] for key in cells if not contexts or key[0] in contexts}):
        own = {key[2:]: record for key, record in cells.items() if key[:2] == (context, edition)}
        for bits in sorted({key[0] for key in own if key[0]}, reverse=True):
            schedule, *others = (own.get((bits, *way)) for way in WAYS)
            if schedule:
                words = [_row(context, edition), f"{bits:.3g}", _ratio(schedule), _share(schedule), _nats(schedule)]
                words += [cell for record in others for cell in (_ratio(record), _nats(record))]
                rows.append(f"| {' | '.join(words)} |")
        for kind in ("bfloat16 arithmetic", "bfloat16 cache"):
            if floor := own.get((0.0, kind, 0)):
                words = [_row(context, edition), kind, _ratio(floor), _share(floor), _nats(floor), "", "", "", ""]
                rows.append(f"| {' | '.join(words)} |")
    return "\n".join(rows)


def _way(record: Record) -> tuple[int, str, float, str, int]:
    config = record.config
    where = config["context"], _edition(record)
    if floor := config.get("floor"):
        return *where, 0.0, floor, 0
    return *where, config["bits"], config["mode"], config.get("coded_sinks", 0)


def _edition(record: Record) -> str:
    """Whose standard library the text is, 3.11; nothing for other texts."""
    return ".".join(record.env["python"].split(".")[:2]) if record.config["data"] == "stdlib" else ""


def _row(context: int, edition: str) -> str:
    return f"{context:,}, Python {edition}" if edition else f"{context:,}"


def _ratio(record: Record | None) -> str:
    if record is None:
        return ""
    metric = record.metrics["perplexity_ratio"]
    return f"{_percent(metric.value)} [{_percent(metric.low)}, {_percent(metric.high)}]"


def _percent(ratio: float | None) -> str:
    return "none" if ratio is None else f"{round(100 * (ratio - 1), 2) or 0.0:+.2f}%"  # never -0.00%


def _share(record: Record) -> str:
    value = record.metrics["agreement_at_1"].value
    return "none" if value is None else f"{100 * value:.1f}%"


def _nats(record: Record | None) -> str:
    value = None if record is None else record.metrics["kld_mean"].value
    return "" if record is None else "none" if value is None else f"{value:.2g}"


def printed(words: list[str]) -> str:
    """What the command line `words` prints."""
    if words[0] == "steps":
        return steps(*words[1:])
    model, text, *more = words
    recipe = more.pop() if more and more[-1] in ("pqkv", "product") else "pqkv"
    return table(model, text, tuple(int(c) for c in more[0].split(",")) if more else (), recipe=recipe)


if __name__ == "__main__":
    print(printed(sys.argv[1:]))
