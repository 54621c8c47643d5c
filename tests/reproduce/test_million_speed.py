"""Findings follow from records: made-up times give the answers that are computed here by hand."""

from pathlib import Path

import pytest
import torch

from pqkv.config import digest_of
from pqkv.errors import ConfigError
from pqkv.record import Record, RecordStore, load_records
from pqkv.reproduce import Request
from pqkv.reproduce.million import layouts, speed, steps, tokens
from pqkv.reproduce.million.layouts import access_rows, finding_d
from pqkv.reproduce.million.lookups import finding_c
from pqkv.reproduce.million.splits import finding_f
from pqkv.reproduce.million.steps import finding_i
from pqkv.reproduce.million.tokens import finding_g
from pqkv.speed import bench
from pqkv.speed.paired import DEQUANTIZED, ratio_of

NAMED = "4 bits, 4096 tokens, 32 heads"


def made(kind="bench", metrics=None, tables=None, started="2025-01", **config):
    config = {
        "model": "32 heads", "bits": 4.0, "context": 4096, "batch": 1, "device": "cpu", "page_size": 64, "threads": 2,
        "key_layout": "transposed", "value_layout": "transposed", "backend": "cpu", **config,
    }  # fmt: skip
    values = {name: {"value": value} for name, value in (metrics or {}).items()}
    return Record(
        kind=kind, config=config, digest=digest_of(config), env={}, git={}, seed=0, status="ok", seconds=1.0,
        started_at=f"{started}-01T00:00:00+00:00", metrics=values, tables=tables or {},
    )  # fmt: skip


def broken_down(
    backend="cpu", device="cpu", layout=("transposed", "transposed"), started="2025-01", given=None, **parts
):
    rows = [{"part": name.replace("_", " "), "median_ms": ms} for name, ms in parts.items()]
    where = {"backend": backend, "device": device, "key_layout": layout[0], "value_layout": layout[1], **(given or {})}
    return made(mode="breakdown, batch 1", tables={"breakdown": rows}, started=started, **where)


def paired(
    mode, steps, bandwidth=None, device="cpu", exact=(("sdpa", 12.0), ("matmul", 20.0)), started="2025-01", **config
):
    """Three rounds: as given, and where the machine is 2 and 10 times slower, which is nothing to the ratios."""
    rows = [{"name": name} for name, _ in exact]
    ways = [{"way": way, "part": "whole step", "bandwidth_fraction": (bandwidth or {}).get(way)} for way in steps]
    samples = {f"{way}: {part.replace('_', ' ')}": [ms, 2 * ms, 10 * ms]
               for way, parts in steps.items() for part, ms in parts.items()}  # fmt: skip
    record = made(mode=f"paired {mode}, batch 1", device=device, backend=device, started=started,
                  tables={"ways": ways, "exact": rows}, **config)  # fmt: skip
    return record.model_copy(update={"samples": samples | {name: [ms, 2 * ms, 10 * ms] for name, ms in exact}})


def test_keys_by_table_cost_their_tables_too():
    steps = {
        "tables": {"key_tables": 2.0, "scores": 1.0, "values": 5.0},
        "centroids": {"query": 0.5, "scores": 2.0, "values": 3.0},
        "as the backend chooses": {"whole_step": 6.0},
    }
    record = paired("look-ups", steps, exact=(("sdpa", 12.0), (DEQUANTIZED, 60.0)))
    record.tables["exact"] = [{"name": "sdpa"}]
    keys, values, decoded = finding_c([record])
    assert keys["ours"] == "CPU: 6.00 ms by table (tables 4.00), 5.00 ms by centroid: 1.20x as long"
    assert values["ours"] == "CPU: 6.00 ms by gather, 10.00 ms by bins: 1.67x as long"
    assert decoded["ours"] == (
        "CPU: 120.0 ms where keys and values are decoded first, 12.00 ms on codes: 10.00x as long; 5.00x as long as "
        "sdpa on what is decoded"
    )
    assert {(row["holds"], row["gpu"]) for row in (keys, values, decoded)} == {(None, None)}  # a CPU cannot say


@pytest.mark.parametrize(("way", "holds"), [("tables", True), ("centroids", False)])
def test_a_gpu_says_how_its_kernel_looks_keys_up(way, holds):
    step = broken_down("cuda", "cuda", **{f"key_{way}": 0.01, "scores": 0.02, "values": 0.04})
    keys, values = finding_c([step, broken_down("cuda", "cuda", exact_pages=1.0, given={"bits": 0.0})])
    assert keys["gpu"] == f"0.030 ms by {way} (before any look-up 0.010): fewer words a look-up, by count"
    assert keys["holds"] is holds
    assert values["gpu"].startswith("0.040 ms by gather") and values["holds"] is None  # there is nothing beside it


