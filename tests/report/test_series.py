"""Cells stand in one order and no two look alike without need."""

import random

from pqkv.report.series import cells, machine_of, shape_name


def test_cells_are_sorted_by_bits_mode_and_context_whatever_their_order(grid):
    places = [(cell.shape, cell.mode, cell.context) for cell in cells(grid)]
    modes = ("exact-schedule", "token")
    assert places == [(bits, mode, n) for bits in ("4 bits", "2 bits") for mode in modes for n in (512, 2048)]
    for seed in range(5):
        shuffled = random.Random(seed).sample(grid, len(grid))
        assert cells(shuffled) == cells(grid)


def test_a_variant_names_only_what_tells_cells_apart(make, grid):
    assert {cell.variant for cell in cells(grid)} == {""}
    both = cells([make(), make(residual=64, chunk_size=256)])
    assert [cell.variant for cell in both] == ["residual=64", "residual=128"]


def test_cells_of_equal_config_are_told_apart_by_machine_or_commit(make):
    other = {"cpu": "Other CPU", "cores": 4}
    assert {cell.variant for cell in cells([make(), make(env=other)])} == {
        "machine=2 x AMD EPYC, 24 GiB", "machine=4 x Other CPU",
    }  # fmt: skip
    commits = cells([make(git={"commit": "a" * 40, "dirty": False}), make(git={"commit": "b" * 40, "dirty": False})])
    assert {cell.variant for cell in commits} == {"commit=aaaaaaaa", "commit=bbbbbbbb"}


def test_no_group_has_cells_of_two_texts_of_one_name(make):
    """The standard library of another Python is another text; where there is one, its digest says nothing."""
    one = [make(context=n, data="stdlib", data_sha256="1" * 64) for n in (512, 1024)]
    other = make(context=2048, data="stdlib", data_sha256="2" * 64)
    assert {cell.group for cell in cells(one)} == {"reference on stdlib: eval"}
    found = {cell.context: cell.group for cell in cells([*one, other])}
    assert found[512] == found[1024] == "reference on stdlib (text 11111111): eval"
    assert found[2048] == "reference on stdlib (text 22222222): eval"


def test_a_failure_beside_its_success_is_no_variant(make):
    assert {cell.variant for cell in cells([make(), make(error="broken")])} == {""}


def test_shapes_have_names():
    assert shape_name({"bits": 1.5}) == "1.5 bits"
    assert shape_name({"bits": 1}) == "1 bit"
    assert shape_name({"bits": 0}) == "exact"
    assert shape_name({"bits": None, "num_subspaces": 16, "nbits": 8}) == "16 x 8 bits"
    assert shape_name({}) == "bits not stated"


def test_a_run_on_the_processor_does_not_bear_the_name_of_an_idle_gpu(make):
    env = {"cpu": "AMD EPYC", "cores": 2, "gpus": [{"name": "NVIDIA H200"}]}
    assert machine_of(make(env=env, device="cpu")) == "2 x AMD EPYC"
    assert machine_of(make(env=env, device="cuda")) == "NVIDIA H200"
