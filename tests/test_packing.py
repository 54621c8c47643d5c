import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pqkv.packing import pack, pack_by_tensors, packed_size, unpack

widths = pytest.mark.parametrize("nbits", range(1, 13))


def packed_by_hand(codes, nbits):
    """A little-endian bit stream, one bit after another."""
    stream = [code >> bit & 1 for code in codes for bit in range(nbits)]
    stream += [0] * (-len(stream) % 8)
    return [sum(stream[i + bit] << bit for bit in range(8)) for i in range(0, len(stream), 8)]


@widths
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_codes_lie_bit_after_bit_and_come_back(nbits, data):
    codes = data.draw(st.lists(st.integers(0, 2**nbits - 1), max_size=40))
    packed = pack(torch.tensor(codes, dtype=torch.int64), nbits)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == packed_by_hand(codes, nbits)
    assert packed.shape == (packed_size(len(codes), nbits),)
    restored = unpack(packed, nbits, len(codes))
    assert restored.dtype == torch.int64
    assert restored.tolist() == codes


@widths
def test_the_largest_codes_survive_at_every_place_in_a_byte(nbits):
    top = 2**nbits - 1
    for place in range(17):
        codes = [0] * 17
        codes[place] = top
        assert unpack(pack(torch.tensor(codes), nbits), nbits, 17).tolist() == codes


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
@widths
def test_each_line_starts_at_a_byte_whatever_stands_before_it(nbits, dtype):
    generator = torch.Generator().manual_seed(nbits)
    codes = torch.randint(0, 2**nbits, (2, 3, 5, 7), generator=generator).to(dtype)
    packed = pack(codes, nbits)
    assert packed.shape == (2, 3, 5, packed_size(7, nbits))
    for index in np.ndindex(2, 3, 5):
        assert packed[index].tolist() == packed_by_hand(codes[index].tolist(), nbits)
    assert torch.equal(unpack(packed, nbits, 7), codes.long())


@widths
def test_bits_behind_the_last_code_are_not_read(nbits):
    codes = torch.randint(0, 2**nbits, (3, 5), generator=torch.Generator().manual_seed(1))
    packed = pack(codes, nbits)
    used = 5 * nbits - 8 * (packed.shape[-1] - 1)  # bits of the last byte
    if used < 8:
        packed[:, -1] |= 0xFF << used & 0xFF
    longer = torch.nn.functional.pad(packed, (0, 3), value=0xFF)
    assert torch.equal(unpack(packed, nbits, 5), codes)
    assert torch.equal(unpack(longer, nbits, 5), codes)


@widths
def test_fewer_codes_than_were_packed_can_be_read(nbits):
    codes = torch.randint(0, 2**nbits, (2, 16), generator=torch.Generator().manual_seed(2))
    for count in range(17):
        assert torch.equal(unpack(pack(codes, nbits), nbits, count), codes[:, :count])


@given(count=st.integers(0, 10_000), nbits=st.integers(1, 12))
def test_the_packed_size_is_the_bits_rounded_up_to_bytes(count, nbits):
    size = packed_size(count, nbits)
    assert 8 * size - 7 <= max(1, count * nbits) <= max(1, 8 * size)
    assert (size == 0) == (count == 0)


def test_eight_bit_codes_are_plain_bytes():
    codes = torch.arange(256, dtype=torch.int16)
    assert torch.equal(pack(codes, 8), torch.arange(256).to(torch.uint8))


@pytest.mark.parametrize("nbits", [3, 8, 12])
def test_codes_that_do_not_lie_one_after_another_are_packed_as_they_read(nbits):
    codes = torch.randint(0, 2**nbits, (4, 6), generator=torch.Generator().manual_seed(3)).T
    assert torch.equal(pack(codes, nbits), pack(codes.contiguous(), nbits))
    packed = pack(codes, nbits).T.contiguous().T
    assert torch.equal(unpack(packed, nbits, 4), codes)


@pytest.mark.parametrize("nbits", [1, 3, 6, 7, 9, 12])
@pytest.mark.parametrize("count", [1, 7, 8, 33, 64])
def test_the_form_for_other_devices_packs_the_same_bytes(nbits, count):
    codes = torch.randint(0, 2**nbits, (3, 2, count), generator=torch.Generator().manual_seed(nbits))
    assert torch.equal(pack_by_tensors(codes, nbits), pack(codes, nbits))
