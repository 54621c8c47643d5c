"""The tables of experiments/quality-lab/README.md: python experiments/quality-lab/tables.py WHAT TEXT CONTEXT

methods: every way of coding, the cheapest first; bars: ours beside the best peer that takes up to 1.25 bits more.
"""

import sys
import tomllib
from pathlib import Path

from pqkv.lab.config import LabConfig
from pqkv.lab.differences import differences
from pqkv.lab.outcome import Group, groups, markdown
from pqkv.record import load_records
from pqkv.report.series import codec_name

ROOT = Path(__file__).parents[2]
OURS = ("pqkv", "codebooks")  # what names of our own begin with
WIDER = 1.25  # bits that a peer may take more
BARS = {"pqkv 4": 0.012, "pqkv 3": 0.045, "pqkv 2": 0.16}
BAR_HEAD = """\
| method | bits | KLD, nats | bar | best peer up to 1.25 bits more | its bits | its KLD | KLD less that of the peer |
|---|---|---|---|---|---|---|---|"""


def found(text: str, context: int, lab: str = "smollm2", folder: Path = ROOT / "results/quality-lab") -> Group:
    """The group of a text and context, named as the lab's file names its methods."""
    file = ROOT / f"experiments/quality-lab/{lab}.toml"
    config = LabConfig.parse(tomllib.loads(file.read_text()), source=file.name)
    names = {str(spec): name for name, spec in config.all_methods().items()}
    records = [r for r in load_records(folder) if r.config.get("codec") and r.config["model"] == config.model]
    by_digest = {}
    for record in records:
        spec = codec_name(record.config)
        if spec in names:
            by_digest[record.digest] = names[spec]
    every = groups(records, by_digest, config.against)
    return next(g for g in every if (g.config["data"], g.config["context"]) == (text, context))


def bars(group: Group) -> str:
    """Ours against their bars, and against the best peer of about their size, pair by pair."""
    rows = {row.method: row for row in group.rows}
    peers = [row for row in group.rows if not row.method.startswith(OURS)]
    lines = [BAR_HEAD]
    for name, bar in BARS.items():
        ours = rows[name]
        bits, kld = ours.value("code_bits"), ours.kld
        near = [p for p in peers if int(bits) <= p.value("code_bits") < int(bits) + WIDER]
        best = min(near, key=lambda p: p.value("kld_mean"))
        gap = differences({name: ours.record, **{p.method: p.record for p in near}}, best.method)[name]
        lines.append(
            f"| {name} | {bits:.3f} | {kld.value:#.3g} [{kld.low:#.3g}, {kld.high:#.3g}] | {bar:g} | {best.method} | "
            f"{best.value('code_bits'):.3f} | {best.value('kld_mean'):#.3g} | "
            f"{gap.value:+.2g} [{gap.low:+.2g}, {gap.high:+.2g}] |"
        )
    return "\n".join(lines)


def printed(words: list[str]) -> str:
    what, text, context = words
    group = found(text, int(context))
    return bars(group) if what == "bars" else markdown(group)


if __name__ == "__main__":
    print(printed(sys.argv[1:]))
