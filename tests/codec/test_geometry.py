import pytest

from pqkv.codec import code_bits, code_geometry
from pqkv.config import CodeShape, TrainConfig
from pqkv.errors import ConfigError


@pytest.mark.parametrize(
    ("bits", "head_dim", "geometry"),
    [
        (4, 64, (32, 8)), (4, 128, (64, 8)),
        (3, 64, (32, 6)), (3, 128, (64, 6)),
        (2, 64, (16, 8)), (2, 128, (32, 8)),
        (1.5, 64, (16, 6)), (1.5, 128, (32, 6)),
        (1, 64, (8, 8)), (1, 128, (16, 8)),
    ],
)  # fmt: skip
def test_named_bits_cost_exactly_what_they_say(bits, head_dim, geometry):
    assert code_geometry(CodeShape(bits=bits), head_dim) == geometry
    assert code_bits(*geometry, head_dim) == bits


def test_four_bits_are_the_default():
    assert code_geometry(CodeShape(), 64) == (32, 8)
    assert code_geometry(TrainConfig().code_shape(), 64) == (32, 8)


def test_subspaces_and_nbits_are_taken_as_given():
    assert code_geometry(CodeShape(num_subspaces=64, nbits=4), 64) == (64, 4)
    assert code_geometry(CodeShape(num_subspaces=3, nbits=12), 96) == (3, 12)


@pytest.mark.parametrize("bits", [5, 0, -4, 2.5, 3.001, 1.499])
def test_unknown_bits_are_refused_with_the_known_ones(bits):
    with pytest.raises(ConfigError, match=r"pick 6, 4, 3, 2, 1\.5, 1"):
        code_geometry(CodeShape(bits=bits), 64)


@pytest.mark.parametrize("bits", [float("nan"), float("inf")])
def test_bits_that_are_no_number_are_no_configuration(bits):
    with pytest.raises(ConfigError, match="bits: Input should be a finite number"):
        CodeShape.parse({"bits": bits})


@pytest.mark.parametrize(("bits", "head_dim"), [(4, 63), (2, 62), (1, 100), (1.5, 66)])
def test_a_head_dim_the_bits_do_not_divide_is_refused(bits, head_dim):
    with pytest.raises(ConfigError, match=f"head_dim {head_dim} is not divisible"):
        code_geometry(CodeShape(bits=bits), head_dim)


def test_a_head_dim_the_subspaces_do_not_divide_is_refused_with_those_that_do():
    with pytest.raises(ConfigError, match=r"pick one of \[1, 2, 3, 4, 6, 12\]"):
        code_geometry(CodeShape(num_subspaces=5, nbits=8), 12)
