"""What is not a token may hold anything: NaN, all ones, other people's numbers, page ids of nowhere."""

import itertools

import pytest
import torch
from batches import Spec, build

from pqkv.kernels import reference
from pqkv.kernels.reference import attention

CONTEXT = (0, 1, 63, 64, 65, 129)
SMALL = {"head_dim": 16, "subspaces": (8, 4), "dtype": torch.float32}
EXACT_PARTS = {"sinks": (0, 1, 2, 4, 3, 4), "residual": (1, 0, 3, 7, 8, 2)}
KINDS = list(itertools.product([8, 6, 4, 3, 12], itertools.product(["row", "transposed"], repeat=2)))
KINDS.append((None, ("row", "row")))


def bits(tensor):
    return tensor.contiguous().view(torch.uint8)


def results(spec, **options):
    return attention(*build(spec).inputs, scale=spec.head_dim**-0.5, **options)


def assert_same_bits(clean, other):
    for one, two in zip(clean, other, strict=True):
        assert torch.equal(bits(one), bits(two))


@pytest.fixture(params=["look-up", "decode"], autouse=True)
def path(request, monkeypatch):
    monkeypatch.setattr(reference, "LOOKUP_QUERIES", 10**9 if request.param == "look-up" else 0)


@pytest.mark.parametrize(("nbits", "layouts"), KINDS)
@pytest.mark.parametrize(("page_size", "queries", "window"), [(64, 1, None), (5, 5, 70)])
def test_unused_slots_and_table_entries_are_never_read(nbits, layouts, page_size, queries, window):
    spec = Spec(
        context=CONTEXT, nbits=nbits, layouts=layouts, page_size=page_size, queries=queries, group=2,
        **SMALL, **EXACT_PARTS,
    )  # fmt: skip
    clean = results(spec, window=window)
    assert torch.isfinite(clean[0]).all()
    for unused in ("poison", "garbage"):
        assert_same_bits(clean, results(spec.but(unused=unused), window=window))


@pytest.mark.parametrize("nbits", [None, 8, 3])
def test_unused_memory_is_never_read_where_pages_are_all_there_is(nbits):
    spec = Spec(context=CONTEXT, nbits=nbits, layouts=("row", "row"), queries=3, **SMALL)
    clean = results(spec)
    for unused in ("poison", "garbage"):
        assert_same_bits(clean, results(spec.but(unused=unused)))


@pytest.mark.parametrize("unused", ["poison", "garbage"])
@pytest.mark.parametrize("nbits", [None, 8])
def test_poison_differs_from_the_clean_batch_everywhere_but_in_its_tokens(unused, nbits):
    """Without this, the tests above could pass by poisoning nothing."""
    spec = Spec(context=(5, 70), sinks=(1, 4), residual=(3, 2), nbits=nbits, dtype=torch.float32)
    clean, dirty = build(spec), build(spec.but(unused=unused))
    for part in ("sinks", "residual"):
        mine, theirs = getattr(clean, part), getattr(dirty, part)
        for b, n in enumerate(getattr(spec, part)):
            assert torch.equal(mine.keys[b, :, :n], theirs.keys[b, :, :n])
            assert (mine.keys[b, :, n:] != theirs.keys[b, :, n:]).all()
    full = int(clean.pages.page_table[1, 0])  # the only page without an unused slot
    for page in range(clean.pages.keys.pages.shape[0]):
        same = torch.equal(clean.pages.keys.pages[page], dirty.pages.keys.pages[page])
        assert same == (page == full)
    assert (clean.pages.page_table[0, 1:] != dirty.pages.page_table[0, 1:]).any()


@pytest.mark.parametrize(("nbits", "layouts"), KINDS)
def test_a_page_taken_for_another_is_noticed(nbits, layouts):
    """The comparison itself: one wrong entry of the used part of the table changes the result."""
    spec = Spec(context=CONTEXT, nbits=nbits, layouts=layouts, group=2, **SMALL, **EXACT_PARTS)
    clean, batch = results(spec), build(spec)
    table = batch.pages.page_table
    table[5, 1] = table[4, 0]
    out, lse = attention(*batch.inputs, scale=spec.head_dim**-0.5)
    assert not torch.equal(out[5], clean[0][5])
    assert not torch.equal(lse[5], clean[1][5])
    assert torch.equal(out[:5], clean[0][:5])


@pytest.mark.parametrize("part", ["pages", "sinks", "residual"])
def test_poison_in_a_token_reaches_the_result(part):
    """NaN is not swallowed on the way: where it is read, it shows."""
    spec = Spec(context=(70,), sinks=(4,), residual=(3,), nbits=None, dtype=torch.float32)
    batch = build(spec)
    if part == "pages":
        batch.pages.values.pages[batch.pages.page_table[0, 1], 0, 5] = float("nan")  # token 69
    else:
        getattr(batch, part).values[0, 0, 2] = float("nan")
    out, _ = attention(*batch.inputs, scale=0.1)
    assert torch.isnan(out[0, 0, 0]).all()
    assert torch.isfinite(out[0, 0, 1]).all()
