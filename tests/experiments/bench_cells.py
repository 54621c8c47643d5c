"""Records of `bench` as tests of prose ask for them."""

from prose import ROOT

from pqkv.record import load_records


def cell(table, context, bits, form, folder="results/bench-bytes"):
    """The record of one sequence of the usual heads; with AVX-512, at 2 bits, of codes of 8 bits."""
    eight = folder == "results/bench-zen4" and bits == 2
    (found,) = (
        r
        for r in load_records(ROOT / folder)
        if (r.config["context"], r.config["bits"], table.form_of(r)) == (context, bits, form) and table.usual(r)
        and r.config["num_subspaces"] != 128 and (r.config["nbits"] == 8 or not eight)
    )  # fmt: skip
    return found


def took(record):
    return record.metrics["latency_ms"].value