ROWS, MIXED, TRANSPOSED = ("row", "row"), ("row", "transposed"), ("transposed", "transposed")


def way(pair):
    return ", ".join(
        f"{side} {'in rows' if layout == 'row' else layout}"
        for side, layout in zip(("keys", "values"), pair, strict=True)
    )


def layouts_of(costs, device="cpu", **config):
    """`costs`: scores, values, whole step and bandwidth by pair of layouts."""
    steps = {way(pair): {"scores": s, "values": v, "whole_step": w} for pair, (s, v, w, _) in costs.items()}
    return paired("layouts", steps, {way(pair): share for pair, (*_, share) in costs.items()}, device, **config)


THREE = {ROWS: (4.0, 10.0, 10.0, 0.1), MIXED: (5.0, 4.0, 5.0, 0.2), TRANSPOSED: (2.5, 3.0, 4.0, 0.3)}


def test_layouts_are_compared_with_the_other_side_kept():
    found = {row["claim"]: row for row in finding_d([layouts_of(THREE)])}
    assert {name: row["ours"] for name, row in found.items()} == {
        f"access to values, keys in rows, {NAMED}": "CPU: 20 ms in rows, 8 ms transposed: 0.40x as long",
        f"access to keys, values transposed, {NAMED}": "CPU: 10 ms in rows, 5 ms transposed: 0.50x as long",
        f"bandwidth, keys in rows, {NAMED}": "CPU: 10% of the copy bandwidth with values in rows, 20% transposed",
        f"speed-up, keys in rows, {NAMED}": "CPU: 1.20x with values in rows, 2.40x transposed, over the fastest exact "
        "attention (sdpa)",
    }
    assert {(row["holds"], row["gpu"]) for row in found.values()} == {(None, None)}  # all claimed of a GPU
    # with (transposed, row) too, values and races are compared with keys transposed as well
    more = finding_d([layouts_of({**THREE, ("transposed", "row"): (2.0, 6.0, 6.0, 0.2)})])
    named = {row["claim"]: row["ours"] for row in more}
    assert named[f"access to values, keys transposed, {NAMED}"].endswith(
        "12 ms in rows, 6 ms transposed: 0.50x as long"
    )
    assert named[f"access to keys, values in rows, {NAMED}"].endswith("8 ms in rows, 4 ms transposed: 0.50x as long")
    assert "20% of the copy bandwidth" in named[f"bandwidth, keys transposed, {NAMED}"]
    assert len(named) == 8


def test_a_ratio_is_the_median_of_rounds_and_not_of_medians():
    """The machine turned slow in the middle of the second way: every round says 2, the medians say 4."""
    assert str(ratio_of([2.0, 2.0, 20.0, 20.0, 20.0], [1.0, 1.0, 10.0, 10.0, 5.0])) == "2.00x"
    found = ratio_of([2.0] * 7, [1.0] * 6 + [4.0])
    assert (found.value, found.low, found.high) == (2.0, 0.5, 2.0)
    with pytest.raises(ValueError, match="longer than"):
        ratio_of([1.0], [1.0, 2.0])  # not of the same rounds


def test_accesses_by_count():
    found = {r["claim"]: r for r in finding_d([made("accesses", mode="count", tables={"accesses": access_rows(4)})])}
    keys = found["memory transactions of keys, 4 bits"]
    assert keys["ours"].startswith("8 in rows, 2 transposed a token (75% fewer)")
    assert keys["holds"] is True
    assert found["memory transactions of values, 4 bits"]["holds"] is False
    assert "(100% more)" in found["memory transactions of values, 4 bits"]["ours"]
    assert found["lines touched of values, 4 bits"]["holds"] is True


@pytest.mark.parametrize(("ms", "holds"), [(5.0, False), (4.04, True)])  # 59.6% is 60%
def test_on_a_gpu_the_same_rows_decide(ms, holds):
    costs = {ROWS: (1.0, 10.0, 10.0, 0.6), MIXED: (1.0, ms, 5.0, 0.94)}
    found = {row["claim"].split(",")[0]: row for row in finding_d([layouts_of(costs, "cuda")])}
    row = found["access to values"]
    assert (row["holds"], row["gpu"]) == (holds, row["ours"].removeprefix("GPU: "))


