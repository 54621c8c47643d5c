"""A plot appears when there is data for it, and shows these records only."""

from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure
from PIL import Image

from pqkv.errors import RecordError
from pqkv.record import Metric, load_records
from pqkv.report import write_plots
from pqkv.report.axes import tokens
from pqkv.report.drawing import draw, draw_panel
from pqkv.report.looks import legend
from pqkv.report.plot import Line, Plot, Point
from pqkv.report.plots import FRONT, plots_of

ALL = [
    "perplexity_ratio_by_context", "kld_mean_by_context", "agreement_at_1_by_context", "recall_by_context",
    "kld_mean_by_position", "perplexity_ratio_by_code_bits", "kld_mean_by_code_bits", "agreement_at_1_by_code_bits",
]  # fmt: skip


def names(paths):
    return [path.stem for path in paths]


def test_a_full_grid_gives_every_plot_as_png(grid, tmp_path):
    paths = write_plots(grid, tmp_path)
    assert names(paths) == ALL
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert "Software" not in image.info
            assert image.info["dpi"] == pytest.approx((144, 144), abs=0.1)
            assert len(image.getcolors(1 << 24)) > 10


def test_a_plot_without_data_is_not_written(make, tmp_path):
    one = make(metrics={"kld_mean": Metric(value=0.1), "recall": Metric(value=None)}, tables={})
    assert names(write_plots([one], tmp_path)) == ["kld_mean_by_context"]
    assert write_plots([make(error="broken")], tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_several_bits_are_needed_to_plot_against_them(make, tmp_path):
    assert not [name for name in names(write_plots([make(), make(context=2048)], tmp_path)) if "code_bits" in name]


def test_a_plot_left_by_other_records_is_removed_and_nothing_else_is(make, grid, tmp_path):
    (tmp_path / "mine.png").write_bytes(b"")
    write_plots(grid, tmp_path)
    left = write_plots([make(metrics={"recall": Metric(value=1.0)}, tables={})], tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([*left, tmp_path / "mine.png"])


def test_divergences_of_zero_do_not_break_the_logarithmic_axis(make, tmp_path):
    zero = make(metrics={"kld_mean": Metric(value=0.0, low=0.0, high=0.0)}, tables={})
    assert write_plots([zero], tmp_path) == []
    near = make(2, metrics={"kld_mean": Metric(value=1e-9, low=-1e-9, high=2e-9)}, tables={})
    other = make(data="wikitext", mode="token", metrics={"kld_mean": Metric(value=0.0)}, tables={})
    assert names(write_plots([zero, near, other], tmp_path)) == ["kld_mean_by_context"]


def test_a_users_matplotlib_settings_do_not_change_the_picture(grid, tmp_path):
    before = [path.read_bytes() for path in write_plots(grid, tmp_path)]
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "black", "savefig.dpi": 10}):
        after = [path.read_bytes() for path in write_plots(grid, tmp_path)]
        assert mpl.rcParams["font.size"] == 30
    assert before == after


def test_rows_with_gaps_are_skipped(make, tmp_path):
    rows = [{"start": 0, "end": 128, "kld_mean": None}, {"end": 256, "kld_mean": 0.1}]
    paths = write_plots([make(tables={"by_position": rows})], tmp_path)
    assert "kld_mean_by_position" not in names(paths)


def test_more_lines_than_colours_and_markers_can_be_drawn():
    lines = tuple(
        Line(f"panel {n % 3}", str(n), f"mode {n}", f"variant {n}, " + "long" * 20, (Point(512, n + 1.0),))
        for n in range(30)
    )
    plot = Plot("name", "title", "x", "y", lines, "bits", tuple(map(str, range(30))), log_x=True, x_ticks=(512.0,))
    assert draw(plot).startswith(b"\x89PNG")


def test_a_folder_that_cannot_be_written_is_one_line(grid, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    with pytest.raises(RecordError, match="cannot write"):
        write_plots(grid, blocker / "plots")


def test_token_counts_are_short():
    assert [tokens(count) for count in (64, 1000, 1024, 1536, 131072)] == ["64", "1000", "1K", "1536", "128K"]


def test_all_records_that_are_committed_make_plots():
    """Kinds that experiments have of their own stand among them: the report page is made of everything."""
    records = load_records([Path(__file__).parents[2] / "results"])
    assert any(isinstance(record.config.get("bits"), list) for record in records)
    assert any(plot.lines for plot in plots_of(records))


def coded(make, name, bits, kld, **more):
    part = {"codec": name, "bits": bits}
    metrics = {"kld_mean": Metric(value=kld), "code_bits": Metric(value=float(bits))}
    return make(bits, codec={"keys": part, "values": part}, metrics=metrics, tables={}, **more)


def test_ways_of_coding_have_a_panel_a_context_with_those_that_nothing_beats(make, tmp_path):
    cells = [("kivi", 4, 0.02), ("kivi", 2, 0.3), ("turboquant", 4, 0.03), ("turboquant", 2, 0.2), ("int", 3, 0.4)]
    records = [coded(make, *cell) for cell in cells] + [coded(make, "kivi", 4, 0.1, context=2048)]
    (plot,) = (plot for plot in plots_of(records) if plot.name == "kld_mean_pareto")
    assert {line.panel.rsplit(", ", 1)[1] for line in plot.lines} == {"512 tokens"}  # one way alone is no choice
    found = {line.hue: [(point.x, point.y) for point in line.points] for line in plot.lines}
    assert found == {
        "int": [(3, 0.4)], "kivi": [(2, 0.3), (4, 0.02)], "turboquant": [(2, 0.2), (4, 0.03)],
        FRONT: [(2, 0.2), (4, 0.02)],
    }  # fmt: skip
    assert "kld_mean_pareto" in names(write_plots(records, tmp_path))
    axes = Figure().add_subplot()
    draw_panel(plot, plot.lines[0].panel, axes)
    assert sorted(x for line in axes.lines for x in line.get_xdata()) == [2, 2, 2, 3, 4, 4, 4]  # measured: not moved
    low, high = axes.get_xlim()
    assert sum(low <= tick <= high for tick in axes.get_xticks()) >= 3
    (colours,) = legend(plot, list(plot.lines))
    assert [sample.label for sample in colours.samples] == [FRONT, "int", "kivi", "turboquant"]


def test_times_per_token_are_lines_over_length(make, tmp_path):
    records = [
        make(bits, "generate", context, kind="end-to-end", metrics={"tpot_ms": Metric(value=bits + context)})
        for bits in (4, 2) for context in (512, 2048)
    ]  # fmt: skip
    (plot,) = (plot for plot in plots_of(records) if plot.name == "tpot_ms_by_context")
    assert [[(p.x, p.y) for p in line.points] for line in plot.lines] == [
        [(512, 516), (2048, 2052)], [(512, 514), (2048, 2050)],
    ]  # fmt: skip
