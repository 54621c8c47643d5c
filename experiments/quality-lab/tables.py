"""The tables of experiments/quality-lab/README.md: python experiments/quality-lab/tables.py WHAT TEXT CONTEXT

methods: every way of coding, the cheapest first; bars: ours beside the best peer that takes up to 1.25 bits more;
ablation: one block of the recipe at a time, left out and added alone; costs (no text): what each part would cost;
elsewhere (no text): the finalists on other texts, at other lengths and on the bundled model; recall (no text): facts
they recall, by depth; exact (no text): by the
tokens that stay exact; bound (no text): how far codes are from what a Gaussian with the same spectra allows. outcome
(no text) writes methods.csv, methods.md and the Pareto plots of a lab that is not through, as `pqkv lab` does when it
is.
"""

import sys
import tomllib
from pathlib import Path

from pqkv.codec.catalog import CodecSpec, part_of
from pqkv.codec.composed import ComposedOptions
from pqkv.lab.bound import bound_losses, modelled_kld, read_bound
from pqkv.lab.config import LabConfig
from pqkv.lab.costs import costs
from pqkv.lab.differences import differences
from pqkv.lab.outcome import Group, floors, groups, markdown, write_outcome
from pqkv.lab.pareto import write_pareto
from pqkv.record import Record, RecordStore, load_records
from pqkv.report.series import codec_name

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results/quality-lab"
OURS = ("pqkv", "codebooks")  # what names of our own begin with
WIDER = 1.25  # bits that a peer may take more
BARS = {
    "pqkv 4, predicted": 0.012,
    "pqkv 3, predicted": 0.045,
    "pqkv 2, predicted": 0.16,
    "pqkv 4": 0.012,
    "pqkv 4, dealt": 0.012,
    "pqkv 3": 0.045,
    "pqkv 3, dealt": 0.045,
    "pqkv 2": 0.16,
    "pqkv 2, dealt": 0.16,
}
GRIDS = {
    "keys": "Keys (values exact): the recipe with one option changed",
    "keys alone": "Keys: product codes with one option added",
    "values": "Values (keys exact): the recipe with one option changed",
    "values learnt": "Values: the recipe with learnt codebooks, and one option changed",
    "values alone": "Values: product codes with one option added",
}
RECIPE = {
    "keys": {"bits": 4, "mean": "turning", "metric": "full", "transform": "klt", "centroids": "int8"},
    "values": {"bits": 4, "mean": "constant", "gain": True, "transform": "hadamard", "scope": "universal"},
}
ABLATION_HEAD = """\
| option | KLD, nats | times | difference |
|---|---|---|---|"""
COST_HEAD = """\
| side | part | bytes a token | bytes fixed | operations a token | operations a step |
|---|---|---|---|---|---|"""
EXACT_HEAD = """\
| bits | method | KLD, 4 first and 128 newest exact | perplexity | KLD, none exact |
|---|---|---|---|---|"""
BOUND_HEAD = """\
| bits | keys: bound | ours | times | one Gaussian for all positions | values: bound | ours | times | KLD, nats | \
of the bound (a model) |
|---|---|---|---|---|---|---|---|---|---|"""
RECALL_HEAD = """\
| bits | method | recalled | exact cache | codes dealt to other tokens | at a tenth of the text | 0.3 | 0.5 | 0.7 | \
0.9 |
|---|---|---|---|---|---|---|---|---|---|"""
BAR_HEAD = """\
| method | bits | KLD, nats | bar | best peer up to 1.25 bits more | its bits | its KLD | KLD less that of the peer |
|---|---|---|---|---|---|---|---|"""


def lab_config(lab: str) -> LabConfig:
    """What experiments/quality-lab/LAB.toml asks for."""
    file = ROOT / f"experiments/quality-lab/{lab}.toml"
    return LabConfig.parse(tomllib.loads(file.read_text()), source=file.name)


def found(text: str, context: int, lab: str = "smollm2", folder: Path = RESULTS, mode: str = "all-coded") -> Group:
    """The group of a text, context and mode, named as the lab's file names its methods."""
    every = named(load_records(folder), lab_config(lab))
    return next(g for g in every if (g.config["data"], g.config["context"], g.config["mode"]) == (text, context, mode))


