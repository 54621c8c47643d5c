"""The summary shows each cell once, with where it ran, and does not hide what failed."""

import re

from pqkv.record import Metric
from pqkv.report import write_markdown
from pqkv.report.markdown import markdown


def rows(text):
    return [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]


def test_tables_are_grouped_by_model_and_data(make, grid):
    text = markdown([*grid, make(data="wikitext"), make(model="other|model")])
    assert re.findall("^## (.*)$", text, re.M) == [
        "other\\|model on stdlib: eval", "reference on stdlib: eval", "reference on wikitext: eval",
    ]  # fmt: skip
    assert len(rows(text)) == len(grid) + 2 + 3


def test_headline_columns_carry_intervals(make):
    text = markdown([make()])
    assert rows(text)[0] == (
        "| bits | mode | context | code_bits | effective_bits | coded_share | perplexity | perplexity_exact "
        "| perplexity_ratio | agreement_at_1 | kld_mean | recall | recall_exact |"
    )
    assert "| 1.0050 [1.0042, 1.0063] | 0.9000 [0.8800, 0.9200] | 0.0250 [0.0125, 0.0500] |" in rows(text)[1]


def test_a_column_without_figures_is_left_out_and_a_missing_figure_is_a_dash(make):
    text = markdown([make(metrics={"kld_mean": Metric(value=0.5)}), make(2, metrics={"recall": Metric(value=None)})])
    assert rows(text) == [
        "| bits | mode | context | coded_share | kld_mean |",
        "| 4 | exact-schedule | 512 | 0.64 | 0.500 |",
        "| 2 | exact-schedule | 512 | 0.64 | - |",
    ]


def test_machine_versions_commit_and_notes_stand_below_the_table(make):
    git = {"commit": "0123456789abcdef", "dirty": True}
    text = markdown([make(git=git, notes=["backend cpu is missing: reference was used"])])
    assert "- 2 x AMD EPYC, 24 GiB; Python 3.11.7, pqkv 0.1.0, torch 2.13.0; commit 01234567 with local changes" in text
    assert "- backend cpu is missing: reference was used" in text


def test_speed_has_a_table_of_its_own(make):
    metrics = {"latency_ms": Metric(value=1.5, low=1.4, high=1.6), "speedup": Metric(value=2.0)}
    assert (
        rows(markdown([make(metrics=metrics, kind="bench")]))[0] == "| bits | mode | context | latency_ms | speedup |"
    )


def test_failed_cells_are_listed_with_their_error_and_are_in_no_table(make):
    failure = make(2, error="OutOfPages: `3` pages\n| are needed")
    text = markdown([make(), failure])
    assert "1 cells ran, 1 failed" in text
    assert len(rows(text)) == 2
    entry = text.split("## Failed cells")[1].strip()
    assert entry == (
        f"- reference on stdlib: eval, 2 bits, exact-schedule, context 512 (`{failure.digest}`): "
        "`` OutOfPages: `3` pages | are needed ``"
    )
    assert "Failed cells" not in markdown([make()])


def test_a_variant_column_appears_where_it_is_needed(make):
    assert "variant" not in markdown([make()])
    assert "| residual=64 |" in markdown([make(), make(residual=64)])


def test_a_record_without_known_figures_still_has_its_row(make):
    assert len(rows(markdown([make(metrics={})]))) == 2


def test_the_file_holds_the_text(make, tmp_path):
    path = write_markdown([make()], tmp_path / "new" / "summary.md")
    assert path.read_text(encoding="utf-8") == markdown([make()])
