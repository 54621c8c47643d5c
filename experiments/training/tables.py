"""The tables of experiments/training/README.md: python experiments/training/tables.py time|loss|held"""

import sys
from pathlib import Path

import numpy as np

from pqkv.record import Record, load_records

RESULTS = Path(__file__).parents[2] / "results/training"
TIME = """\
| recipe | k-means begins at | windows | positions up to | vectors | all | capture | k-means | of keys | of values |
|---|---|---|---|---|---|---|---|---|---|"""
LOSS = """\
| context | mode | codebooks | PPL | top-1 | KLD, nats | of that before |
|---|---|---|---|---|---|---|"""
HELD = """\
| codebooks | positions | keys | of that before | values | of that before |
|---|---|---|---|---|---|"""
CODEBOOKS = {"94ee83fb5de9": "before", "ae56fe523ef8": "after"}  # of training_time.py --codebooks


def times(records: list[Record]) -> str:
    rows = [TIME]
    trainings = [r for r in records if r.kind == "training"]
    for record in sorted(trainings, key=lambda r: (_recipe(r), r.config["init"]), reverse=True):
        config, metrics = record.config, {name: metric.value for name, metric in record.metrics.items()}
        stages = {row["stage"]: row["seconds"] for row in record.tables["stages"]}
        kmeans = stages["train keys"] + stages["train values"]
        count = config["calibration_tokens"] // config["context"]
        rows.append(
            f"| {_recipe(record)} | {config['init']} points | {count} x {config['context']:,} | "
            f"{config['positions']:,} | {config['samples']:,} | {metrics['training_s']:.0f} s | "
            f"{stages['capture']:.0f} s | {kmeans:.0f} s | "
            f"{metrics['key_query_error']:.5f} | {metrics['value_error']:.5f} |"
        )
    return "\n".join(rows).replace("k-means++ points", "k-means++")


def _recipe(record: Record) -> str:
    return str(record.config.get("recipe", "product"))


def losses(records: list[Record]) -> str:
    cells = {
        (r.config["context"], r.config["mode"], CODEBOOKS[r.config["codebooks"]]): r
        for r in records
        if r.kind == "eval"
    }
    rows = [LOSS]
    for context, mode, name in sorted(cells, key=lambda key: (key[0], key[1] == "all-coded", key[2] == "after")):
        record = cells[context, mode, name]
        ratio, share, kld = (record.metrics[k].value for k in ("perplexity_ratio", "agreement_at_1", "kld_mean"))
        beside = cells.get((context, mode, "before")) if name == "after" else None
        rows.append(
            f"| {context:,} | {mode} | {name} | {100 * (ratio - 1):+.2f}% | {100 * share:.1f}% | {kld:.2g} | "
            f"{times_of(record, beside) if beside else ''} |"
        )
    return "\n".join(rows)


def held(records: list[Record]) -> str:
    """Errors on the same vectors; keys in the metric of their queries."""
    (record,) = (r for r in records if r.config.get("check") == "held_out_error")
    rows = [HELD]
    for row in record.tables["held_out_error"]:
        sides = (f"{row[name]:.5f} | {row[f'{name}_ratio']:.3f}" for name in ("key_query_error", "value_error"))
        rows.append(f"| {row['codebooks']} | {row['first']:,} to {row['end'] - 1:,} | {' | '.join(sides)} |")
    return "\n".join(rows)


def times_of(record: Record, beside: Record) -> str:
    """Ratio of mean KLDs on the same windows, with its 95% paired bootstrap interval over windows."""
    ours, theirs = (np.array(r.samples["kld_mean"]) for r in (record, beside))
    drawn = np.random.default_rng(0).integers(0, len(ours), (10_000, len(ours)))
    low, high = np.quantile(ours[drawn].mean(1) / theirs[drawn].mean(1), [0.025, 0.975])
    return f"{ours.mean() / theirs.mean():.2f} [{low:.2f}, {high:.2f}]"


def printed(words: list[str]) -> str:
    """What the command line `words` prints."""
    return {"time": times, "loss": losses, "held": held}[words[0]](load_records(RESULTS))


if __name__ == "__main__":
    print(printed(sys.argv[1:]))
