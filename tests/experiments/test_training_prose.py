"""Figures in the prose of experiments/training are those of its records."""

from prose import ROOT, numbers, text_of

from pqkv.record import load_records


def test_errors_on_the_same_vectors():
    (record,) = (r for r in load_records(ROOT / "results/training") if r.config.get("check") == "held_out_error")
    rows = {(row["codebooks"], row["first"], row["end"]): row for row in record.tables["held_out_error"]}

    def ratios(name, first):
        row = rows[name, first, 4096]
        return [round(row[f"{side}_error_ratio"], 2) for side in ("key_query", "value")]

    text = text_of("experiments/training/README.md")
    assert numbers(text, r"errs ([\d.]+) times as much on keys and ([\d.]+) times on values") == ratios("after", 0)
    assert numbers(text, r"the default ([\d.]+) and ([\d.]+) times behind the first four") == ratios("default", 4)
    log = numbers(
        text_of("experiments/LOG.md"), r"errs ([\d.]+) times as much on keys as .*? and ([\d.]+) times with the first"
    )
    assert log == [ratios("default", first)[0] for first in (4, 0)]
