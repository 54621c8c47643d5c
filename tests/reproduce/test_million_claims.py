"""When a claim holds: on records that are made up, at both sides of each line."""

import pytest

from pqkv.config import digest_of
from pqkv.record import Metric, Record
from pqkv.reproduce.million import pool
from pqkv.reproduce.million.memory import finding_b
from pqkv.reproduce.million.pages import finding_e
from pqkv.reproduce.million.pool import pool_finding, pools_of
from pqkv.reproduce.million.quality import finding_a, finding_h, quality_rows, rows_h
from pqkv.reproduce.tables import newest, write_rows


def record(kind, config, *, metrics=None, tables=None, started="2026-01-01T00:00:00+00:00"):
    return Record(
        kind=kind, config=config, digest=digest_of(config), env={}, git={}, seed=0, status="ok", started_at=started,
        seconds=1.0, metrics={k: Metric(**v) for k, v in (metrics or {}).items()}, tables=tables or {},
    )  # fmt: skip


def evaluated(
    ratio=1.0, kld=0.1, *, bits=4.0, recipe=("global", "adjacent", "euclidean"), started="2026-01-01", **more
):
    scope, channels, metric = recipe
    scheduled = scope == "head"
    config = {
        "model": "reference", "data": "prose", "split": "test", "context": 512, "scope": scope, "channels": channels,
        "metric": metric,
        "mode": "exact-schedule" if scheduled else "all-coded", "num_subspaces": 32, "nbits": int(2 * bits),
        "page_size": 64, "residual": 128, "sink_tokens": 4 if scheduled else 0, "windows": 2, "codebooks": "a", **more,
    }  # fmt: skip
    values = {"perplexity_exact": 9.0, "perplexity_ratio": ratio, "agreement_at_1": 0.9, "kld_mean": kld}
    values |= {"effective_bits": 5.0, "cache_bytes": 1.0, "code_bits": bits}
    metrics = {name: {"value": value} for name, value in values.items()}
    metrics["perplexity_ratio"] |= {"low": ratio - 0.001, "high": ratio + 0.002}
    return record("eval", config, metrics=metrics, started=f"{started}T00:00:00+00:00")


OURS = ("head", "balanced", "query")


@pytest.mark.parametrize(
    ("ratio", "holds", "printed"),
    [
        (1.0079, "yes", "+0.79%"),
        (1.0081, "not known", "+0.81%"),
        (1.0099, "not known", "+0.99%"),
        (1.0101, "not known", "+1.01%"),  # the interval begins below 1%
        (1.0111, "no", "+1.11%"),
        (0.9911, "yes", "-0.89%"),
        (0.9909, "not known", "-0.91%"),
        (0.98, "no", "-2.00%"),
    ],
)
@pytest.mark.parametrize("recipe", [("global", "adjacent", "euclidean"), OURS])
def test_a_change_of_perplexity_counts_in_both_directions(ratio, holds, printed, recipe):
    (row,) = finding_a([evaluated(ratio, recipe=recipe), evaluated(2.0, bits=3.0, recipe=recipe)])
    assert (row["theirs"], row["holds"]) == ("< 1%", holds)
    assert row["ours"].split()[0] == printed
    assert f"[{ratio - 1.001:+.2%}, {ratio - 0.998:+.2%}]" in row["ours"]


def test_of_two_runs_of_a_cell_the_newer_one_is_reported():
    old, new = evaluated(1.5), evaluated(1.001, started="2026-02-01", codebooks="b")
    for records in ([old, new], [new, old]):
        assert [row["perplexity_ratio"] for row in quality_rows(records)] == [1.001]


def test_a_single_window_cannot_say_how_large_a_change_is():
    one = evaluated(1.001)
    for ratio in (1.001, 1.02):
        metric = Metric(value=ratio, low=None, high=None)
        bare = one.model_copy(update={"metrics": one.metrics | {"perplexity_ratio": metric}})
        (row,) = finding_a([bare])
        assert row["holds"] == "not known"


def test_a_quick_run_into_the_same_folder_replaces_nothing():
    full = evaluated(1.5, windows=4)
    quick = evaluated(1.001, windows=2, started="2026-02-01", codebooks="b")
    for records in ([full, quick], [quick, full]):
        assert [row["perplexity_ratio"] for row in quality_rows(records)] == [1.5]
    rows = [{"a": 1, "n": 4, "b": 1}, {"a": 1, "n": 2, "b": 2}, {"a": 1, "n": 4, "b": 3}]
    assert newest(rows, "a", most="n") == [rows[2]]


