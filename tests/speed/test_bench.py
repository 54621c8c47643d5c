import importlib
import json

import pytest
import torch

from pqkv.config import SERVED, BenchConfig
from pqkv.cpu_path import CpuPath
from pqkv.errors import ConfigError, KernelError, RecordError, memory_is_short
from pqkv.kernels import ChosenBackend, get_backend, register_backend, registry
from pqkv.record import Metric, RecordStore
from pqkv.report import to_frame, write_report
from pqkv.speed import check, synthetic, timing
from pqkv.speed.baselines import FORMS
from pqkv.speed.bench import bench, break_even, device_of
from pqkv.speed.check import relative_error
from pqkv.speed.encoding import encoding_contestants
from pqkv.speed.synthetic import decode_inputs, key_book, lengths_of

module = importlib.import_module("pqkv.speed.bench")
TINY = {"heads": 4, "kv_heads": 2, "head_dim": 16, "lengths": (40, 300), "repeats": 7, "backend": "reference"}


@pytest.fixture(autouse=True)
def little_cache(monkeypatch):
    """Two buffers of a tiny cache are beyond it, and the number of threads stays the tests' own."""
    monkeypatch.setattr(timing, "last_level_cache", lambda *_: 4096)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)


def config(**more):
    return BenchConfig.parse({**TINY, **more})


def test_a_cell_holds_times_ratios_and_their_samples():
    records = list(bench(config(bits=(4, 0))))
    assert [(r.config["context"], r.config["bits"]) for r in records] == [(40, 4), (40, 0), (300, 4), (300, 0)]
    for record in records:
        assert record.status == "ok"
        rows = {row["name"]: row for row in record.tables["contestants"]}
        assert set(rows) == {"pqkv", *FORMS}
        strongest = min(row["median_ms"] for name, row in rows.items() if name != "pqkv")
        m = {name: metric.value for name, metric in record.metrics.items()}
        assert (m["latency_ms"], m["exact_latency_ms"]) == (rows["pqkv"]["median_ms"], strongest)
        assert record.metrics["speedup"].low <= m["speedup"] <= record.metrics["speedup"].high
        assert m["bandwidth_gbs"] == pytest.approx(m["cache_bytes"] / (m["latency_ms"] * 1e6))
        assert len(record.samples["pqkv"]) == 7
        assert ("encode_tokens_per_s" in m) == (record.config["bits"] == 4)
    assert {row["name"] for row in records[0].tables["encoding"]} == {"pqkv", "faiss sa_encode"}


def test_records_are_kept_found_again_and_reported(tmp_path):
    store = RecordStore(tmp_path)
    first = list(bench(config(), store))
    assert list(bench(config(), store)) == first
    assert len(list(bench(config(lengths=(40, 60, 300)), store))) == 6
    assert to_frame(first)["speedup"].notna().all()
    write_report(first, tmp_path / "report")
    assert "speedup" in (tmp_path / "report" / "summary.md").read_text()


