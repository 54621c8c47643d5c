"""The product of all kernels and shapes as PTX, against float64: a cover of all pairs in CI, all of it on request."""

from itertools import combinations, product

import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'pqkv[cuda]'")

from pqkv.kernels.cuda.device import SIMULATED
from ptx import product as command
from ptx.cases import Wrong
from ptx.product import BITS, DTYPES, GROUPS, HEAD_DIMS, Cell, cells, run_on_both, same_but_for_names

pytestmark = [
    pytest.mark.skipif(SIMULATED, reason="the simulator compiles nothing"),
    pytest.mark.xdist_group("ptx"),  # one process compiles the kernels, not each its own
]
T, R = "transposed", "row"
# (kernel, bits, query heads a KV head, layout of keys, of values, head_dim, capability)
CODED = [
    ("coded", 8, 1, T, R, 64, (9, 0)), ("plain", 8, 2, R, T, 128, (8, 0)), ("coded", 8, 4, R, T, 128, (8, 0)),
    ("plain", 8, 8, T, R, 64, (9, 0)), ("plain", 6, 1, R, T, 128, (9, 0)), ("coded", 6, 2, T, R, 64, (8, 0)),
    ("plain", 6, 4, R, R, 64, (9, 0)), ("coded", 6, 8, T, T, 128, (8, 0)), ("plain", 4, 1, T, T, 64, (8, 0)),
    ("coded", 4, 2, R, R, 128, (9, 0)), ("plain", 4, 4, T, R, 128, (8, 0)), ("coded", 4, 8, R, T, 64, (9, 0)),
]  # fmt: skip
# (kernel, type, query heads a KV head, head_dim, capability)
EXACT = [
    ("rows", "float32", 1, 64, (9, 0)), ("exact", "float32", 2, 64, (8, 0)),
    ("rows", "float32", 4, 128, (9, 0)), ("exact", "float32", 8, 128, (8, 0)),
    ("exact", "float16", 1, 128, (8, 0)), ("exact", "float16", 2, 128, (9, 0)),
    ("exact", "float16", 4, 64, (8, 0)), ("rows", "float16", 8, 64, (9, 0)),
    ("exact", "bfloat16", 1, 128, (8, 0)), ("rows", "bfloat16", 2, 64, (8, 0)),
    ("exact", "bfloat16", 4, 128, (8, 0)), ("rows", "bfloat16", 8, 128, (9, 0)),
]  # fmt: skip
CODED_FACTORS = ("coded", "plain"), BITS, GROUPS, (T, R), (T, R), HEAD_DIMS, ((8, 0), (9, 0))
EXACT_FACTORS = ("exact", "rows"), tuple(DTYPES), GROUPS, HEAD_DIMS, ((8, 0), (9, 0))


@pytest.mark.parametrize(("rows", "factors"), [(CODED, CODED_FACTORS), (EXACT, EXACT_FACTORS)], ids=["codes", "exact"])
def test_every_pair_is_covered(rows, factors):
    for one, other in combinations(range(len(factors)), 2):
        assert {(row[one], row[other]) for row in rows} == set(product(factors[one], factors[other]))


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("row", CODED, ids=str)
def test_codes_by_pairs(row, device):
    kernel, nbits, group, *layouts, head_dim, device.capability = row
    dtype = "float16" if kernel == "coded" else "float32"
    Cell(kernel, dtype, nbits, group, tuple(layouts), head_dim).run()
    assert device.names == [f"{kernel}_kernel", "merge_kernel"]


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("row", EXACT, ids=str)
def test_exact_tokens_by_pairs(row, device):
    kernel, dtype, group, head_dim, device.capability = row
    Cell(kernel, dtype, group=group, head_dim=head_dim).run()
    assert device.names == [f"{kernel}_kernel", "merge_kernel"]


@pytest.mark.slow
@pytest.mark.parametrize("cell", list(cells()), ids=str)
def test_every_cell(cell, device):
    run_on_both(cell, device)


def test_a_cell_runs_as_the_ptx_of_both(device):
    """Once where it is the same, which is told from PTX that is not."""
    assert run_on_both(Cell("slots", "bfloat16"), device) == 1
    ((of),) = device.asked
    eighty, ninety = of((8, 0)), of((9, 0))
    assert ".target sm_80" in eighty
    assert ".target sm_90" in ninety
    assert same_but_for_names(eighty, ninety)
    assert not same_but_for_names(eighty, ninety.replace("add.s64", "sub.s64", 1))
    numbered = [".shared .b8 _cudapy_smem_{0}[4];\n.visible .entry k() {{ mov.u32 %r0, _cudapy_smem_{0}; }}", "3", "7"]
    assert same_but_for_names(*(numbered[0].format(number) for number in numbered[1:]))


def test_the_command_keeps_what_became_of_cells_and_goes_on(tmp_path, monkeypatch, capsys):
    file, few = tmp_path / "product.csv", [Cell("slots", "bfloat16"), Cell("slots", "float32")]
    monkeypatch.setattr(command, "cells", lambda: iter(few))
    run = command._RUN["slots"]

    def wrong(cell):
        run(cell)
        if cell.dtype == "float32":
            raise Wrong("a slot is another")

    monkeypatch.setitem(command._RUN, "slots", wrong)
    assert command.main(["--csv", str(file)]) == 1
    assert "2 of 2 cells, 2 launches" in capsys.readouterr().out
    before = file.read_text()
    assert "slots float32" in before
    assert "Wrong: a slot is another" in before
    monkeypatch.setitem(command._RUN, "slots", None)
    assert command.main(["--csv", str(file)]) == 1  # none is run again
    assert file.read_text() == before
