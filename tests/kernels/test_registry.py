import pytest
import torch

from pqkv.config import CacheConfig
from pqkv.errors import ConfigError, KernelError
from pqkv.kernels import backend_names, choose_backend, get_backend, register_backend, registry
from pqkv.kernels.reference import attention


@pytest.fixture(autouse=True)
def own_table(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))


CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.float32, "cpu"), (torch.bfloat16, "cpu"), (torch.float64, "reference")]
)
def test_the_default_is_the_fastest_that_can_serve_the_model(dtype, name):
    chosen = choose_backend(CacheConfig().backend, CPU, dtype)
    assert (chosen.name, chosen.run, chosen.note) == (name, get_backend(name), None)


def test_a_backend_that_cannot_run_gives_way_and_says_so():
    chosen = choose_backend("cpu", CPU, torch.float64)
    assert chosen.name == "reference"
    assert chosen.note == (
        "backend 'cpu' cannot run: it computes in float32 and the model in float64; 'reference' ran instead"
    )
    with pytest.raises(KernelError, match="backend 'cpu' cannot run: it computes in float32"):
        choose_backend("cpu", CPU, torch.float64, fallback=False)
    assert choose_backend("cpu", torch.device("meta"), torch.float32).name == "reference"


def test_heads_that_a_backend_cannot_read_give_way_too_or_are_an_error(monkeypatch):
    monkeypatch.setattr(registry, "_PREFERENCE", ("rows-of-8", "reference"))
    register_backend("rows-of-8", lambda: attention, heads=lambda D: f"{D} is no multiple of 8" if D % 8 else None)
    assert choose_backend("rows-of-8", CPU, torch.float32, head_dim=16).note is None
    gave_way = choose_backend("rows-of-8", CPU, torch.float32, head_dim=20)
    assert (gave_way.name, gave_way.note) == (
        "reference", "backend 'rows-of-8' cannot run: 20 is no multiple of 8; 'reference' ran instead",
    )  # fmt: skip
    assert choose_backend("auto", CPU, torch.float32, head_dim=20).name == "reference"
    assert choose_backend("auto", CPU, torch.float32, head_dim=16).name == "rows-of-8"
    with pytest.raises(KernelError, match="'rows-of-8' cannot run: 20 is no multiple of 8"):
        choose_backend("rows-of-8", CPU, torch.float32, head_dim=20, fallback=False)


@pytest.mark.parametrize(("head_dim", "name"), [(20, "reference"), (64, "cuda")])
def test_a_gpu_reads_rows_of_whole_128_bits(head_dim, name, monkeypatch):
    entry = registry._ENTRIES["cuda"]
    table = {**registry._ENTRIES, "cuda": registry._Entry(entry.factory, lambda *of: None, True, entry.heads, "torch")}
    monkeypatch.setattr(registry, "_ENTRIES", table)
    chosen = choose_backend("cuda", torch.device("meta"), torch.float16, head_dim=head_dim)
    assert (chosen.name, chosen.note is None) == (name, name == "cuda")


def test_what_computes_prefills_is_named():
    assert choose_backend("cpu", CPU, torch.float32).prefill_note is None
    register_backend("one-query", lambda: attention, prefill="reference")
    note = choose_backend("one-query", CPU, torch.float32).prefill_note
    assert note == "backend 'one-query' takes one query a sequence: several at once (prefill) are of 'reference'"
    assert registry._ENTRIES["cuda"].prefill == "reference"


def test_a_gpu_that_is_too_old_is_named_with_what_is_needed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(KernelError, match=r"compute capability 8.0 \(Ampere\) or later, this GPU has 7.5"):
        choose_backend("cuda", torch.device("cuda"), torch.float16, fallback=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_driver_that_is_what_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(KernelError, match="Numba finds no CUDA driver; nvidia-smi"):
        choose_backend("cuda", torch.device("cuda"), torch.float16, fallback=False)


def test_a_numba_that_cannot_be_imported_is_told_in_a_line(monkeypatch):
    def broken():
        raise AttributeError("module 'numpy' has no attribute 'row_stack'")  # numba-cuda 0.30 under NumPy 2.5

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(registry, "_numba_cuda", broken)
    with pytest.raises(KernelError, match=r"cannot be imported \(.*'row_stack'\); pip install 'pqkv\[cuda\]'"):
        choose_backend("cuda", torch.device("cuda"), torch.float16, fallback=False)


def test_auto_is_no_backend_of_its_own():
    with pytest.raises(ConfigError, match="use choose_backend"):
        get_backend("auto")
    with pytest.raises(ValueError, match="registered already"):
        register_backend("auto", lambda: attention)


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
