"""How much of what rows see is codes: counted in every run, and nothing is said of codes where there are none."""

import pytest
from grids import run
from models import random_ids, sampled_books, tiny_lm

from pqkv.config import CacheConfig, EvalConfig
from pqkv.derived import nothing_coded
from pqkv.errors import ConfigError
from pqkv.lm.plugin import Attended
from pqkv.quality.cells import check_something_coded
from pqkv.quality.modes import run_coded
from pqkv.record import load_records
from pqkv.report.frame import to_frame
from pqkv.report.plots import plots_of
from pqkv.schedule import coded_share, share_of_config

MODES = ("exact-schedule", "token", "chunk", "decode", "all-coded")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("context", [60, 150])
def test_what_is_counted_is_what_the_schedule_says(base, mode, context):
    grid = {**base, "mode": (mode,), "context": (context,), "chunk_size": 23, "decode_tokens": 31, "metrics": ("kld",)}
    (record,) = run(grid)
    assert record.metrics["coded_share"].value == pytest.approx(share_of_config(record.config), rel=1e-12)
    steps = {"token": context, "chunk": -(-context // 23), "decode": 31}.get(mode, 1)
    assert record.tables["layers"] == [{"coded": 2, "total": 2, "attend_calls": 2 * steps}]  # both windows at once


def test_only_attention_through_the_cache_of_the_cell_counts(base):
    """Neither the control's codes nor the exact cache's."""
    plain = run({**base, "metrics": ("kld",)})[0]
    controlled = run({**base, "metrics": ("kld",), "control": True})[0]
    assert controlled.tables["layers"] == plain.tables["layers"]
    assert controlled.metrics["coded_share"] == plain.metrics["coded_share"]


def test_the_exact_cache_has_no_coded_columns(base):
    (record,) = run({**base, "codebooks": (), "bits": (0,), "mode": ("token",), "metrics": ("kld",)})
    assert record.metrics["coded_share"].value == 0
    assert not nothing_coded(record)  # it was to have none
    assert not any("nothing was coded" in note for note in record.notes)


@pytest.mark.parametrize("mode", ["exact-schedule", "token", "chunk", "decode"])
def test_a_cell_without_a_code_is_marked_wherever_it_is_shown(base, mode):
    grid = {
        **base,
        "mode": (mode,),
        "context": (36, 150),
        "decode_tokens": 20,
        "chunk_size": 40,
        "metrics": ("perplexity", "kld", "agreement"),
    }
    short, long = run(grid)
    assert nothing_coded(short)
    assert not nothing_coded(long)
    assert any(note.startswith("nothing was coded: at 36 tokens") for note in short.notes)
    frame = to_frame([short, long])
    assert list(frame.sort_values("context")["coded_share"] == 0) == [True, False]
    for plot in plots_of([short, long]):
        assert all(point.x != 36 for line in plot.lines for point in line.points if "context" in plot.name)


def test_the_verdict_praises_no_cell_without_codes(base, capsys):
    from pqkv_cli.verdict import print_verdict, verdicts

    records = run({**base, "context": (36, 150), "metrics": ("perplexity", "agreement", "kld")})
    (praise,) = verdicts(records)
    assert " at 150 tokens (exact-schedule): perplexity" in praise
    (line,) = verdicts(records[:1])
    assert "nothing was coded" in line
    assert "within" not in line
    print_verdict(records)
    row = next(line for line in capsys.readouterr().out.splitlines() if " 36 " in line)
    assert "nothing" in row
    assert "100" not in row


def test_a_grid_in_which_nothing_can_be_coded_is_refused_before_work():
    nothing = [
        {"context": (128, 100), "mode": ("token",)},
        {"context": (200,), "mode": ("chunk",)},
        {"context": (128,)},
    ]
    for values in nothing:
        with pytest.raises(ConfigError, match=r"codes nothing .* coding starts at 132; raise --context"):
            check_something_coded(EvalConfig(**values))
    something = [
        {"context": (128, 512)}, {"context": (128,), "mode": ("all-coded",)}, {"context": (133,)},
        {"context": (128,), "bits": (0,), "mode": ("token",)}, {"context": (128,), "residual": 64},
    ]  # fmt: skip
    for values in something:
        check_something_coded(EvalConfig(**values))


def test_coding_starts_where_the_refusal_says():
    cache = {"page_size": 64, "residual": 128, "sink_tokens": 4, "chunk_size": 1, "decode_tokens": 1}
    assert coded_share("token", 132, **cache) == 0
    assert coded_share("token", 133, **cache) > 0


def test_records_of_before_say_their_share_by_their_configuration():
    """Every evaluation in the results: none that was to show codes is taken for one that did where it had none."""
    found = [record for record in load_records("results") if record.kind == "eval" and record.config["bits"]]
    found = [record for record in found if "floor" not in record.config]  # of exact caches that are rounded
    assert found
    for record in found:
        share = share_of_config(record.config)
        if record.config.get("window") or record.config.get("keep"):  # newer, and no formula says it
            assert share is None
            assert 0 < record.metrics["coded_share"].value < 1
            continue
        assert share is not None
        assert nothing_coded(record) == (share == 0)
        assert (share == 0) == (record.config["mode"] == "decode" and record.config["context"] < 133)


def test_every_step_of_every_layer_is_counted():
    lm = tiny_lm()
    books, attended = sampled_books(lm), Attended()
    run_coded(
        lm, random_ids(50), books, CacheConfig(page_size=16, residual=32), "chunk", chunk_size=10, attended=attended
    )
    assert attended.calls == 5 * 3