@pytest.mark.parametrize(
    ("klds", "ratio", "holds"),
    [
        ((0.09, 0.18, 0.27, 0.36), "0.90x [0.90, 0.90]", "yes"),  # pairs: every window loses a tenth less
        ((0.11, 0.22, 0.33, 0.44), "1.10x [1.10, 1.10]", "no"),
        ((0.05, 0.3, 0.2, 0.44), "0.99x [", "not known"),
        ((0.09, 0.18), None, "not known"),  # other windows
    ],
)
def test_a_rotation_helps_where_it_loses_less_whichever_windows_are_drawn(klds, ratio, holds):
    def sampled(klds, **more):
        made = evaluated(kld=sum(klds) / len(klds), **more)
        return made.model_copy(update={"samples": {"kld_mean": list(klds)}})

    found = finding_h(
        [
            sampled(klds, recipe=("head", "opq", "query")), sampled((0.1, 0.2, 0.3, 0.4), recipe=OURS),
            sampled((0.5, 0.6), recipe=("global", "opq", "euclidean")), sampled((0.4, 0.5)),
        ]
    )  # fmt: skip
    assert ratio in found[0]["ours"] if ratio else "x" not in found[0]["ours"]
    assert [(row["claim"].split(" at ")[0], row["holds"]) for row in found] == [
        ("OPQ, queries' metric loses less than ours", holds), ("MILLION with OPQ loses less than MILLION", "no")
    ]  # fmt: skip


def test_each_model_answers_for_itself():
    small, large = evaluated(1.05, recipe=OURS), evaluated(1.001, recipe=OURS, model="large", started="2026-02-01")
    assert [(row["model"], row["holds"]) for row in finding_a([large, small])] == [
        ("large", "yes"),
        ("reference", "no"),
    ]

    def lost(model, kld, recipe):
        made = evaluated(kld=kld, recipe=recipe, model=model)
        return made.model_copy(update={"samples": {"kld_mean": [kld, 2 * kld]}})

    turned, plain = ("head", "opq", "query"), OURS
    records = [lost("reference", 0.1, plain), lost("reference", 0.2, turned), lost("large", 0.1, plain)]
    (row,) = finding_h(records)  # the plain codes of one model are nothing to the rotated ones of another
    assert (row["model"], row["holds"]) == ("reference", "no")
    assert {row["model"] for row in rows_h(records)} == {"reference"}  # the other one's shape was not run with OPQ
    both = finding_h([*records, lost("large", 0.05, turned)])
    assert [(row["model"], row["holds"]) for row in both] == [("large", "yes"), ("reference", "no")]


@pytest.mark.parametrize(("nbytes", "holds"), [(2500, "yes"), (2501, "no")])
def test_memory_is_a_quarter_where_it_is_no_more(nbytes, holds):
    row = {"tokens": 2048, "share": nbytes / 10_000, "bytes_measured": None, "layers": 2}
    row |= {"bytes_computed": nbytes, "bytes_exact": 10_000}
    config = {"model": "m", "setting": "ours", "bits": 4.0, "verify_up_to": 0}
    (found,) = finding_b([record("million-memory", config, tables={"memory": [row]})])
    assert (found["theirs"], found["holds"]) == ("25%", holds)
    assert found["ours"] == f"{nbytes / 100:.2f}%, {nbytes:,} of 10,000 bytes, computed"


@pytest.mark.parametrize(("weighed", "computed", "layers", "allocated", "said", "holds"), [
    (2500, 2500, 2, 2500, "filled and weighed", "yes"),
    (1250, 1250, 1, 1250, "one layer filled and weighed", "yes"),
    (2500, 2500, 2, 2750, "filled and weighed and 10.0% more held for tokens to come", "yes"),
    (2400, 2500, 2, 2400, "but 2,400 were weighed where 2,500 were computed", "not known"),
])  # fmt: skip
def test_a_cache_that_weighs_something_else_than_was_computed_decides_nothing(
    weighed, computed, layers, allocated, said, holds
):
    row = {"tokens": 2048, "share": 0.25, "layers_measured": layers, "bytes_measured": weighed,
           "bytes_computed_for_them": computed, "bytes_allocated": allocated,
           "bytes_computed": 2500, "bytes_exact": 10_000}  # fmt: skip
    config = {"model": "m", "setting": "ours", "bits": 4.0, "verify_up_to": 4096, "layers": 2}
    (found,) = finding_b([record("million-memory", config, tables={"memory": [row]})])
    assert (found["ours"], found["holds"]) == (f"25.00%, 2,500 of 10,000 bytes, {said}", holds)


def test_what_is_zero_by_construction_is_no_finding():
    row = {"cache": "coded", "unused_in_pages": 0.0, "free_of_pool": 0.2, "unused_in_residual": 0.5}
    found = finding_e([record("million-slots", {"model": "m", "page_size": 16}, tables={"slots": [row]})])
    assert [r["claim"].split(": ")[1] for r in found] == [
        "pages of the pool that nobody uses", "slots without a token in the residual windows"
    ]  # fmt: skip


@pytest.mark.parametrize(("after", "holds"), [(0.0078125, "yes"), (0.00785, "no")])
def test_a_half_is_a_half(after, holds):
    def flushed(residual, rate):
        return record("million-flushes", {"model": "m", "page_size": 64, "residual": residual, "decoded": 1024},
                      tables={"flushes": [{"flushes_per_token": rate}]})  # fmt: skip

    (row,) = finding_e([flushed(64, 0.015625), flushed(128, after)])
    assert row["holds"] == holds