@pytest.mark.parametrize(("context", "bits", "holds"), [(32768, 4.0, True), (4096, 4.0, None), (32768, 2.0, None)])
def test_a_speed_up_is_judged_where_it_was_claimed(context, bits, holds):
    costs = {ROWS: (1.0, 9.0, 6.0, 0.6), MIXED: (1.0, 9.0, 4.88, 0.94)}
    found = finding_d([layouts_of(costs, "cuda", context=context, bits=bits)])
    bandwidth, speed_up = found[-2:]
    assert (bandwidth["holds"], speed_up["holds"]) == (False, holds)
    assert speed_up["gpu"].startswith("2.00x with values in rows, 2.46x transposed")


def test_records_of_other_machines_and_settings_are_not_mixed():
    old = layouts_of({ROWS: (1.0, 10.0, 9.0, 0.1), MIXED: (1.0, 9.0, 9.0, 0.1)}, machine="slow", repeats=11)
    new = layouts_of({ROWS: (1.0, 2.0, 9.0, 0.1), MIXED: (1.0, 1.0, 9.0, 0.1)}, started="2025-03", machine="fast",
                     repeats=11)  # fmt: skip
    values = [row["ours"] for row in finding_d([new, old]) if row["claim"].startswith("access to values")]
    assert values == ["CPU: 4 ms in rows, 2 ms transposed: 0.50x as long"]
    # each device has a newest record of its own
    on_gpu = layouts_of(THREE, "cuda", started="2025-05", machine="GPU")
    assert len(finding_d([new, on_gpu])) == len(finding_d([new])) + 4


def split(best, own=1.0, started="2025-01", **config):
    rows = [{"splits": n, "asked": n, "chosen": False, "median_ms": 1.0 if n == best else 2.0} for n in (1, 2, 32)]
    rows[-1]["median_ms"] = own
    rows.append({"splits": 4, "asked": None, "chosen": True, "median_ms": 1.5})
    return made(mode="splits 1,2,32, batch 1", tables={"splits": rows}, started=started, **config)


def test_shapes_have_rows_of_their_own():
    """Another page size makes them nothing to compare with the splits of the usual cache."""
    shape = split(2, page_size=16, num_subspaces=32, context=64, started="2025-04")
    shape = shape.model_copy(update={"config": {**shape.config, "mode": "split shapes 1,2,32, batch 1"}})
    rows = finding_f([shape, split(2)])
    assert [row["claim"] for row in rows] == [f"splits, {NAMED}", "splits, M 32, 4 bits, 64 tokens, 32 heads"]


def test_the_best_number_of_splits_on_a_cpu_decides_nothing():
    (row,) = finding_f([split(2, own=2.0)])
    assert row["ours"] == "CPU: 2 threads, fastest 2 (1 ms; 1: 2 ms); the backend takes 4 (1.5 ms)"
    assert (row["holds"], row["gpu"]) == (None, None)


@pytest.mark.parametrize(
    ("context", "own", "holds"), [(4096, 1.05, True), (4096, 1.06, False), (1024, 1.0, None), (64, 1.0, False)]
)
def test_a_gpus_splits_hold_within_five_percent(context, own, holds):
    (row,) = finding_f([split(2, own, context=context, device="cuda", backend="cuda")])
    assert row["holds"] is holds
    assert row["gpu"] == "fastest 2 (1 ms; 1: 2 ms); the backend takes 4 (1.5 ms)"


def generated(own, bits=4.0, context=32768, device="cuda", **config):
    times = {"pqkv": own, "DynamicCache": 21.0, "StaticCache": 8.0}
    caches = [{"name": name, "tpot_ms": ms} for name, ms in times.items()]
    given = {"mode": "generate", "model": "llama-3.1-8b", **config}
    return made("end-to-end", tables={"caches": caches}, bits=bits, context=context, device=device, **given)


def test_a_token_beside_the_strongest_exact_cache():
    exact, other = generated(5.0, bits=0.0), generated(1.0, bits=0.0, context=4096)
    alone, = finding_g([generated(10.0)])  # fmt: skip
    assert "2.10x over a cache grown by torch.cat (21.00 ms), 0.80x over the strongest, StaticCache" in alone["gpu"]
    rows = {row["claim"]: row for row in finding_g([generated(10.0), exact, other])}
    coded = rows["time per token, 4 bits, 32768 tokens, llama-3.1-8b"]
    assert "0.50x over the strongest, exact pages (5.00 ms)" in coded["gpu"]
    assert coded["holds"] is True
    pages = rows["time per token, exact, 32768 tokens, llama-3.1-8b"]
    assert "1.60x over the strongest, StaticCache" in pages["ours"] and pages["holds"] is None


