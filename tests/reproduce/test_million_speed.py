"""Findings follow from records: made-up times give the answers that are computed here by hand."""

import pytest

from pqkv.config import digest_of
from pqkv.record import Record
from pqkv.reproduce import million_speed as module
from pqkv.reproduce.million_speed import access_rows, finding_c, finding_d, finding_f, finding_g, finding_i


def made(kind="bench", metrics=None, tables=None, **config):
    config = {
        "model": "32 heads", "bits": 4.0, "context": 4096, "batch": 1, "device": "cpu", "page_size": 64, "threads": 2,
        "key_layout": "transposed", "value_layout": "transposed", "backend": "cpu", **config,
    }  # fmt: skip
    values = {name: {"value": value} for name, value in (metrics or {}).items()}
    return Record(
        kind=kind, config=config, digest=digest_of(config), env={}, git={}, seed=0, status="ok", seconds=1.0,
        started_at="2025-01-01T00:00:00+00:00", metrics=values, tables=tables or {},
    )  # fmt: skip


def broken_down(backend="cpu", device="cpu", layout="transposed", **parts):
    rows = [{"part": name.replace("_", " "), "median_ms": ms} for name, ms in parts.items()]
    given = {"backend": backend, "device": device, "key_layout": layout, "value_layout": layout}
    return made(mode="breakdown, batch 1", tables={"breakdown": rows}, **given)


def test_keys_by_table_cost_their_tables_too():
    tables = broken_down("cpu-tables", key_tables=2.0, scores=1.0, values=5.0)
    centroids = broken_down("cpu-centroids", query=0.5, scores=2.0, values=3.0)
    keys, values = finding_c([tables, centroids])
    assert "3.00 ms by table (tables 2.00), 2.50 ms by centroid" in keys["ours"]
    assert "3.00 ms by gather, 5.00 ms by bins" in values["ours"]
    assert (keys["holds"], values["holds"], keys["gpu"]) == (False, True, None)
    assert finding_c([tables]) == []


def test_layouts_by_time_and_by_count():
    races = [
        made(mode="decode, batch 1", metrics={"bandwidth_fraction": share, "speedup": ratio}, key_layout=layout,
             value_layout=layout)
        for layout, share, ratio in (("row", 0.1, 1.2), ("transposed", 0.2, 2.6))
    ]  # fmt: skip
    steps = [broken_down(layout="row", scores=4.0, values=10.0), broken_down(scores=3.0, values=4.0)]
    count = made("accesses", mode="count", tables={"accesses": access_rows(4)})
    found = {row["claim"]: row for row in finding_d([*races, *steps, count])}
    values = found["access to values, 4 bits, 4096 tokens, 32 heads"]
    assert values["ours"] == "CPU: 10.00 ms in rows, 4.00 ms transposed: 60% less time"
    assert values["holds"] is True
    # the bandwidth and the speed-up that are claimed are a GPU's: a CPU cannot say
    for claim in ("bandwidth", "speed-up"):
        row = found[f"{claim}, 4 bits, 4096 tokens, 32 heads"]
        assert (row["holds"], row["gpu"]) == (None, None)
    keys = found["memory transactions of keys, 4 bits"]
    assert keys["ours"].startswith("8 in rows, 2 transposed a token (75% fewer)")
    assert keys["holds"] is True
    assert found["memory transactions of values, 4 bits"]["holds"] is False
    assert "(100% more)" in found["memory transactions of values, 4 bits"]["ours"]
    assert found["lines touched of values, 4 bits"]["holds"] is True


def test_on_a_gpu_the_same_rows_decide():
    steps = [
        broken_down("cuda", "cuda", layout, scores=1.0, values=ms)
        for layout, ms in (("row", 10.0), ("transposed", 5.0))
    ]
    row = finding_d(steps)[0]
    assert (row["holds"], row["gpu"]) == (False, "10.00 ms in rows, 5.00 ms transposed: 50% less time")


@pytest.mark.parametrize(("context", "best", "holds"), [(4096, 32, True), (4096, 2, False), (1024, 2, None)])
def test_the_best_number_of_splits(context, best, holds):
    rows = [{"splits": n, "chosen": False, "median_ms": 1.0 if n == best else 2.0} for n in (1, 2, 32)]
    rows.append({"splits": 4, "chosen": True, "median_ms": 1.5})
    (row,) = finding_f([made(mode="splits 1,2,32, batch 1", context=context, tables={"splits": rows})])
    assert row["ours"] == f"CPU, 2 threads: fastest {best} (1.00 ms; 1: 2.00 ms); the backend takes 4 (1.50 ms)"
    assert row["holds"] is holds


def test_a_token_beside_both_exact_caches():
    caches = [{"name": "pqkv", "tpot_ms": 10.0}, {"name": "DynamicCache", "tpot_ms": 21.0},
              {"name": "StaticCache", "tpot_ms": 8.0}]  # fmt: skip
    given = {"mode": "generate", "model": "reference", "tables": {"caches": caches}}
    short, row = finding_g([made("end-to-end", context=n, **given) for n in (4096, 32768)])
    assert short["holds"] is None
    assert "2.10x over a cache grown by torch.cat" in row["ours"] and "0.80x over the strongest" in row["ours"]
    assert row["holds"] is True


def test_parts_are_shares_of_their_sum_and_encoding_is_charged():
    parts = {"whole step": 4.0, "scores": 3.0, "values": 2.0, "sum of parts": 5.0, "flush": 6.4}
    rows = [{"part": name, "median_ms": ms} for name, ms in parts.items()]
    step, encoding = finding_i([made(mode="breakdown, batch 1", tables={"breakdown": rows})])
    assert step["ours"] == "CPU: scores 60%, values 40%; sum of parts 125% of 4.00 ms"
    assert encoding["ours"] == "CPU: 0.100 ms a step, 2.5% of it"  # 6.4 ms for a page of 64 tokens


def test_other_records_are_left_alone():
    other = [made("eval", mode="token"), made("accesses", mode="count", tables={"accesses": access_rows(2)})]
    for letter in "cfgi":
        assert getattr(module, f"finding_{letter}")(other) == []


def test_accesses_are_counted_once_and_found_again(tmp_path):
    from pqkv.record import RecordStore

    store = RecordStore(tmp_path)
    first = module._access_record(4.0, store, False)
    assert module._access_record(4.0, store, False) == first
    assert store.load_all() == [first]