@pytest.mark.parametrize(("share", "holds"), [(0.049, "yes"), (0.05, "no")])
def test_overhead_is_held_to_the_worst_page_size(share, holds):
    def slots(size, unused):
        row = {"cache": "exact", "unused_in_pages": unused, "free_of_pool": 0.5, "unused_in_residual": None}
        return record("million-slots", {"model": "m", "page_size": size}, tables={"slots": [row]})

    found = {row["claim"]: row for row in finding_e([slots(16, 0.01), slots(256, share)])}
    row = found["pool overhead, exact cache: slots without a token in pages in use"]
    assert (row["holds"], row["ours"]) == (holds, f"1.0% to {share:.1%}, most with pages of 256")
    assert found["pool overhead, exact cache: pages of the pool that nobody uses"]["holds"] == "no"
    assert not any("residual windows" in claim for claim in found)


def calls(pages, median, p99, growth=10.0, longest=None, machine="one"):
    rows = [
        {"operation": name, "median_us": m, "p99_us": p, "max_us": longest or p, "count": 9, "clock_us": 0.1}
        for name, m, p in (("allocate", median, p99), ("allocate that doubles the pool", growth, growth))
    ]
    return record("million-allocation", {"pages_in_use": pages, "machine": machine}, tables={"calls": rows})


@pytest.mark.parametrize(
    ("last", "constant", "quick", "grown"),
    [
        (calls(10**6, 2.5, 999.0, 999.0), "yes", "yes", "yes"),
        (calls(10**6, 2.6, 1001.0, 1001.0), "no", "no", "no"),
        (calls(10**6, 0.3, 999.0, 999.0, longest=1001.0), "no", "not known", "not known"),
        (calls(10**5, 1.0, 2.0), "not known", "yes", "yes"),  # too narrow to tell it from a logarithm
        (calls(10**6, 1.0, 2.0, 40_000.0), "yes", "yes", "no"),
    ],
)
def test_allocation_is_held_to_its_medians_its_tail_and_its_growth(last, constant, quick, grown):
    found = {row["claim"].split(",")[0]: row["holds"] for row in pool_finding([calls(100, 1.0, 2.0), last])}
    assert found == {
        "allocate takes constant time": constant, "allocate under 1 ms": quick,
        "the allocate that doubles a pool without --max-pages under 1 ms": grown,
    }  # fmt: skip


def test_a_structure_that_grows_as_the_logarithm_is_not_constant():
    found = pool_finding([calls(10**n, 0.1 * n, 1.0) for n in range(2, 7)])
    assert (found[0]["holds"], "slope 0.118" in found[0]["ours"]) == ("no", True)


def test_machines_are_judged_apart():
    found = pool_finding(
        [calls(n, t, 2.0, machine=m) for m, k in (("a", 1), ("b", 9)) for n, t in ((100, k), (10**6, k))]
    )
    assert [row["holds"] for row in found if "constant" in row["claim"]] == ["yes", "yes"]
    assert [row["ours"].rsplit(", ")[-1] for row in found if "constant" in row["claim"]] == ["a", "b"]


def test_pools_of_the_claimed_size_are_all_and_only_those():
    found = pools_of("2.44")
    for row in found:
        sides = 2 if row["holds"] == "keys and values" else 1
        nbytes = row["pages"] * row["page_size"] * row["heads"] * row["subspaces"] * row["code_bytes"] * sides
        assert nbytes == row["bytes"]
        unit = {"MB": 1_000_000, "MiB": 1_048_576}[row["unit"]]
        assert 2.435 <= nbytes / unit <= 2.445
    parameters = [(r["pages"], r["page_size"], r["heads"], r["subspaces"], r["code_bytes"], r["unit"]) for r in found]
    assert (10_000, 16, 1, 16, 1, "MiB") in parameters  # 2,560,000 bytes
    assert (625, 64, 1, 64, 1, "MiB") in parameters
    assert not any(row["pages"] == 1024 and row["page_size"] == 64 for row in found)  # powers of two never print so


@pytest.mark.parametrize(("stated", "holds"), [((1000, 8, 64), "no"), ((5000, 8, 64), "yes"), ((1000, 38, 64), "no")])
def test_the_stated_pool_is_weighed_by_what_it_multiplies(stated, holds, monkeypatch):
    monkeypatch.setattr(pool, "STATED", stated)
    found = pool_finding([record("million-pool-size", {}, tables={"pools": pools_of("2.44")})])
    assert [row["holds"] for row in found] == [holds]
    assert "the 5 pages of its test (0.00244 MiB)" in found[0]["ours"] or stated != (1000, 8, 64)


def test_rows_become_the_csv_that_they_say(tmp_path):
    rows = [{"a": 1, "b": 0.1 + 0.2, "c": None}, {"a": 2, "d": True}]
    assert write_rows(rows, tmp_path / "x.csv").read_text() == "a,b,c,d\n1,0.30000000000000004,,\n2,,,yes\n"
    assert newest([*rows, {"a": 1, "b": 5}], "a") == [{"a": 1, "b": 5}, {"a": 2, "d": True}]