def test_a_wrong_backend_gets_no_time(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    right = get_backend("reference")

    def wrong(query, *parts, **more):
        out, lse = right(query, *parts, **more)
        return out * 1.01, lse

    register_backend("wrong", lambda: wrong)
    (record,) = bench(config(backend="wrong", lengths=(100,), bits=(4,)))
    assert record.status == "failed"
    assert "wrong result: relative error 1.0e-02 is above 1e-04" in record.error
    assert not record.metrics


@pytest.mark.parametrize("fault", [float("nan"), float("inf")])
def test_an_output_that_is_not_a_number_is_wrong(fault):
    case = decode_inputs(config(), 50, 1, (8, 8), 0)

    def broken(query, *parts, **more):
        out, lse = get_backend("reference")(query, *parts, **more)
        out[..., 0] = fault
        return out, lse

    assert relative_error(broken, case, 0.25, None) == float("inf")


@pytest.mark.xdist_group("numba")
@pytest.mark.parametrize("shape", [(8, 8), (16, 4), None])
@pytest.mark.parametrize("window", [None, 30])
def test_the_cpu_backend_is_right_on_what_is_timed(shape, window):
    own = config(sink_tokens=3, page_size=16, residual=32, batch=(3,), ragged=True)
    case = decode_inputs(own, 200, 3, shape, 1)
    assert relative_error(get_backend("cpu"), case, 0.25, window) <= 1e-5


def test_a_case_is_the_cache_that_decoding_would_have():
    own = config(page_size=16, residual=32, sink_tokens=3, served=())
    case = decode_inputs(own, 100, 1, (8, 8), 0)
    # 99 tokens are cached when the 100th comes: (99 - 3 - 32 + 16) // 16 = 5 pages are sealed
    assert case.pages.context_len.tolist() == [80]
    assert case.sinks.length.tolist() == [3]
    assert case.residual.length.tolist() == [17]
    page = 2 * 2 * 8 * 16  # both sides, two heads, 8 codes of 16 tokens
    books = 2 * 2 * (256 * 16 * 4 + 16 * 8)  # centroids, and the order of channels
    assert case.nbytes == 5 * page + books + 20 * 2 * 2 * 16 * 4
    assert case.read == case.nbytes
    # a window of 40 tokens: the residual and 23 in pages
    seen = decode_inputs(own.model_copy(update={"window": 40}), 100, 1, (8, 8), 0)
    assert (seen.nbytes, seen.read) == (case.nbytes, 23 * page // 16 + books + 17 * 2 * 2 * 16 * 4)
    served = decode_inputs(config(page_size=16, residual=32, sink_tokens=3), 100, 1, (8, 8), 0)
    keys = 256 * 16 + 16 * 4 + 2 * 16 * 16 * 2 + 16 * 4  # int8 and scales, F and its inverse in 16 bits, the mean
    values = 256 * 2 * 4 + 2 * 4  # one codebook for all, and a middle gain a head
    assert served.nbytes == 5 * (page + 2 * 16) + 2 * keys + values + 20 * 2 * 2 * 16 * 4
    exact = decode_inputs(own, 100, 1, None, 0)
    assert exact.pages.context_len.tolist() == [100]
    assert exact.nbytes == int(100 / 16 * (2 * 2 * 16 * 16 * 4))


def test_made_up_frames_keep_the_length_of_queries():
    """Scores eleven times too large, as a frame of plain normal numbers made them, are beyond what float16 resolves."""
    case = decode_inputs(config(heads=32, kv_heads=8, head_dim=128), 100, 1, (64, 8), 0)
    assert case.pages.query is not None
    ratio = case.pages.query.query.norm(dim=-1) / case.query.norm(dim=-1)
    assert 0.9 < float(ratio.mean()) < 1.1


def test_ragged_lengths_span_an_eighth_to_the_whole():
    assert lengths_of(8, 1000, True)[0] == 125
    assert lengths_of(8, 1000, True)[-1] == 1000
    assert lengths_of(8, 1000, False) == [1000] * 8
    assert lengths_of(1, 1000, True) == [1000]


@pytest.mark.parametrize("served", [(), SERVED], ids=["product codes", "served"])
def test_faiss_and_pqkv_encode_to_the_same_codes(served):
    """The search is the same; what ours does before it FAISS finds done."""
    own = config(page_size=64, key_layout="row", served=served)
    ours, theirs = encoding_contestants(own, (8, 8))
    pages = ours.calls[0]()  # (1, pages, heads, 64, 8)
    codes = torch.cat([pages[0, i] for i in range(pages.shape[1])], 1)  # (heads, tokens, 8)
    centroids = key_book(own, (8, 8), torch.Generator().manual_seed(own.seed)).float_centroids()  # int8 makes twins
    for of_head, head, expected in zip(centroids, codes, theirs.calls[0](), strict=True):
        chosen, other = (of_head[torch.arange(8), torch.as_tensor(found).long()] for found in (head, expected))
        assert (chosen == other).all(-1).float().mean() > 0.999  # ties aside


def test_break_even_lies_between_the_lengths_around_it(tmp_path):
    records = list(bench(config(lengths=(100, 200, 400), bits=(4,))))

    def with_speedups(*values):
        return [
            r.model_copy(update={"metrics": r.metrics | {"speedup": Metric(value=v)}})
            for r, v in zip(records, values, strict=True)
        ]

    assert break_even(with_speedups(0.5, 2.0, 3.0)) == pytest.approx(100 * 2**0.5)
    assert break_even(with_speedups(2.0, 0.5, 2.0)) == pytest.approx(200 * 2**0.5)
    assert break_even(with_speedups(1.5, 2.0, 3.0)) == 100
    assert break_even(with_speedups(0.5, 0.6, 0.7)) is None
    assert break_even([]) is None


def test_geometry_that_cannot_be_is_refused():
    for wrong, message in (
        ({"heads": 6, "kv_heads": 4}, "multiple of kv_heads"),
        ({"lengths": ()}, "at least one is needed"),
        ({"batch": (0,)}, "must be positive"),
        ({"num_subspaces": 8}, "go together"),
        ({"bits": ()}, "at least one is needed"),
        ({"residual": 32}, "smaller than page_size"),
    ):
        with pytest.raises(ConfigError, match=message):
            config(**wrong)
    with pytest.raises(ConfigError, match="not divisible"):
        list(bench(config(num_subspaces=5, nbits=8, bits=())))


@pytest.mark.parametrize(("words", "cause"), [
    (["--bits", "4", "--num-subspaces", "16", "--nbits", "8"], "give one or the other"),
    (["--static", "--breakdown"], "--breakdown and --static are kinds of bench of their own"),
    (["--static", "--end-to-end"], "--end-to-end and --static are kinds of bench of their own"),
    (["--breakdown", "--end-to-end"], "--breakdown and --end-to-end are kinds of bench of their own"),
    (["--gpu", "h200"], "--gpu names the GPU that --static predicts for"),
    (["--new-tokens", "10"], "--new-tokens are decoded --end-to-end"),
    (["--end-to-end", "--heads", "8"], "--heads does not go with --end-to-end"),
    (["--end-to-end", "--window", "8"], "--window does not go with --end-to-end"),
    (["--end-to-end", "--ragged"], "--ragged does not go with --end-to-end"),
    (["--threads", "999"], "threads: 999 are more than the"),
    (["--lengths", "100000000000000000000"], "is beyond the"),
    (["--static", "--gpu", "nope"], "unknown GPU 'nope'"),
])  # fmt: skip
def test_what_would_not_be_heeded_is_refused_in_one_line(capsys, words, cause):
    from pqkv_cli.main import main

    with pytest.raises(SystemExit) as ended:
        main(["bench", *words])
    err = capsys.readouterr().err.strip()
    assert ended.value.code == 2
    assert err.startswith("error: ") and "\n" not in err
    assert cause in err


def test_records_do_not_go_into_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="is a file; records need a folder of their own"):
        list(bench(config(bits=(4,)), RecordStore(tmp_path / "file")))


@pytest.mark.parametrize("text", ["[CUDA_ERROR_OUT_OF_MEMORY] Call to cuMemAlloc", "CUDA out of memory. Tried"])
def test_drivers_words_for_too_little_memory_are_known(text):
    assert memory_is_short(RuntimeError(text))


def test_a_cell_that_memory_does_not_hold_is_recorded_and_the_grid_goes_on(monkeypatch):

    def short_of_memory(config, context, *rest):
        if context == 40:
            raise MemoryError
        return synthetic.decode_inputs(config, context, *rest)

    monkeypatch.setattr(module, "decode_inputs", short_of_memory)
    short, fine = bench(config(bits=(4,)))
    assert (short.status, short.error, fine.status) == ("failed", "MemoryError", "ok")


def test_the_command_prints_a_table_and_json(capsys, tmp_path):
    from pqkv_cli.main import main

    words = ["bench", "--backend", "reference", "--heads", "4", "--kv-heads", "2", "--head-dim", "16", "--repeats", "6"]
    words += ["--lengths", "40,80", "--bits", "4", "-o", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "fastest exact" in out
    assert "than exact attention" in out
    with pytest.raises(SystemExit):
        main([*words, "--format", "json"])
    assert [r["kind"] for r in json.loads(capsys.readouterr().out)] == ["bench", "bench"]
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--heads", "5", "--kv-heads", "2"])
    assert ended.value.code == 2
    assert "multiple of kv_heads" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_before_anything_runs():
    for settings in ({"device": "cuda"}, {"backend": "cuda", "fallback": False}):
        with pytest.raises(KernelError, match="torch finds no NVIDIA GPU"):
            device_of(BenchConfig(**settings))
    assert device_of(BenchConfig(backend="cuda")).type == "cpu"
    assert device_of(BenchConfig()).type == "cpu"


@pytest.mark.parametrize(
    ("change", "path", "note"),
    [
        ({"served": ("int8",), "bits": (3,)}, "avx2", None),
        ({"served": ("int8",), "bits": (4,)}, None, "path 'avx2' has no byte tables for codes of 8 bits"),
        ({"served": (), "bits": (3,)}, None, None),  # centroids of floats
        ({"bits": (3,)}, None, "values share one codebook of floats"),  # all of recipe pqkv
        ({"bits": (3,), "backend": "cpu-bytes"}, "avx2", None),
        ({"served": (), "bits": (3,), "backend": "cpu-bytes"}, "avx2", None),
        ({"served": (), "bits": (3,), "backend": "cpu-8bit"}, "avx2", None),
        ({"served": ("int8",), "bits": (3,), "key_layout": "row"}, None, "pages of rows"),
        ({"served": ("int8",), "bits": (3,), "heads": 36, "kv_heads": 4}, "avx2", None),
        ({"served": ("int8",), "bits": (3,), "heads": 44, "kv_heads": 4}, None, "11 query heads share a KV head"),
        ({"served": (), "bits": (3,), "page_size": 48, "backend": "cpu-8bit"}, None, "pages of 48 tokens"),
        ({"served": ("int8",), "bits": (3,), "backend": "reference"}, None, None),
    ],
)
def test_a_cell_says_its_path_where_codes_are_looked_up_in_bytes(change, path, note, monkeypatch):
    """And why not, where centroids are bytes."""
    monkeypatch.setattr(module, "cpu_path", lambda: CpuPath("avx2", "a test"))
    monkeypatch.setattr(module, "run_cell", lambda measure, *, config, notes, **rest: (config, notes))
    config = BenchConfig(lengths=(64,), backend="cpu").model_copy(update=change)
    ((described, notes),) = module.bench(config)
    assert described.get("cpu_path") == path
    assert len(notes) == (note is not None)
    assert all(f"as floats: {note}" in said for said in notes)


def test_a_backend_of_bytes_is_held_to_rounded_centroids_only_where_it_looks_up_bytes(monkeypatch):
    """Pages of 48 tokens go by floats, as they are; `reference` rounds nothing in either case."""
    monkeypatch.setattr(check, "cpu_path", lambda: CpuPath("avx2", "a test"))
    unrounded = ChosenBackend("cpu-bytes", get_backend("reference"))

    def case(page_size):
        asked = config(served=(), head_dim=32, page_size=page_size)
        return decode_inputs(asked, 300, 1, (8, 4), 0, torch.device("cpu"))

    error, limit = check.check_backend(unrounded, case(48), 0.2, None)
    assert error < 1e-5 < limit == check.TOLERANCE[torch.float32]
    with pytest.raises(KernelError, match="wrong result"):
        check.check_backend(unrounded, case(64), 0.2, None)
