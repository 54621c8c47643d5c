"""Tables of real records at every width and in every encoding: no figure is cut, and nothing fails to print."""

import io
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from pqkv_cli.bench import _table as bench_table
from pqkv_cli.breakdown import breakdown_table
from pqkv_cli.end_to_end import end_to_end_table
from pqkv_cli.env import env
from pqkv_cli.output import console, make_encodable
from pqkv_cli.static import _print as print_static
from pqkv_cli.table import print_table
from pqkv_cli.verdict import print_verdict
from rich.cells import cell_len

from pqkv.record import load_records

RESULTS = Path(__file__).parents[2] / "results"
WIDTHS = [20, 30, 40, 60, 80, 100, 130]


def named(folder, wanted):
    """Three records of `folder` that are `wanted`."""
    return [record for record in load_records(RESULTS / folder) if wanted(record)][:3]


TABLES = {
    "eval": lambda: print_verdict(load_records(RESULTS / "demo")),
    "bench": lambda: bench_table(named("bench", lambda record: record.kind == "bench")),
    "breakdown": lambda: breakdown_table(named("million", lambda record: "breakdown" in record.tables)),
    "end-to-end": lambda: end_to_end_table(named("million", lambda record: record.kind == "end-to-end")),
    "static": lambda: print_static(named("static", lambda record: True), "h100", None),
    "env": env,
}


@pytest.fixture
def printed(monkeypatch):
    """What a function prints at a width in an encoding."""

    def of(show, width, encoding="utf-8"):
        monkeypatch.setenv("COLUMNS", str(width))
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", out)
        make_encodable()
        show()
        out.flush()
        return out.buffer.getvalue().decode(encoding)

    return of


def figures(text):
    """Every figure in `text`, with its count."""
    return Counter(re.findall(r"[-+]?\d[\d.,]*%?", text))


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
@pytest.mark.parametrize("name", TABLES)
def test_no_figure_is_cut_at_any_width_in_any_encoding(printed, name, encoding):
    whole = figures(printed(TABLES[name], 1000))
    assert whole
    for width in WIDTHS:
        text = printed(TABLES[name], width, encoding)
        assert not whole - figures(text), f"at {width} columns"
        assert "..." not in text
        assert "\u2026" not in text


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("width", [40, 60, 80, 100, 130])
def test_no_line_is_wider_than_the_terminal_but_for_a_word_that_is(printed, name, width):
    for line in printed(TABLES[name], width).splitlines():
        assert cell_len(line) <= width or max(map(len, line.split())) > width - 20, line


def show(rows, **settings):
    print_table(console(), ("mode", "PPL ratio", "KLD, nats"), rows, title="a title", words=("mode",), **settings)


ROWS = [["exact-schedule", "1.0018\n[1.0001, 1.0035]", "0.0016"], ["token", "1.0042", ""]]


def test_a_table_that_fits_stands_in_columns(printed):
    lines = printed(lambda: show(ROWS), 60).splitlines()
    assert [line.split() for line in lines if "exact" in line or "token" in line] == [
        ["exact-schedule", "1.0018", "0.0016"],
        ["token", "1.0042"],
    ]


def test_one_that_nearly_fits_is_broken_between_figures_and_words(printed):
    assert [line.rstrip() for line in printed(lambda: show(ROWS), 25, "ascii").splitlines()] == [
        "        a title",
        "        |     PPL|  KLD,",
        "mode    |   ratio|  nats",
        "--------+--------+------",
        "exact-  |  1.0018|0.0016",
        "schedule|[1.0001,|",
        "        | 1.0035]|",
        "token   |  1.0042|",
    ]


def test_one_that_does_not_fit_becomes_a_list_for_each_row_without_empty_values(printed):
    assert printed(lambda: show(ROWS, caption="a caption of some length"), 22).splitlines() == [
        "a title",
        "",
        "mode       exact-schedule",
        "PPL ratio  1.0018",
        "           [1.0001,",
        "           1.0035]",
        "KLD, nats  0.0016",
        "",
        "mode       token",
        "PPL ratio  1.0042",
        "",
        "a caption of some",
        "length",
    ]


def test_a_column_that_no_row_has_is_left_out(printed):
    rows = [["token", "1.0042", ""], ["chunk", "1.0016", ""]]
    assert "KLD" not in printed(lambda: show(rows), 60)


def test_names_are_printed_as_they_are_and_do_not_shift_the_columns(printed):
    rows = [["[bold]caf\u00e9[/x] :smile:", "1.5", "2"], ["token", "1.5", "2"]]
    text = printed(lambda: show(rows), 80, "ascii")
    assert "[bold]caf\\xe9[/x] :smile:" in text
    assert len({line.index("1.5") for line in text.splitlines() if "1.5" in line}) == 1