def named(records: list[Record], config: LabConfig) -> list[Group]:
    """Groups of the records that the lab's file names."""
    names = {str(spec): name for name, spec in config.all_methods().items()}
    own = [r for r in records if r.config.get("codec") and r.config["model"] == config.model]
    known = {r.digest: names[spec] for r in own if (spec := codec_name(r.config)) in names}
    return groups(own, known, config.against)


def outcome(folder: Path = RESULTS, into: Path = RESULTS) -> str:
    """Write the outcome of the records that lie in the folder of the whole lab; the files written."""
    records, config = RecordStore(folder).load_all(), lab_config("smollm2")
    every = sorted(named(records, config), key=lambda group: group.config["context"])
    written = write_outcome(every, into)
    measured = load_records(ROOT / "results/quality")  # has noise floors of the same texts
    written += write_pareto(every, into, floors=floors(measured, every), bound=read_bound(folder, config.model))
    return "\n".join(path.name for path in written)


def bars(group: Group) -> str:
    """Those of ours that were measured against their bars, and against the best peer of about their size, in pairs."""
    rows = {row.method: row for row in group.rows}
    peers = [row for row in group.rows if not row.method.startswith(OURS)]
    lines = [BAR_HEAD]
    for name, bar in ((name, bar) for name, bar in BARS.items() if name in rows):
        ours = rows[name]
        bits, kld = ours.value("code_bits"), ours.kld
        near = [p for p in peers if int(bits) <= p.value("code_bits") < int(bits) + WIDER]
        if not near:
            continue
        best = min(near, key=lambda p: p.value("kld_mean"))
        gap = differences({name: ours.record, **{p.method: p.record for p in near}}, best.method)[name]
        lines.append(
            f"| {name} | {bits:.3f} | {kld.value:#.3g} [{kld.low:#.3g}, {kld.high:#.3g}] | {bar:g} | {best.method} | "
            f"{best.value('code_bits'):.3f} | {best.value('kld_mean'):#.3g} | "
            f"{gap.value:+.2g} [{gap.low:+.2g}, {gap.high:+.2g}] |"
        )
    return "\n".join(lines)


