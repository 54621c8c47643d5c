"""Documents packed into sequences: no token lost, few cut."""

from itertools import pairwise

import numpy as np
import pytest
from refmodel.packing import pack

LENGTH = 200


@pytest.fixture(scope="module")
def documents():
    sizes = np.random.default_rng(0).integers(1, 330, size=400)
    return np.concatenate([[0], np.cumsum(sizes)])


def spans_of(packing, number):
    return packing.spans[packing.first[number] : packing.first[number + 1]]


@pytest.mark.parametrize("seed", [0, 1])
def test_every_sequence_has_exactly_its_length(documents, seed):
    packing = pack(documents, LENGTH, 900, seed)
    ids = np.arange(documents[-1], dtype=np.uint32)
    for number in range(900):
        sequence = packing.sequence(ids, number)
        assert (sequence.shape, sequence.dtype) == ((LENGTH,), np.int64)
        assert sequence.tolist() == [token for start, end in spans_of(packing, number) for token in range(start, end)]


@pytest.mark.parametrize("seed", [0, 1])
def test_no_token_is_lost_or_comes_twice_within_an_epoch(documents, seed):
    total = int(documents[-1])
    # the next epoch begins when fewer than 64 pieces of this one wait, none longer than a sequence
    sure = total // LENGTH - 64
    packing = pack(documents, LENGTH, 5 * total // LENGTH, seed)
    seen = np.zeros(total, int)
    for start, end in packing.spans[: packing.first[sure]]:
        seen[start:end] += 1
    assert seen.max() == 1
    for start, end in packing.spans[packing.first[sure] :]:
        seen[start:end] += 1
    assert set(seen.tolist()) <= {4, 5, 6}
    assert seen.sum() == 5 * total // LENGTH * LENGTH


@pytest.mark.parametrize("seed", [0, 1])
def test_documents_lie_whole_but_for_one_cut_a_sequence_at_its_end(documents, seed):
    packing = pack(documents, LENGTH, 900, seed)
    ends = set(documents[1:].tolist())
    for begin, end in pairwise(documents):
        ends |= set(range(int(begin) + LENGTH, int(end), LENGTH))  # where a long document must be cut
    cuts = 0
    for number in range(900):
        inside = [int(end) not in ends for _, end in spans_of(packing, number)]
        assert not any(inside[:-1])
        cuts += inside[-1]
    assert 0 < cuts < 450  # nearly 900 if the next piece were taken whatever its length


def test_a_corpus_smaller_than_the_look_ahead_is_packed_too():
    packing = pack(np.array([0, 30, 70]), 50, 20, 0)
    assert [sum(int(end - start) for start, end in spans_of(packing, number)) for number in range(20)] == [50] * 20
