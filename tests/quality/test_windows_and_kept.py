"""`pqkv eval` through a window and on a kept share: modes agree, records say it, sizes are those of what is held."""

import pytest
from grids import run

from pqkv.config import EvalConfig
from pqkv.errors import ConfigError
from pqkv.report.series import mode_name
from pqkv.schedule import share_of_config


def test_modes_through_a_window_agree(base):
    """The schedule in one forward and the real cache token by token: the same losses, exact and coded."""
    wanted = {
        **base,
        "metrics": ("kld", "perplexity"),
        "window": 40,
        "window_sinks": 2,
        "residual": 16,
        "page_size": 16,
    }
    schedule, token = (
        {record.config["bits"]: record for record in run({**wanted, "mode": (mode,), "bits": (0, 4), "codebooks": ()})}
        for mode in ("exact-schedule", "token")
    )
    assert set(schedule) == set(token)
    for bits, record in schedule.items():
        other = token[bits]
        assert record.metrics["kld_mean"].value == pytest.approx(other.metrics["kld_mean"].value, rel=1e-3, abs=1e-6)
        assert (record.config["window"], record.config["window_sinks"]) == (40, 2)
        assert mode_name(record.config) == "exact-schedule, window 40 + 2"
        assert share_of_config(record.config) is None
        if bits:
            share = record.metrics["coded_share"].value
            assert 0 < share < 1
            assert share == pytest.approx(other.metrics["coded_share"].value, rel=1e-9)
    wide = run({**base, "metrics": ("kld",), "residual": 16, "page_size": 16, "mode": ("exact-schedule",)})[0]
    assert "window" not in wide.config
    exact = schedule[0.0].metrics["cache_bytes"].value
    assert exact < schedule[0.0].metrics["cache_bytes_exact"].value  # of what the window holds


def test_a_kept_share_is_measured_where_a_prefill_is(base):
    wanted = {**base, "metrics": ("kld",), "mode": ("decode",), "decode_tokens": 8, "bits": (0,), "codebooks": ()}
    (whole,) = run(wanted)
    found = {
        policy: run({**wanted, "keep": policy, "keep_share": 0.5, "window_sinks": 2})[0]
        for policy in ("recent", "random", "attention-sum")
    }
    assert whole.metrics["kld_mean"].value < 1e-6
    for policy, record in found.items():
        assert record.metrics["kld_mean"].value > 1e-3
        assert mode_name(record.config) == f"decode, keep {policy} 0.5 + 2"
        assert record.metrics["cache_bytes"].value < 0.7 * whole.metrics["cache_bytes"].value
    assert len({record.metrics["kld_mean"].value for record in found.values()}) == 3


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"keep": "recent", "keep_share": 0.5}, "--mode decode"),
        ({"keep": "recent", "mode": ("decode",)}, "keep_share"),
        ({"window_sinks": 3}, "give one of them"),
        ({"window": 100, "window_sinks": 9}, "stays exact"),
        ({"window": 100, "paged": False}, "paged"),
        ({"bits": (0,), "mode": ("all-coded",), "window": 100}, "bits 0"),
        ({"window": 0}, "window"),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(values, said):
    with pytest.raises(ConfigError, match=said) as caught:
        EvalConfig.parse(values)
    assert "\n" not in str(caught.value)
