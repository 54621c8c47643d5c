"""The pass that makes a step's query of codes and its phasors, against its definition in float64."""

import numpy as np
import pytest
import torch

from pqkv.kernels.cpu import coded_query as module
from pqkv.kernels.cpu.coded_query import QueryParts


def made(rows, heads, group, dim, pairs, *, still, half):
    generator = torch.Generator().manual_seed(dim + rows)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    inverse = normal(heads, dim, dim)
    parts = (
        inverse.half() if half else inverse,
        normal(heads, pairs, 2),
        normal(heads, dim) if still else torch.empty(0, dim),
    )
    return normal(rows, heads * group, dim), parts


def expected(query, inverse, mean, still):
    """By one product after another of complex numbers."""
    N, Hq, D = query.shape
    heads, P = mean.shape[:2]
    q, inverse, mean, still = (np.asarray(part, np.float64) for part in (query, inverse, mean, still))
    turned, phasors = np.zeros((N, Hq, D)), np.zeros((N, Hq, len(still[:1]) + P), complex)
    for n in range(N):
        for head in range(Hq):
            h = head // (Hq // heads)
            turned[n, head] = q[n, head] @ inverse[h]
            pairs = [(q[n, head, i] + 1j * q[n, head, i + P]) * (mean[h, i, 0] + 1j * mean[h, i, 1]) for i in range(P)]
            phasors[n, head] = [*([q[n, head] @ still[h]] if len(still) else []), *pairs]
    return turned, phasors


@pytest.mark.parametrize("half", [True, False], ids=["float16", "float32"])
@pytest.mark.parametrize("rows, heads, group, dim, pairs, still", [
    (1, 8, 4, 128, 64, False), (1, 3, 3, 64, 32, True), (4, 1, 8, 256, 0, True), (2, 2, 1, 80, 16, True),
    (3, 2, 5, 12, 2, False), (1, 1, 11, 10, 5, True),
])  # fmt: skip
def test_it_is_what_it_says(rows, heads, group, dim, pairs, still, half):
    query, parts = made(rows, heads, group, dim, pairs, still=still, half=half)
    turned, phasors = QueryParts(*parts).times(query)
    wanted, wanted_phasors = expected(query, *parts)
    assert np.abs(turned.numpy() - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert np.abs(torch.view_as_complex(phasors).numpy() - wanted_phasors).max(initial=0) <= 1e-5 * 16


@pytest.mark.parametrize("form", ["portable", None])
def test_float16_is_read_as_it_is_to_the_last_one(monkeypatch, form):
    """All 65,536 of them, as rows of a matrix that one unit vector picks, by an instruction and without."""
    if form is not None:
        monkeypatch.setattr(module, "host_form", lambda: form)
    every = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.float16)
    for part in every.reshape(4, 128, 128):
        query = torch.eye(128)[:, None]
        with np.errstate(invalid="ignore"):
            turned = QueryParts(part[None], torch.empty(1, 0, 2), torch.empty(0, 128)).times(query)[0][:, 0]
        finite = part.isfinite().all(0)  # zero times infinity is no number: a column with one is none
        assert torch.equal(turned[:, finite], part.float()[:, finite])
        assert turned[:, ~finite].isnan().any(0).all()


def test_without_an_inverse_queries_stay():
    query, (inverse, mean, still) = made(2, 3, 2, 16, 4, still=True, half=False)
    turned, phasors = QueryParts(inverse[:0], mean, still).times(query)
    assert torch.equal(turned, query)
    assert torch.equal(phasors, QueryParts(inverse, mean, still).times(query)[1])


def test_halves_and_other_layouts_are_taken():
    query, (inverse, mean, still) = made(1, 2, 2, 16, 4, still=False, half=False)
    parts = QueryParts(inverse.mT.contiguous().mT, mean, still)
    turned, _ = parts.times(query.bfloat16())
    assert torch.allclose(turned, QueryParts(inverse, mean, still).times(query.bfloat16().float())[0])
