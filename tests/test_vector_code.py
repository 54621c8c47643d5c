import importlib.util
import os
from pathlib import Path

import numba
import pytest

from pqkv.vector_code import drop_stale_code

SOURCE = """
import numba

@numba.njit(cache=True)
def double(x):
    return 2 * x
"""


@pytest.fixture(params=["beside the source", "in a folder of its own"])
def function(request, tmp_path, monkeypatch):
    """A compiled function of a module in an empty folder, at each place where Numba may cache it."""
    elsewhere = request.param == "in a folder of its own"
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache") if elsewhere else "")
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "doubling.py").write_text(SOURCE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("doubling", folder / "doubling.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.double(3) == 6
    return module.double


def compiled(function):
    return sorted(Path(function.stats.cache_path).glob("*.nb[ic]"))


def test_compiled_code_that_is_younger_than_every_source_stays(function):
    before = compiled(function)
    assert len(before) == 2
    drop_stale_code(function)
    assert compiled(function) == before


def test_a_change_in_any_file_of_the_folder_drops_what_was_compiled(function, tmp_path):
    """Numba itself would look at the file of the function alone."""
    neighbour = tmp_path / "package" / "intrinsics.py"
    neighbour.touch()
    now = max(path.stat().st_mtime for path in compiled(function))
    os.utime(neighbour, (now + 10, now + 10))
    drop_stale_code(function)
    assert not compiled(function)


def test_a_change_in_the_shared_helpers_drops_what_was_compiled(function, tmp_path):
    """All of the folder is older than what was compiled, and that is older than `vector_code.py`."""
    os.utime(tmp_path / "package" / "doubling.py", (1, 1))
    for path in compiled(function):
        os.utime(path, (2, 2))
    drop_stale_code(function)
    assert not compiled(function)
