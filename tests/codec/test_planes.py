"""Planes become bytes and come back; what does not fit is told."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pqkv.codec.planes import Plane, pack_planes, unpack_planes
from pqkv.errors import CodebookError


@settings(deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(1, 7), min_size=1, max_size=3), st.integers(0, 2**16))
def test_integers_take_their_bits_and_come_back(width, shape, seed):
    values = torch.randint(0, 2**width, shape, generator=torch.Generator().manual_seed(seed))
    packed = pack_planes({"codes": Plane(values, width)})
    assert len(packed["codes"].data) == -(-values.numel() * width // 8)
    assert torch.equal(unpack_planes(packed)["codes"].values, values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.uint8, torch.int16, torch.bfloat16])
def test_other_numbers_are_kept_as_they_are(dtype):
    values = (torch.randn(3, 5, generator=torch.Generator().manual_seed(0)) * 50).abs().to(dtype)
    packed = pack_planes({"scales": Plane(values)})
    assert len(packed["scales"].data) == values.numel() * values.element_size()
    assert torch.equal(unpack_planes(packed)["scales"].values, values)


def test_an_empty_plane_takes_nothing():
    packed = pack_planes({"a": Plane(torch.empty(2, 0, 3)), "b": Plane(torch.empty(0, 4).long(), 3)})
    assert [len(plane.data) for plane in packed.values()] == [0, 0]
    assert [tuple(plane.values.shape) for plane in unpack_planes(packed).values()] == [(2, 0, 3), (0, 4)]


@pytest.mark.parametrize("values", [[0, 8], [-1, 0]])
def test_integers_that_do_not_fit_are_refused(values):
    with pytest.raises(CodebookError, match="do not fit 3 bits"):
        pack_planes({"codes": Plane(torch.tensor(values), 3)})


@pytest.mark.parametrize("width", [0, 13])
def test_a_width_that_cannot_be_packed_is_refused(width):
    with pytest.raises(CodebookError, match="cannot be packed"):
        pack_planes({"codes": Plane(torch.zeros(2).long(), width)})