def ablation(group: Group) -> str:
    """A table for each grid: what changing one option of its base does, with intervals of the paired difference."""
    records = {row.method: row.record for row in group.rows}
    config = lab_config("ablation")
    names = {str(spec): name for name, spec in config.all_methods().items()}
    parts = []
    for key, grid in config.grid.items():
        base = names[str(CodecSpec.parse(grid.base))]  # a codec of several grids has its name from the first
        own = {name: record for name, record in records.items() if name == base or name.startswith(f"{key}: ")}
        gaps = differences(own, base)
        mean = {name: sum(r.samples["kld_mean"]) / len(r.samples["kld_mean"]) for name, r in own.items()}
        lines = [f"{GRIDS[key]}:", "", ABLATION_HEAD, f"| as it stands | {mean[base]:#.3g} | | |"]
        for name in sorted(gaps, key=mean.__getitem__):
            gap, change = gaps[name], name.removeprefix(f"{key}: ").partition(".")[2]
            told = f"{gap.value:+.2g} [{gap.low:+.2g}, {gap.high:+.2g}]"
            lines.append(f"| {change} | {mean[name]:#.3g} | {mean[name] / mean[base]:.2f} | {told} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def elsewhere() -> str:
    """KLD of the finalists, by where it was measured; where it was not, nothing."""
    places = {
        "WikiText-2 test, 1,024": found("wikitext2-test.txt", 1024),
        "4,096 tokens": found("wikitext2-test.txt", 4096),
        "8,192 tokens": found("wikitext2-test.txt", 8192),
        "source code": found("stdlib", 1024, "texts", RESULTS / "texts"),
        "a novel": found("bleak_house.txt", 1024, "texts", RESULTS / "texts"),
        "bundled model": found("wikitext2-test.txt", 1024, "reference", RESULTS / "reference"),
    }
    klds = {place: {row.method: row.kld for row in group.rows} for place, group in places.items()}
    bits = {row.method: row.value("code_bits") for row in places["WikiText-2 test, 1,024"].rows}
    predicted = {method for method in klds["4,096 tokens"] if "predicted" in method}
    finalists = {row.method for row in places["source code"].rows} | predicted
    chosen = sorted(finalists, key=lambda m: (bits[m], m))
    lines = [f"| bits | method | {' | '.join(klds)} |", "|---" * (len(klds) + 2) + "|"]
    for method in chosen:
        cells = [
            "" if (kld := known.get(method)) is None else f"{kld.value:#.3g} [{kld.low:#.3g}, {kld.high:#.3g}]"
            for known in klds.values()
        ]
        lines.append(f"| {bits[method]:.2f} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def recall(folder: Path = ROOT / "results/recall") -> str:
    """The share of planted words that each finalist recalls, over all and by where in the text they stand."""
    names = {str(spec): name for name, spec in lab_config("smollm2").all_methods().items()}
    lines = [RECALL_HEAD]
    for record in sorted(load_records(folder), key=lambda r: r.metrics["code_bits"].value or 0):
        m = record.metrics
        whole = " | ".join(f"{m[name].value:.0%}" for name in ("recall", "recall_exact", "recall_control"))
        depths = " | ".join(f"{row['recall']:.0%}" for row in record.tables["by_depth"])
        lines.append(f"| {m['code_bits'].value:.2f} | {names[codec_name(record.config)]} | {whole} | {depths} |")
    return "\n".join(lines)


def exact() -> str:
    """KLD of the finalists by the tokens that stay exact."""
    folder = RESULTS / "exact"
    none, usual = (
        {row.method: row for row in found("wikitext2-test.txt", 1024, "exact", folder, mode).rows}
        for mode in ("all-coded", "exact-schedule")
    )
    lines = [EXACT_HEAD]
    for method in sorted(usual, key=lambda m: (usual[m].value("code_bits"), m)):
        row = usual[method]
        klds = [
            f"{of[method].kld.value:#.3g} [{of[method].kld.low:#.3g}, {of[method].kld.high:#.3g}]"
            for of in (usual, none)
        ]
        change = f"{100 * (row.value('perplexity_ratio') - 1):+.2f}%"
        lines.append(f"| {row.value('code_bits'):.2f} | {method} | {klds[0]} | {change} | {klds[1]} |")
    return "\n".join(lines)


def bound() -> str:
    """Error over spread of codes and of the Gaussian bound, and what the bound would lose, by a model."""
    (record,) = load_records(RESULTS / "bound")
    losses, one = (
        bound_losses(record),
        {row["bits"]: row["one_gaussian"] for row in record.tables["losses"] if row["side"] == "keys"},
    )
    modelled = modelled_kld(losses)
    lines = [BOUND_HEAD]
    for bits in sorted(modelled, reverse=True):
        own = {side: next(loss for loss in rows if loss.bits == bits) for side, rows in losses.items()}
        cells = [f"{of.bound:.2g} | {of.error:.2g} | {of.error / of.bound:.1f}" for of in (own["keys"], own["values"])]
        kld = sum(of.kld for of in own.values())
        lines.append(f"| {bits:g} | {cells[0]} | {one[bits]:.2g} | {cells[1]} | {kld:#.3g} | {modelled[bits]:#.3g} |")
    return "\n".join(lines)


def cost_table(head_dim: int = 64) -> str:
    """What each part of the recipe would take where it is served, for heads of `head_dim` at 4 bits."""
    lines = [COST_HEAD]
    for side, text in RECIPE.items():
        options = part_of({"codec": "composed", **text}).options
        assert isinstance(options, ComposedOptions)
        for cost in costs(options, side, head_dim):
            lines.append(
                f"| {side} | {cost.part} | {cost.bytes_per_token:g} | {cost.fixed_bytes:,} | {cost.per_token:g} | "
                f"{cost.per_step:,} |"
            )
    return "\n".join(lines)


def printed(words: list[str]) -> str:
    alone = {
        "costs": cost_table,
        "elsewhere": elsewhere,
        "recall": recall,
        "exact": exact,
        "bound": bound,
        "outcome": outcome,
    }
    if words[0] in alone:
        return alone[words[0]]()
    what, text, context = words
    if what == "ablation":
        group = found(text, int(context), "ablation", RESULTS / "ablation")
    else:
        group = found(text, int(context))
    return {"bars": bars, "ablation": ablation, "methods": markdown}[what](group)


if __name__ == "__main__":
    print(printed(sys.argv[1:]))
