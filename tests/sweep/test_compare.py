"""Two folders cell by cell: what is matched, what is told, and what a build fails for."""

import json

import numpy as np
import pytest
from pqkv_cli.main import main
from sweep_made import bench_record, eval_record, folder_of

from pqkv.errors import RecordError
from pqkv.sweep.change import change
from pqkv.sweep.compare import compare
from pqkv.sweep.student import t_quantile

WINDOWS = np.random.default_rng(0).gamma(4.0, 0.01, 16)  # KLD of windows scatters by half its mean


def kld_of(found):
    return {pair.label: one for pair in found.pairs for one in pair.changes if one.metric == "kld_mean"}


def test_a_paired_regression_of_2_per_cent_is_told_though_windows_scatter_by_half(tmp_path):
    noise = 1 + 0.004 * np.random.default_rng(1).standard_normal(16)
    a = folder_of(tmp_path / "a", eval_record(WINDOWS), eval_record(WINDOWS, context=1024))
    b = folder_of(
        tmp_path / "b", eval_record(WINDOWS * 1.02 * noise, codebooks="b"),
        eval_record(WINDOWS * noise[::-1], context=1024, codebooks="c"),
    )  # fmt: skip
    found = compare(a, b, metrics=["kld_mean"])
    worse, same = kld_of(found)["4 bits, all-coded, 512 tokens, d"], kld_of(found)["4 bits, all-coded, 1024 tokens, d"]
    assert worse.how == "windows"
    assert worse.low > 0.01
    assert worse.high < 0.03
    assert not same.told
    assert [pair.label for pair, _ in found.worse(0.01)] == ["4 bits, all-coded, 512 tokens, d"]
    assert found.worse(0.03) == []


def test_the_interval_is_that_of_a_ratio_of_means_over_pairs():
    """Against leaving out one window after the other, and windows drawn with replacement."""
    a, b = WINDOWS, WINDOWS * np.linspace(0.9, 1.2, 16)
    found = change("kld_mean", [eval_record(a)], [eval_record(b)])
    assert found.value == pytest.approx(b.mean() / a.mean() - 1)
    left_out = [(b.sum() - b[i]) / (a.sum() - a[i]) for i in range(16)]
    reach = 2.1314 * (15 / 16 * sum((one - np.mean(left_out)) ** 2 for one in left_out)) ** 0.5
    assert (found.low, found.high) == (pytest.approx(found.value - reach, abs=2e-3),
                                       pytest.approx(found.value + reach, abs=2e-3))  # fmt: skip
    random, ratios = np.random.default_rng(9), []
    for _ in range(4000):
        drawn = [random.integers(16) for _ in range(16)]
        ratios.append(sum(b[i] for i in drawn) / sum(a[i] for i in drawn) - 1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.01)
    assert found.high == pytest.approx(high, abs=0.01)
    assert found.low < low < high < found.high  # as it should be of 16: Student's quantile is not the normal one
    wider = change("kld_mean", [eval_record(a)], [eval_record(b)], comparisons=100)
    assert wider.low < found.low
    assert wider.high > found.high


@pytest.mark.parametrize("comparisons, most", [(1, 0.075), (20, 0.006)])
def test_of_pairs_that_only_chance_tells_apart_few_are_told(comparisons, most):
    """Eight windows, each by chance the first or the second: the share of intervals without 0, of 1,000."""
    random, told = np.random.default_rng(3), 0
    for _ in range(1000):
        first = random.gamma(7.0, 0.0014, 8)
        second = first * np.exp(0.1 * random.standard_normal(8))
        swap = random.random(8) < 0.5
        sides = np.where(swap, second, first), np.where(swap, first, second)
        one = change("kld_mean", *([eval_record(side)] for side in sides), comparisons=comparisons)
        told += one.told
    assert told <= 1000 * most


def test_windows_that_would_be_needed_are_those_that_are():
    random = np.random.default_rng(5)
    a = random.gamma(7.0, 0.0014, 4000)
    b = a * 1.01 * np.exp(0.1 * random.standard_normal(4000))
    few = change("kld_mean", [eval_record(a[:200])], [eval_record(b[:200])])
    assert few.count == 200
    wanted = few.windows_for(0.005)
    found = change("kld_mean", [eval_record(a[:wanted])], [eval_record(b[:wanted])])
    assert wanted > 800
    assert (found.high - found.low) / 2 == pytest.approx(0.005, rel=0.2)  # 200 windows know their spread to a tenth
    assert change("agreement_at_1", [eval_record(a[:9])], [eval_record(b[:9])]).windows_for(0.01) is None


