"""A cache lives where its keys do. The meta device stands for a GPU: it holds no numbers, and like one it refuses
to mix its tensors with the CPU's.
"""

from dataclasses import fields, is_dataclass

import pytest
import torch
from naive import DIM, HEADS, make_books, served_books

from pqkv.cache import KVCache, coded
from pqkv.cache.layer import Geometry
from pqkv.config import CacheConfig

META = torch.device("meta")
B, H, D = 2, HEADS, DIM


def tensors_of(found):
    """Every tensor of nested records."""
    if isinstance(found, torch.Tensor):
        yield found
    elif is_dataclass(found):
        for field in fields(found):
            yield from tensors_of(getattr(found, field.name))


def on_meta(query, pages, sinks, residual, *, scale, window):
    """A backend that attends to nothing and looks where everything is."""
    inputs = [query, *tensors_of(pages), *tensors_of(sinks), *tensors_of(residual)]
    assert {tensor.device for tensor in inputs} == {META}
    seen.append(pages)
    return torch.empty_like(query), torch.empty(query.shape[:3], device=META)


seen = []


@pytest.mark.parametrize("paged", [True, False], ids=["paged", "contiguous"])
@pytest.mark.parametrize("books", [make_books, served_books], ids=["product", "served"])
def test_all_of_a_cache_is_on_its_device(paged, books, monkeypatch):
    monkeypatch.setattr(coded, "checked_finite", lambda *given: None)  # asks for a number
    config = CacheConfig(page_size=8, sink_tokens=2, residual=8, paged=paged)
    cache = KVCache(config, Geometry(B, H, D, torch.float32, META), 2, books(2), backend=on_meta)
    generator = torch.Generator().manual_seed(0)
    seen.clear()
    for count in (40, 1, 1, 9):
        for layer in cache.layers:
            query, key, value = (
                torch.randn(B, count, heads, D, generator=generator).to(META) for heads in (2 * H, H, H)
            )
            layer.attend(query, key.transpose(1, 2), value.transpose(1, 2), scale=0.25, padding=[0, 0])
    assert sum(pages is not None for pages in seen) == 6
    if paged:
        cache.fork(0)
    cache.crop([len - 1 for len in cache.layers[0].lengths])
