"""What enters the cache, against `Codebook.encode` on the CPU and bits packed by NumPy."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from pqkv.cache import Geometry, KVCache, coded, store
from pqkv.codec import Codebook, CodebookSet
from pqkv.config import CacheConfig
from pqkv.errors import KernelError

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'pqkv[cuda]'")

from pqkv.kernels.cuda import encode as module
from pqkv.kernels.cuda.device import SIMULATED
from pqkv.kernels.cuda.encode import encode_pages, write_slots
from pqkv.kernels.cuda.encoding import variant as encoding

pytestmark = pytest.mark.skipif(
    not SIMULATED and not torch.cuda.is_available(), reason="needs a GPU, or NUMBA_ENABLE_CUDASIM=1"
)
DEVICE = "cpu" if SIMULATED else "cuda"
FLOATS = torch.float32, torch.float16, torch.bfloat16
layouts = pytest.mark.parametrize("layout", ["row", "transposed"])


@dataclass(frozen=True)
class Case:
    nbits: int = 4
    d_sub: int = 2
    subspaces: int = 4
    layout: str = "transposed"
    page_size: int = 8
    sequences: int = 2
    pages: int = 2
    heads: int = 2
    books: int = 2
    channels: bool = True
    weights: bool = True
    dtype: torch.dtype = torch.float32
    ids: torch.dtype = torch.int64


def arguments(case):
    """Keyword arguments of `encode_pages` on the CPU; every page holds 0xA5 before."""
    generator = torch.Generator().manual_seed(case.nbits * 100 + case.d_sub)
    normal = lambda *shape: torch.randn(*shape, generator=generator)
    H, M, D = case.books, case.subspaces, case.subspaces * case.d_sub
    lines, count = (case.page_size, M) if case.layout == "row" else (M, case.page_size)
    used = case.sequences * case.pages
    pages = torch.full((used + 3, case.heads, lines, -(-count * case.nbits // 8)), 0xA5, dtype=torch.uint8)
    ids = torch.randperm(used + 3, generator=generator)[:used].reshape(case.sequences, case.pages)
    order = torch.stack([torch.randperm(D, generator=generator) for _ in range(H)])
    return {
        "vectors": normal(case.sequences, case.heads, case.pages * case.page_size, D).to(case.dtype),
        "centroids": normal(H, M, 2**case.nbits, case.d_sub),
        "channels": order if case.channels else None,
        "weights": torch.rand(H, D, generator=generator) + 0.5 if case.weights else None,
        "nbits": case.nbits,
        "layout": case.layout,
        "pages": pages,
        "page_ids": ids.to(case.ids),
    }


def moved(given):
    return {name: part.to(DEVICE, copy=True) if torch.is_tensor(part) else part for name, part in given.items()}


def packed(codes, nbits):
    """Codes (..., n) -> bytes (..., packed): bit after bit, lowest first, zeros at the end."""
    bits = codes[..., None] >> np.arange(nbits) & 1
    return np.packbits(bits.reshape(*codes.shape[:-1], -1).astype(np.uint8), axis=-1, bitorder="little")


def unpacked(bytes_, nbits, count):
    bits = np.unpackbits(bytes_, axis=-1, bitorder="little")[..., : count * nbits]
    return (bits.reshape(*bits.shape[:-1], count, nbits).astype(np.int64) << np.arange(nbits)).sum(-1)


def check(case, given=None):
    given = given or arguments(case)
    sent = moved(given)
    encode_pages(**sent)
    pages, ids = sent["pages"].cpu().numpy(), given["page_ids"]
    count = case.subspaces if case.layout == "row" else case.page_size
    written = pages[ids.numpy()]
    found = unpacked(written, case.nbits, count)
    assert np.array_equal(packed(found, case.nbits), written)  # and zeros behind the last code
    book = Codebook(given["centroids"], given["channels"], given["weights"])
    expected = book.encode(given["vectors"]).unflatten(2, (-1, case.page_size)).transpose(1, 2).numpy()
    found = found if case.layout == "row" else found.swapaxes(3, 4)
    if not np.array_equal(found, expected):
        assert np.mean(found != expected) < 0.01
        near, nearest = (squared_distances(book, given["vectors"], codes) for codes in (found, expected))
        where = found != expected
        assert np.all(np.abs(near - nearest)[where] <= 1e-5 * nearest[where])
    others = np.setdiff1d(np.arange(len(pages)), ids.numpy())
    assert len(others) == 3 and np.all(pages[others] == 0xA5)


def squared_distances(book, vectors, codes):
    """Of each code (B, n, Hkv, P, M) in float64, weighted."""
    B, n, heads, P, M = codes.shape
    split = vectors.double().numpy().reshape(B, heads, n, P, -1)
    out = np.zeros(codes.shape)
    for h in range(heads):
        own = h % book.centroids.shape[0]
        d_sub = book.centroids.shape[3]
        order = np.arange(M * d_sub) if book.channels is None else book.channels[own].numpy()
        weights = np.ones(M * d_sub) if book.weights is None else book.weights[own].double().numpy()
        for m in range(M):
            here = slice(m * d_sub, (m + 1) * d_sub)
            centroids = book.centroids[own, m].double().numpy()[codes[:, :, h, :, m]]
            out[:, :, h, :, m] = (((split[:, h][..., order[here]] - centroids) * weights[here]) ** 2).sum(-1)
    return out


@pytest.fixture
def one_token(monkeypatch):
    """A lane holds one vector: a tile is 32 tokens, which a simulator can do."""
    monkeypatch.setattr(module, "MOST_TOKENS", 1)


@layouts
@pytest.mark.parametrize(("nbits", "d_sub"), [(4, 1), (4, 2), (6, 2), (3, 2), (3, 4), (1, 4), (5, 1)])
def test_pages_hold_the_nearest_centroids(one_token, layout, nbits, d_sub):
    check(Case(nbits=nbits, d_sub=d_sub, layout=layout))


@layouts
def test_eight_bits(one_token, layout):
    check(Case(nbits=8, subspaces=2, layout=layout, sequences=1, heads=1, books=1))


@layouts
@pytest.mark.parametrize("channels", [True, False])
@pytest.mark.parametrize("weights", [True, False])
def test_heads_share_centroids_or_do_not(one_token, layout, channels, weights):
    for books in (1, 2):
        check(Case(1 + books, layout=layout, books=books, channels=channels, weights=weights, subspaces=3, sequences=1))


@layouts
@pytest.mark.parametrize("dtype", FLOATS)
def test_dtypes_of_vectors_and_ids(one_token, layout, dtype):
    ids = torch.int64 if dtype == torch.float16 else torch.int32
    check(Case(layout=layout, dtype=dtype, ids=ids, d_sub=3, subspaces=3))


@layouts
@pytest.mark.parametrize(("page_size", "nbits"), [(1, 4), (5, 3), (32, 4), (33, 3), (40, 4), (70, 5)])
def test_pages_of_any_size(one_token, layout, page_size, nbits):
    check(Case(layout=layout, page_size=page_size, nbits=nbits, subspaces=2, d_sub=1, heads=1, books=1))


@layouts
@pytest.mark.parametrize(("nbits", "subspaces", "d_sub"), [(4, 6, 4), (3, 10, 4), (2, 3, 16), (6, 3, 8), (4, 18, 1)])
def test_subspaces_that_do_not_fill_the_last_block(one_token, layout, nbits, subspaces, d_sub):
    check(Case(layout=layout, nbits=nbits, subspaces=subspaces, d_sub=d_sub, sequences=1, pages=3, heads=1, books=1))


@layouts
def test_eight_vectors_of_a_lane(layout):
    check(Case(layout=layout, nbits=6, subspaces=2, page_size=64, sequences=3, heads=1, books=1))


@pytest.mark.parametrize(("room", "chunk", "page_size"), [(1700, 32, 3), (5000, 128, 4)])
def test_centroids_that_do_not_fit_shared_memory_at_once(one_token, monkeypatch, room, chunk, page_size):
    case = Case(nbits=8, subspaces=2, sequences=1, heads=1, books=1, page_size=page_size)  # no page that others compile
    monkeypatch.setattr(encoding, "SHARED_BYTES", room)
    codes = module.Codes(case.subspaces, case.nbits, case.d_sub, case.layout)
    assert module.EncodeVariant(codes, page_size, "float32", most_tokens=1).chunk == chunk
    check(case)


@layouts
@pytest.mark.parametrize("nbits", [4, 7])
def test_the_first_of_equal_centroids_is_taken(one_token, layout, nbits):
    case = Case(layout=layout, nbits=nbits, subspaces=2, sequences=1, heads=1, books=1, weights=False, channels=False)
    given = arguments(case)
    given["centroids"] = given["centroids"].round()  # many are equal, and their distances exact
    given["vectors"] = given["vectors"].round()
    given["vectors"][:, :, 0] = 0
    sent = moved(given)
    encode_pages(**sent)
    codes = Codebook(given["centroids"]).encode(given["vectors"])
    expected = codes.unflatten(2, (-1, case.page_size)).transpose(1, 2).numpy()
    expected = packed(expected if layout == "row" else expected.swapaxes(3, 4), nbits)
    assert np.array_equal(sent["pages"].cpu().numpy()[given["page_ids"]], expected)


def test_vectors_that_are_a_slice_of_more(one_token):
    case = Case(dtype=torch.float16)
    given = arguments(case)
    wide = torch.full((case.sequences, case.heads, 40, 8), float("nan"), dtype=torch.float16)
    wide[:, :, :16] = given["vectors"]
    given["vectors"] = wide[:, :, :16]
    check(case, given)


def test_ids_outside_the_pages_write_nothing(one_token):
    given = arguments(Case())
    sent = moved(given)
    kept = int(given["page_ids"][1, 1])
    sent["page_ids"] = torch.tensor([[-1, len(given["pages"])], [2**40, kept]], device=DEVICE)
    encode_pages(**sent)
    changed = (sent["pages"].cpu() != given["pages"]).flatten(1).any(1)
    assert changed.nonzero().tolist() == [[kept]]


def test_nothing_to_encode_writes_nothing():
    given = moved(arguments(Case()))
    before = given["pages"].clone()
    encode_pages(**{**given, "vectors": given["vectors"][:, :, :0], "page_ids": given["page_ids"][:, :0]})
    assert torch.equal(given["pages"], before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": lambda t: t[0]}, "vectors are"),
        ({"vectors": lambda t: t.double()}, "float64"),
        ({"vectors": lambda t: t[:, :, :15]}, "15 tokens do not fill 2 pages"),
        ({"vectors": lambda t: t[..., :6]}, "M \\* d_sub = 6"),
        ({"centroids": lambda t: t[0]}, "centroids are"),
        ({"centroids": lambda t: t.half()}, "not float32"),
        ({"centroids": lambda t: t[:, :, :15]}, "C = 2\\*\\*nbits"),
        ({"centroids": lambda t: t.repeat(2, 1, 1, 1)}, "H = 1 or 2"),
        ({"nbits": lambda n: 13}, "1 to 12"),
        ({"channels": lambda t: t.int()}, "channels are"),
        ({"weights": lambda t: t[:1]}, "weights are"),
        ({"layout": lambda name: "row"}, "layout row"),
        ({"pages": lambda t: t[:, :, :, :3]}, "pages are"),
        ({"pages": lambda t: t.view(torch.int8)}, "not contiguous uint8"),
        ({"pages": lambda t: t.mT.contiguous().mT}, "not contiguous uint8"),
        ({"page_ids": lambda t: t.float()}, "page_ids are"),
        ({"page_ids": lambda t: t[:1]}, "page_ids are"),
        ({"page_ids": lambda t: t.to("meta")}, "one CUDA device"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    given = moved(arguments(Case()))
    before = given["pages"].clone()
    changed = {name: change[name](part) if name in change else part for name, part in given.items()}
    with pytest.raises(KernelError, match=message):
        encode_pages(**changed)
    assert torch.equal(given["pages"], before)


def test_centroids_too_long_for_shared_memory_are_refused():
    given = moved(arguments(Case(d_sub=1024, subspaces=1)))
    with pytest.raises(KernelError, match="use more subspaces"):
        encode_pages(**given)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("head_dim", [7, 40])
def test_new_tokens_go_to_their_slots_bit_for_bit(dtype, head_dim):
    B, heads, capacity = 4, 2, 5
    bits, most = (torch.int32, 2**31 - 1) if dtype == torch.float32 else (torch.int16, 2**15 - 1)
    generator = torch.Generator().manual_seed(head_dim)
    random = lambda *shape: torch.randint(-most, most, shape, generator=generator).to(bits)  # NaN and infinity too
    new = [random(B, heads, 1, head_dim) for _ in range(2)]
    buffers = [random(B, heads, capacity, head_dim) for _ in range(2)]
    positions = [3, -1, 0, capacity]
    expected = [buffer.clone() for buffer in buffers]
    for b, position in enumerate(positions[:3:2]):
        for buffer, tokens in zip(expected, new, strict=True):
            buffer[2 * b, :, position] = tokens[2 * b, :, 0]
    sent = [tensor.to(DEVICE, copy=True).view(dtype) for tensor in (*new, *buffers)]
    write_slots(*sent, torch.tensor(positions, dtype=torch.int32, device=DEVICE))
    for tensor, wanted in zip(sent, (*new, *expected), strict=True):
        assert torch.equal(tensor.cpu().view(bits), wanted)


def slots():
    tokens, buffer = torch.zeros(2, 3, 1, 8, device=DEVICE), torch.zeros(2, 3, 5, 8, device=DEVICE)
    return [tokens, tokens.clone(), buffer, buffer.clone(), torch.zeros(2, dtype=torch.int32, device=DEVICE)]


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda t: t.expand(2, 3, 2, 8), "keys are"),
        (1, lambda t: t[:1], "values"),
        (1, lambda t: t.half(), "one dtype"),
        (2, lambda t: t[:, :2], "key_buffer"),
        (3, lambda t: t[:, :, :4], "value_buffer"),
        (2, lambda t: t.mT.contiguous().mT, "key_buffer"),
        (4, lambda t: t.long(), "positions"),
        (4, lambda t: t[:1], "positions"),
        (4, lambda t: t.to("meta"), "one CUDA device"),
    ],
)
def test_slots_that_do_not_fit_are_refused(index, change, message):
    given = slots()
    given[index] = change(given[index])
    with pytest.raises(KernelError, match=message):
        write_slots(*given)


def test_a_variant_says_what_it_takes():
    codes = module.Codes(64, 8, 2, "transposed")
    variant = module.EncodeVariant(codes, 64, "float16")
    assert (variant.tokens, variant.subspaces, variant.chunk, variant.unit) == (8, 8, 256, 4)
    assert replace(variant, codes=replace(codes, nbits=12)).chunk == 256
    assert replace(variant, codes=replace(codes, nbits=3, layout="row", num_subspaces=60)).unit == 1


@layouts
def test_a_cache_holds_the_same_with_kernels_as_with_torch(one_token, monkeypatch, layout):
    config = CacheConfig(page_size=4, residual=8, sink_tokens=2, key_layout=layout)
    generator = torch.Generator().manual_seed(1)
    book = lambda: Codebook(torch.randn(1, 4, 4, 2, generator=generator))
    books = CodebookSet((book(),), (book(),))
    steps = [(10, [0, 3, 9]), (1, [0, 0, 0]), (1, [0, 1, 0]), (1, [1, 0, 0]), *[(1, None)] * 6]
    tokens = [torch.randn(2, 3, 2, count, 8, generator=generator) for count, _ in steps]
    caches, calls = [], []

    def spied(kernel):
        return lambda *given: calls.append(kernel) or kernel(*given)

    for device in ("cpu", DEVICE):
        cache = KVCache(config, Geometry(3, 2, 8, torch.float32, torch.device(device)), 1, books)
        caches.append(cache.layers[0])
        if SIMULATED and len(caches) == 2:
            cache.layers[0].checks_late = True  # as on a GPU: the CPU has a way of its own for one token
        for (_, padding), (keys, values) in zip(steps, tokens, strict=True):
            cache.layers[0].append(keys.to(device), values.to(device), padding)
        if SIMULATED:  # no tensor says that it is on a GPU: the second cache is told so
            monkeypatch.setattr(store, "page_encoder", lambda device, dtype: spied(encode_pages))
            monkeypatch.setattr(coded, "slot_writer", lambda device, dtype: spied(write_slots))
    torch_layer, layer = caches
    assert (torch_layer.lengths, torch_layer.coded) == (layer.lengths, layer.coded) == ([18, 15, 10], [12, 8, 4])
    if SIMULATED:
        assert {*calls} == {encode_pages, write_slots}
    for b in range(3):
        ids = [list(one.store.table.pages(b)[: one.coded[b] // 4]) for one in caches]
        for side in ("keys", "values"):
            kept, found = (getattr(one.store, side).pages[own].cpu() for one, own in zip(caches, ids, strict=True))
            assert torch.equal(kept, found)
        for one, other in zip(torch_layer._sinks, layer._sinks, strict=True):
            assert torch.equal(one[b], other[b].cpu())
        left = layer.lengths[b] - 2 - layer.coded[b]
        for one, other in zip(torch_layer._residual, layer._residual, strict=True):
            assert torch.equal(one[b, :, :left], other[b, :, :left].cpu())
