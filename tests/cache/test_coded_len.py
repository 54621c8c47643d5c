import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pqkv.cache import coded_len
from pqkv.config import CacheConfig


def simulate(tokens, page_size, residual, sinks):
    """Append one token, seal a page as soon as the window holds `residual`."""
    coded, window, counts = 0, 0, [0]
    for token in range(tokens):
        if token >= sinks:
            window += 1
        if window == residual:
            coded += page_size
            window -= page_size
        counts.append(coded)
    return counts


@given(page_size=st.integers(1, 40), residual=st.integers(1, 100), sinks=st.integers(0, 9))
def test_it_is_what_sealing_pages_one_by_one_gives(page_size, residual, sinks):
    assume(residual >= page_size)
    counts = [coded_len(n, page_size=page_size, residual=residual, sink_tokens=sinks) for n in range(301)]
    assert counts == simulate(300, page_size, residual, sinks)


@pytest.mark.parametrize(
    ("cached", "coded"), [(0, 0), (131, 0), (132, 64), (195, 64), (196, 128), (1000, 896), (10**6, 999_872)]
)
def test_the_defaults_keep_the_newest_64_to_127_tokens_exact(cached, coded):
    config = CacheConfig()
    found = coded_len(cached, page_size=config.page_size, residual=config.residual, sink_tokens=config.sink_tokens)
    assert found == coded
    if coded:
        assert 64 <= cached - 4 - coded <= 127