@pytest.mark.parametrize(
    ("given", "holds"),
    [({"own": 10.1}, False), ({"own": 10.0, "bits": 2.0}, None), ({"own": 10.0, "context": 4096}, None),
     ({"own": 10.0, "device": "cpu"}, None)],
)  # fmt: skip
def test_a_token_is_judged_where_it_was_claimed(given, holds):
    (row,) = finding_g([generated(**given)])
    assert row["holds"] is holds
    assert row["ours"].endswith("nothing was claimed of so short contexts") is ("context" in given)


@pytest.mark.parametrize("quick", [True, False])
def test_a_gpu_gets_a_model_and_a_length_that_can_decide(monkeypatch, tmp_path, quick):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tokens, "end_to_end", lambda config, store, **how: asked.append(config) or iter(()))
    assert list(tokens.part_g(Request(RecordStore(tmp_path), quick))) == []
    host, device = asked
    assert (host.model, host.backend, device.backend, device.dtype) == (None, "cpu", "cuda", "float16")
    assert max(host.lengths) <= 8192 and (quick or (0 in host.bits and 0 in device.bits))
    if not quick:
        assert (device.model, device.lengths, set(device.bits)) == ("llama-3.1-8b", (4096, 32768), {0, 4, 2})


def test_quick_layouts_are_three_pairs_that_differ_in_one_side_in_one_cell(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(layouts, "paired_grid", lambda config, name, ways, store, **how: asked.append(ways) or iter(()))
    list(layouts.part_d(Request(RecordStore(tmp_path), quick=True)))
    (ways,) = asked
    assert [tuple(w.given.values()) for w in ways.values()] == [ROWS, MIXED, TRANSPOSED]


def test_bad_values_are_one_line():
    with pytest.raises(ConfigError, match=r"speed parts of million: lengths: .*positive") as raised:
        speed.config_of(True, (0,))
    assert "\n" not in str(raised.value)


def test_records_of_steps_are_found_by_a_run_today(monkeypatch, tmp_path):
    """The cells of part i as a run describes them are those that were kept: codes as the reports have them."""
    asked, kept = [], load_records(Path(__file__).parents[2] / "results" / "million")
    monkeypatch.setattr(steps, "breakdown", lambda config, store, **how: asked.append(config) or iter(()))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    list(steps.part_i(Request(RecordStore(tmp_path))))
    known = {record.digest: record.config for record in kept if record.kind == "bench"}
    (machine,) = {c["machine"] for c in known.values() if c["device"] == "cpu"}
    digests = set()
    for config in asked:
        for context in config.lengths:
            for bits, shape in bench._shapes(config):
                cell = bench.Cell(bits, shape, 1, context)
                described = bench._describe(config, cell, "breakdown", "cpu", 2)
                digests.add(digest_of(described | {"device": "cpu", "machine": machine}))
    assert len(digests) == 6
    assert digests <= known.keys()


def test_parts_are_shares_of_their_sum_and_encoding_is_charged():
    parts = {"whole step": 4.0, "scores": 3.0, "values": 2.0, "sum of parts": 5.0, "flush": 6.4}
    rows = [{"part": name, "median_ms": ms} for name, ms in parts.items()]
    step, encoding = finding_i([made(mode="breakdown, batch 1", tables={"breakdown": rows})])
    assert step["ours"] == "CPU: scores 60%, values 40%; sum of parts 125% of 4.00 ms"
    assert encoding["ours"] == "CPU: 0.100 ms a step, 2.5% of it"  # 6.4 ms for a page of 64 tokens


def test_other_records_are_left_alone():
    other = [made("eval", mode="token"), made("accesses", mode="count", tables={"accesses": access_rows(2)})]
    for finding in (finding_c, finding_f, finding_g, finding_i):
        assert finding(other) == []


def test_accesses_are_counted_once_and_found_again(tmp_path):
    store = RecordStore(tmp_path)
    first = layouts._access_record(4.0, store, False)
    assert layouts._access_record(4.0, store, False) == first
    assert store.load_all() == [first]


def test_other_kernels_are_counted_anew(tmp_path, monkeypatch):
    store = RecordStore(tmp_path)
    first = layouts._access_record(4.0, store, False)
    monkeypatch.setattr(layouts, "_kernels", lambda: "0" * 12)
    second = layouts._access_record(4.0, store, False)
    assert first.digest != second.digest
    assert len(finding_d([first, second])) == 4  # those of the kernels that were counted last
