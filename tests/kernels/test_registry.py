import pytest

from pqkv.config import CacheConfig
from pqkv.errors import ConfigError
from pqkv.kernels import backend_names, get_backend, register_backend, registry
from pqkv.kernels.reference import attention


@pytest.fixture(autouse=True)
def own_table(monkeypatch):
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))


def test_the_default_backend_is_there():
    assert get_backend(CacheConfig().backend) is attention


def test_an_unknown_name_is_refused_with_the_known_ones():
    register_backend("faulty", lambda: attention)
    with pytest.raises(ConfigError, match=r"unknown backend 'cudda'; known: .*faulty.*, reference"):
        get_backend("cudda")


def test_names_are_sorted():
    register_backend("a", lambda: attention)
    register_backend("z", lambda: attention)
    assert backend_names()[0] == "a"
    assert backend_names()[-1] == "z"
    assert list(backend_names()) == sorted(backend_names())


def test_a_name_is_taken_only_once():
    with pytest.raises(ValueError, match="'reference' is registered already"):
        register_backend("reference", lambda: attention)
    assert get_backend("reference") is attention


def test_a_factory_runs_only_when_its_backend_is_asked_for():
    asked = []

    def factory():
        asked.append(True)
        return attention

    register_backend("costly", factory)
    assert "costly" in backend_names()
    assert not asked
    assert get_backend("costly") is attention
    assert asked
