"""The tables of experiments/training/README.md, made of records: python experiments/training/tables.py time|loss"""

import sys
from pathlib import Path

from pqkv.record import Record, load_records

RESULTS = Path(__file__).parents[2] / "results/training"
TIME = """\
| k-means begins at | windows | positions up to | vectors | all | capture | k-means | error of keys | of values |
|---|---|---|---|---|---|---|---|---|"""
LOSS = """\
| context | mode | codebooks | PPL | top-1 | KLD, nats |
|---|---|---|---|---|---|"""
CODEBOOKS = {"94ee83fb5de9": "before", "ae56fe523ef8": "after"}  # of training_time.py --codebooks


def times(records: list[Record]) -> str:
    rows = [TIME]
    for record in sorted((r for r in records if r.kind == "training"), key=lambda r: r.config["init"], reverse=True):
        config, metrics = record.config, {name: metric.value for name, metric in record.metrics.items()}
        stages = {row["stage"]: row["seconds"] for row in record.tables["stages"]}
        kmeans = stages["train keys"] + stages["train values"]
        count = config["calibration_tokens"] // config["context"]
        rows.append(
            f"| {config['init']} points | {count} x {config['context']:,} | {config['positions']:,} | "
            f"{config['samples']:,} | {metrics['training_s']:.0f} s | {stages['capture']:.0f} s | {kmeans:.0f} s | "
            f"{metrics['key_query_error']:.5f} | {metrics['value_error']:.5f} |"
        )
    return "\n".join(rows).replace("k-means++ points", "k-means++")


def losses(records: list[Record]) -> str:
    cells = [record for record in records if record.kind == "eval"]
    order = {"after": 1, "before": 0}
    named = sorted(
        ((r.config["context"], r.config["mode"], CODEBOOKS[r.config["codebooks"]], r.metrics) for r in cells),
        key=lambda cell: (cell[0], cell[1] == "all-coded", order[cell[2]]),
    )
    rows = [LOSS]
    for context, mode, name, metrics in named:
        ratio, share, kld = (metrics[key].value for key in ("perplexity_ratio", "agreement_at_1", "kld_mean"))
        rows.append(f"| {context:,} | {mode} | {name} | {100 * (ratio - 1):+.2f}% | {100 * share:.1f}% | {kld:.2g} |")
    return "\n".join(rows)


def printed(words: list[str]) -> str:
    """What the command line `words` prints."""
    return {"time": times, "loss": losses}[words[0]](load_records(RESULTS))


if __name__ == "__main__":
    print(printed(sys.argv[1:]))