def test_perplexity_changes_by_the_exponential_of_the_mean():
    rises = np.full(4, 0.01)
    found = change("perplexity", [eval_record(WINDOWS[:4])], [eval_record(WINDOWS[:4], nll=2.0 + rises)])
    assert found.value == pytest.approx(np.expm1(0.01))
    assert found.low == pytest.approx(found.high)
    rises = np.array([0.01, 0.03, -0.01, 0.01])
    found = change("perplexity", [eval_record(WINDOWS[:4])], [eval_record(WINDOWS[:4], nll=2.0 + rises)])
    reach = 3.1824 * np.std(rises, ddof=1) / 2
    assert (found.low, found.high) == (pytest.approx(np.expm1(0.01 - reach), abs=1e-5),
                                       pytest.approx(np.expm1(0.01 + reach), abs=1e-5))  # fmt: skip


def test_equal_records_differ_by_nothing(tmp_path):
    one = eval_record(WINDOWS)
    found = compare(folder_of(tmp_path / "a", one), folder_of(tmp_path / "b", one))
    assert len(found.pairs[0].changes) == 3
    for one in found.pairs[0].changes:
        assert (one.value, one.low, one.high, one.told) == (0, 0, 0, False)
    assert found.worse(0) == []


def test_windows_of_another_text_are_no_pairs(tmp_path):
    a = folder_of(tmp_path / "a", eval_record(WINDOWS))
    b = folder_of(tmp_path / "b", eval_record(WINDOWS * 1.02, data_sha256="1"))
    found = compare(a, b, metrics=["kld_mean"])
    assert found.settings == {"data_sha256": ("0", "1")}
    (one,) = kld_of(found).values()
    assert one.how == "intervals"
    assert not one.told


def test_a_setting_of_whole_folders_is_what_is_compared(tmp_path):
    made = [eval_record(WINDOWS * k, bits=bits, codebooks=str(k)) for k, bits in enumerate((4, 2), 1)]
    recipe = [
        eval_record(WINDOWS * k, bits=bits, codebooks=f"r{k}", recipe="pqkv") for k, bits in enumerate((4, 2, 1), 1)
    ]
    found = compare(folder_of(tmp_path / "a", *made), folder_of(tmp_path / "b", *recipe))
    assert found.settings == {"recipe": ("", "pqkv")}
    assert len(found.pairs) == 2
    assert found.only_first == ()
    assert found.only_second == ("1 bit, all-coded, 512 tokens, d",)


def test_cells_that_nothing_tells_apart_are_refused(tmp_path):
    a = folder_of(tmp_path / "a", eval_record(WINDOWS), eval_record(WINDOWS, residual=64))
    with pytest.raises(RecordError, match="that differ in residual alone"):
        compare(a, a, ignore=["residual"])
    with pytest.raises(RecordError, match="no cell of"):
        compare(
            a, folder_of(tmp_path / "b", eval_record(WINDOWS, context=64), eval_record(WINDOWS, context=65)),
        )  # fmt: skip


def test_runs_are_compared_by_how_far_they_scatter(tmp_path):
    for name, times in (("a", (1.00, 1.02, 0.98)), ("b", (1.30, 1.32, 1.28)), ("c", (1.3, 0.8, 1.1))):
        for run, latency in enumerate(times, 1):
            folder_of(tmp_path / name / ("" if run == 1 else f"run-{run}"), bench_record(latency, machine=name))
    (slower,) = compare(tmp_path / "a", tmp_path / "b").pairs[0].changes
    assert (slower.how, len(compare(tmp_path / "a", tmp_path / "b").pairs[0].first)) == ("runs", 3)
    assert slower.value == pytest.approx(0.3)
    assert slower.told
    assert slower.high - 0.3 == pytest.approx(4.303 * 1.3 * ((0.02) ** 2 + (0.02 / 1.3) ** 2) ** 0.5 / 3**0.5, rel=1e-3)
    (noisy,) = compare(tmp_path / "a", tmp_path / "c").pairs[0].changes
    assert not noisy.told


