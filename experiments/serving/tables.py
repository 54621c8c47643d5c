"""The tables of experiments/serving/README.md, made of records: python experiments/serving/tables.py WHAT

WHAT is `loss` (recipe pqkv beside product codes in the schedule of a cache), `cache` (the same through the real cache),
`step` (what each part costs a decoding step), `gpu` (the same on a GPU, launches counted), `gpu-older` (on a GPU,
before they were) or `choices` (recipes by the bits of everything).
"""

import sys
from functools import partial
from pathlib import Path

from pqkv.record import Metric, Record, load_records

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results/serving"
LOSS_HEAD = """\
| context | recipe | bits | PPL, exact schedule | top-1 | KLD, nats | of product codes |
|---|---|---|---|---|---|---|"""
CACHE_HEAD = """\
| bits | mode | PPL | top-1 | KLD, nats | largest error of the softmax |
|---|---|---|---|---|---|"""
STEP_HEAD = """\
| shape | bits | tokens | product codes, ms | int8 | frame | frame, turning mean | gains | Hadamard, universal | all |
|---|---|---|---|---|---|---|---|---|---|"""
GPU_HEAD = """\
| batch | bits | tokens | codes, us | launches | int8 | frame | frame, turning | gains | Hadamard, universal | all \
| launches |
|---|---|---|---|---|---|---|---|---|---|---|---|"""
CHOICE_HEAD = """\
| model | recipe | marginal bits | at 2,048 tokens, everything counted | KLD, nats |
|---|---|---|---|---|"""
STEPS = ("int8", "frame", "frame, turning", "gains", "hadamard, universal", "all")


def eval_records(folder: Path) -> list[Record]:
    return [r for r in load_records(folder) if r.kind == "eval" and r.status == "ok"]


def recipe_of(record: Record) -> str:
    return str(record.config.get("recipe", "product"))


def loss() -> str:
    """SmolLM2 on WikiText-2 test, mode exact-schedule: each recipe at each width and context."""
    cells = {}
    for record in eval_records(ROOT / "results/quality"):
        c = record.config
        if (c["model"], c["data"], c["mode"]) == ("smollm2", "wikitext2-test.txt", "exact-schedule") and c["bits"]:
            cells[c["context"], -int(c["bits"]), recipe_of(record) == "pqkv"] = record
    lines = [LOSS_HEAD]
    for (context, bits, ours), record in sorted(cells.items()):
        other = cells.get((context, bits, False))
        m = record.metrics
        times = f"{m['kld_mean'].value / other.metrics['kld_mean'].value:.2f}" if ours and other else ""
        lines.append(
            f"| {context:,} | {recipe_of(record)} | {record.config['bits']:.3g} | {percent(m['perplexity_ratio'])} | "
            f"{100 * m['agreement_at_1'].value:.1f}% | {nats(m['kld_mean'])} | {times} |"
        )
    return "\n".join(lines)


def cache() -> str:
    """The same windows in one forward, and token by token through pages and kernels."""
    lines = [CACHE_HEAD]
    records = [r for r in eval_records(RESULTS) if r.config["mode"] in ("exact-schedule", "token", "chunk")]
    for record in sorted(records, key=lambda r: (-r.config["bits"], r.config["mode"])):
        if record.config["windows"] != 2:
            continue
        m = record.metrics
        errors = [m[name].value for name in ("softmax_mass_error", "lse_mass_error") if name in m]
        lines.append(
            f"| {record.config['bits']:.3g} | {record.config['mode']} | {percent(m['perplexity_ratio'])} | "
            f"{100 * m['agreement_at_1'].value:.1f}% | {m['kld_mean'].value:.4g} | "
            f"{f'{max(errors):.1e}' if errors else ''} |"
        )
    return "\n".join(lines)


def step() -> str:
    """Times of product codes' step, by part."""
    lines = [STEP_HEAD]
    for record in sorted(serving_records(RESULTS), key=lambda r: (r.config["model"], *by_size(r))):
        c, took = record.config, record.metrics["latency_ms"].value
        lines.append(f"| {c['model']} | {c['bits']:g} | {c['context']:,} | {took:.2f} | {times(record)} |")
    return "\n".join(lines)


def gpu(*, counted: bool = True) -> str:
    """The same as captured graphs of a GPU, in float16: records that counted launches, or older ones."""
    lines = [GPU_HEAD]
    for record in sorted(serving_records(ROOT / "results/gpu/parts"), key=lambda r: (*by_size(r), -launches_of(r)[0])):
        c, took = record.config, 1e3 * record.metrics["latency_ms"].value
        size = f"{c.get('batch', 1)} | {c['bits']:g} | {c['context']:,}"
        if has_count(record) == counted:
            first, last = launches_of(record) if counted else (f"({launches_of(record)[0]})", "")
            lines.append(f"| {size} | {took:.1f} | {first} | {times(record)} | {last} |")
    return "\n".join(lines)


def has_count(record: Record) -> bool:
    return "kernels" in record.tables["parts"][0]


def launches_of(record: Record) -> tuple[int, int]:
    """Launches of a step of product codes and of all of recipe pqkv: kernels and operations of torch. Older records
    have no count: kernels of a step were seven while races had no placements, and three from then on.
    """
    first, *_, last = record.tables["parts"]
    if has_count(record):
        return first["kernels"] + first["operations"], last["kernels"] + last["operations"]
    return (3, 3) if "placements" in record.config else (7, 7)


def serving_records(folder: Path) -> list[Record]:
    return [r for r in load_records(folder) if r.kind == "serving" and r.status == "ok"]


def by_size(record: Record) -> tuple[float, ...]:
    c = record.config
    return c.get("batch", 1), -c["bits"], c["context"]


def times(record: Record) -> str:
    """Of each part, as cells of a row: how often the step of product codes."""
    found = {row["parts"]: f"{row['times']:.2f}" for row in record.tables["parts"]}
    return " | ".join(found.get(part, "") for part in STEPS)


def choices() -> str:
    """What everything takes at 2,048 tokens, and the loss in the schedule at 1,024, by recipe."""
    lines = [CHOICE_HEAD]
    records = [r for r in eval_records(RESULTS) if r.config["mode"] == "exact-schedule" and r.config["windows"] == 16]
    for record in sorted(records, key=lambda r: (r.config["model"], r.tables["memory"][0]["effective_bits"])):
        c, (at_2k, *_) = record.config, record.tables["memory"]
        frame = ", no frame" if c.get("made_of", {}).get("keys", {}).get("transform") == "none" else ""
        name = f"{recipe_of(record)}, scope {c['scope']}{frame}, {c['dtype']} exact parts"
        lines.append(
            f"| {c['model']} | {name} | {record.metrics['code_bits'].value:.2f} | {at_2k['effective_bits']:.2f} | "
            f"{nats(record.metrics['kld_mean'])} |"
        )
    return "\n".join(lines)


def percent(metric: Metric) -> str:
    values = [100 * (value - 1) for value in (metric.value, metric.low, metric.high)]
    return "{:+.2f}% [{:+.2f}%, {:+.2f}%]".format(*values)


def nats(metric: Metric) -> str:
    return f"{metric.value:.3g} [{metric.low:.2g}, {metric.high:.2g}]"


TABLES = {
    "loss": loss,
    "cache": cache,
    "step": step,
    "gpu": gpu,
    "gpu-older": partial(gpu, counted=False),
    "choices": choices,
}


def printed(words: list[str]) -> str:
    """What the command line `words` prints."""
    return TABLES[words[0]]()


if __name__ == "__main__":
    print(printed(sys.argv[1:]))
