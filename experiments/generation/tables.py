"""What experiments/generation found, made of records: python experiments/generation/tables.py greedy|drawn|texts"""

import sys
from pathlib import Path

from pqkv.record import Record, load_records

RESULTS = Path(__file__).parents[2] / "results/generation"
HEAD = """\
| cache | tokens/s | bytes of the cache | of DynamicCache | allocated | same text for |
|---|---|---|---|---|---|"""


def table(records: list[Record]) -> str:
    caches = {record.config["cache"]: record for record in records}
    exact = caches["DynamicCache"]
    rows = [HEAD]
    for name, record in sorted(caches.items(), key=lambda item: -(item[1].config["bits"] or 99)):
        used, whole = record.metrics["cache_bytes"].value, exact.metrics["cache_bytes"].value
        (row,) = record.tables["generated"]
        pairs = list(zip(record.samples["token_ids"], exact.samples["token_ids"], strict=True))
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        rate = 1e3 / record.metrics["tpot_ms"].value
        rows.append(
            f"| {name} | {rate:.1f} | {used / 1e6:.1f} MB | {100 * used / whole:.0f}% | "
            f"{row['allocated_bytes'] / 1e6:.1f} MB | {same:,} of {len(pairs):,} tokens |"
        )
    return "\n".join(rows)


def texts(records: list[Record]) -> str:
    """Everything that was written, a heading for each cache."""
    caches = sorted(records, key=lambda record: (record.config["mode"], -(record.config["bits"] or 99)))
    return "\n\n".join(
        f"## {r.config['cache']}, {r.config['mode']}\n\n{r.tables['generated'][0]['text'].strip()}" for r in caches
    )


def printed(words: list[str]) -> str:
    """What the command line `words` prints."""
    records = load_records(RESULTS)
    if words == ["texts"]:
        return texts(records)
    return table([record for record in records if record.config["mode"] == words[0]])


if __name__ == "__main__":
    print(printed(sys.argv[1:]))