def test_records_that_differ_in_their_seed_alone_are_runs_where_it_is_ignored(tmp_path):
    a, b = (
        folder_of(tmp_path / name, *(eval_record(WINDOWS * scale * k, seed=k) for k in (1, 2)))
        for name, scale in (("a", 1), ("b", 1.5))
    )
    (one,) = compare(a, b, metrics=["kld_mean"], ignore=["seed"]).pairs[0].changes
    assert (one.how, one.value) == ("runs", pytest.approx(0.5))


@pytest.mark.parametrize(
    "tail, freedom, t",
    [(0.025, 1, 12.706), (0.025, 2, 4.303), (0.025, 3, 3.182), (0.005, 4, 4.604), (0.05, 9, 1.833), (0.001, 10, 4.144),
     (0.025, 120, 1.980)],
)  # fmt: skip
def test_quantiles_of_t_are_those_of_the_printed_tables(tail, freedom, t):
    assert t_quantile(tail, freedom) == pytest.approx(t, abs=6e-4)


def test_the_command_ends_with_1_where_a_figure_is_surely_worse(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    a, b = folder_of(tmp_path / "a", eval_record(WINDOWS)), folder_of(tmp_path / "b", eval_record(WINDOWS * 1.02))

    def run(*words):
        with pytest.raises(SystemExit) as stop:
            main(["compare", *map(str, words)])
        return stop.value.code, *capsys.readouterr()

    code, out, err = run(a, b, "--fail-above", "1%")
    assert code == 1
    assert "+2.00% [+2.00%, +2.00%]" in out
    assert "1 figures are worse by more than 1.00%; the most: kld_mean" in err
    assert run(a, b, "--fail-above", "3%")[0] == 0
    assert run(b, a, "--fail-above", "1%")[0] == 0
    code, out, _ = run(a, b, "--format", "json", "--metrics", "kld_mean")
    assert (code, [row["metric"] for row in json.loads(out)]) == (0, ["kld_mean"])
    code, _, err = run(a, b, "--fail-above", "some")
    assert (code, err) == (2, "error: --fail-above takes 1% or 0.01, not 'some'\n")
    assert run(a, b, "--fail-above", "-1%")[0] == 2
    code, _, err = run(a, b, "--ignore", "sed")
    assert code == 2
    assert "no record has a setting 'sed'; known: " in err
    assert run(a, tmp_path / "none")[0] == 2


def test_cells_that_are_gone_fail_where_a_limit_is_given(tmp_path, capsys):
    """A gate that is green because nothing was measured is none; cells that came are no fault."""
    whole, part = (eval_record(WINDOWS), eval_record(WINDOWS, bits=2)), (eval_record(WINDOWS),)
    a, b = folder_of(tmp_path / "a", *whole), folder_of(tmp_path / "b", *part)
    for words, code in (([a, b, "--fail-above", "1%"], 1), ([b, a, "--fail-above", "1%"], 0), ([a, b], 0)):
        with pytest.raises(SystemExit) as stop:
            main(["compare", *map(str, words)])
        assert stop.value.code == code
        assert (f"1 cells of {a} are not in {b}: 2 bits" in capsys.readouterr().err) == (code == 1)


def test_a_limit_that_windows_cannot_tell_is_said(tmp_path, capsys):
    noise = 1 + 0.04 * np.random.default_rng(1).standard_normal(16)
    a, b = folder_of(tmp_path / "a", eval_record(WINDOWS)), folder_of(tmp_path / "b", eval_record(WINDOWS * noise))
    with pytest.raises(SystemExit) as stop:
        main(["compare", str(a), str(b), "--metrics", "kld_mean", "--fail-above", "1%"])
    err = capsys.readouterr().err
    assert stop.value.code == 0
    assert "1 figures may be worse by more than 1.00% or not; the least certain: kld_mean of 4 bits" in err
    windows = int(err.split("of 16 windows; some ")[1].split()[0])
    assert windows == change("kld_mean", [eval_record(WINDOWS)], [eval_record(WINDOWS * noise)]).windows_for(0.01)
