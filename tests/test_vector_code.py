import importlib.util
import os
from pathlib import Path

import numba
import pytest

from pqkv.vector_code import chosen, drop_stale_code, tag

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


def test_a_change_in_another_folder_that_is_named_drops_what_was_compiled(function, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    drop_stale_code(function, other)
    assert compiled(function)
    (other / "step.py").touch()
    now = max(path.stat().st_mtime for path in compiled(function))
    os.utime(other / "step.py", (now + 10, now + 10))
    drop_stale_code(function)
    assert compiled(function)
    drop_stale_code(function, other)
    assert not compiled(function)


def test_a_function_whose_code_is_not_kept_has_none_to_drop():
    drop_stale_code(numba.njit(lambda x: x))


@chosen
def length_or_number(x):
    """The length of a tuple, or a number as it is."""
    return (lambda x: len(x)) if isinstance(x, numba.types.BaseTuple) else (lambda x: x)


def test_a_chooser_sees_types_and_what_it_returns_is_compiled():
    run = numba.njit(lambda x: length_or_number(x))
    assert (run(tag(3)), run(()), run(5)) == (3, 0, 5)


def test_a_chooser_keeps_its_name_and_docstring_and_refuses_to_run_uncompiled():
    assert length_or_number.__doc__ == "The length of a tuple, or a number as it is."
    with pytest.raises(TypeError, match="length_or_number runs in compiled code only"):
        length_or_number((1, 2))
