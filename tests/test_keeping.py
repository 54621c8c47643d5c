"""Where codebooks and compiled code are kept: what the environment names, home, and at last temporary files."""

import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pqkv import keeping
from pqkv.errors import CodebookError
from pqkv.keeping import Place, cache_place
from pqkv.lm.defaults import cache_folder

ROOT = Path(__file__).parents[1]
NOBODY = 54321  # a uid without an entry in the list of users
as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become a user without a name"
)


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A file: nothing can be written below it, not even by root."""
    path = tmp_path / "file"
    path.touch()
    return path


@pytest.fixture
def surroundings(monkeypatch, tmp_path, nowhere):
    """Nothing but temporary files can be written: no variables, home below a file."""
    for name in ("PQKV_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(nowhere / "home"))
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    forget()
    yield temporary
    forget()


def forget():
    """What is found or said once a process is found and said anew."""
    keeping._temporary_folder.cache_clear()
    keeping._say.cache_clear()


def private(temporary):
    return temporary / f"pqkv-{os.geteuid()}"


def test_the_first_place_that_can_be_written_is_taken(surroundings, monkeypatch, tmp_path, nowhere):
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    assert cache_place() == Place((), home / ".cache" / "pqkv")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_place() == Place((), tmp_path / "xdg" / "pqkv")
    monkeypatch.setenv("PQKV_CACHE", str(tmp_path / "own"))
    assert cache_place() == Place((), tmp_path / "own")
    monkeypatch.setenv("PQKV_CACHE", str(nowhere / "own"))
    assert cache_place() == Place((nowhere / "own",), tmp_path / "xdg" / "pqkv")


def test_temporary_files_are_the_last_resort_private_and_the_same_next_time(surroundings):
    folder = cache_place().folder
    assert folder == private(surroundings)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    forget()
    assert cache_place().folder == folder


@pytest.mark.parametrize("taken", ["open to all", "a link", "a file"])
def test_a_temporary_folder_that_others_could_write_is_not_used(surroundings, tmp_path, taken):
    """What is read from it runs as code."""
    place = private(surroundings)
    if taken == "open to all":
        place.mkdir()
        place.chmod(0o777)
    elif taken == "a link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "theirs")
    else:
        place.touch()
    folder = cache_place().folder
    if taken == "a file":
        assert folder is None or folder != place
    else:
        assert folder != place
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@as_root
def test_a_temporary_folder_of_another_user_is_not_used(surroundings):
    private(surroundings).mkdir(mode=0o700)
    os.chown(private(surroundings), NOBODY, NOBODY)
    assert cache_place().folder != private(surroundings)


def test_what_is_passed_over_is_said_once_with_the_variables(surroundings, caplog):
    with caplog.at_level(logging.WARNING, "pqkv"):
        for _ in range(3):
            cache_place()
    (message,) = [record.message for record in caplog.records]
    assert "cannot be written" in message
    assert "PQKV_CACHE" in message
    assert "NUMBA_CACHE_DIR" in message


def test_nothing_is_said_where_the_usual_place_can_be_written(surroundings, caplog, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    cache_place()
    assert not caplog.records


def test_where_nothing_can_be_written_default_codebooks_say_so(surroundings, monkeypatch, nowhere):
    monkeypatch.setattr(tempfile, "tempdir", str(nowhere))
    with pytest.raises(CodebookError, match="set PQKV_CACHE to one that can"):
        cache_folder()


SOURCE = """

from pqkv.compiled import compiled

@compiled()
def double(x):
    return 2 * x
"""


def run(program, **environment):
    """A fresh process without HOME and the like."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "cli"), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**kept, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def package(tmp_path):
    """A module whose compiled code cannot lie beside it, not even root's."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "__pycache__").touch()
    (folder / "doubling.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "tmp").mkdir()
    (tmp_path / "here").mkdir()
    return folder


TWICE = """
import sys; sys.path.insert(0, {package!r})
import numba
from doubling import double
assert double(3) == 6
print(double.stats.cache_path, *double.stats.cache_hits.values(), repr(numba.config.CACHE_DIR))
"""


def test_compiled_code_is_kept_and_found_again_where_neither_installation_nor_home_can_be_written(package, tmp_path):
    environment = {"HOME": str(package / "doubling.py"), "TMPDIR": str(tmp_path / "tmp")}
    program = TWICE.format(package=str(package))
    first, second = (run(program, **environment) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert first.stdout.startswith(str(private(tmp_path / "tmp") / "numba"))
    assert first.stdout.split()[1:] == ["''"]  # nothing found, and Numba's own setting is what it was
    assert second.stdout.split()[1:] == ["1", "''"]
    assert first.stderr.count("PQKV_CACHE") == 1


def test_numbas_own_folder_comes_first(package, tmp_path):
    done = run(TWICE.format(package=str(package)), NUMBA_CACHE_DIR=str(tmp_path / "numbas"), HOME="/")
    assert done.stdout.startswith(str(tmp_path / "numbas")), done.stderr
    assert not done.stderr


def test_without_any_place_functions_are_compiled_all_the_same(package, tmp_path):
    lines = "import tempfile; tempfile.tempdir = {!r}\n".format(str(package / "doubling.py"))
    done = run(lines + TWICE.format(package=str(package)), HOME=str(package / "doubling.py"))
    assert done.stdout.split() == ["None", "''"], done.stderr
    assert done.stderr.count("every process compiles its kernels anew") == 1


NAMELESS = """
import os, sys
import torch
import pqkv.kernels.cpu, pqkv.lm.defaults
from pqkv.codec.nearest import nearest
vectors, centroids = torch.randn(1, 9, 4), torch.randn(1, 2, 8, 2)
expected = nearest(vectors, centroids)  # packages may lie where the other user cannot read: nothing is imported late
for name in [name for name in sys.modules if name.split(".")[0] == "pqkv"]:
    del sys.modules[name]
sys.path.insert(0, {copy!r})
os.setgid({uid}); os.setuid({uid})
os.chdir({here!r})
from pqkv.codec.nearest import nearest
import pqkv.kernels.cpu, pqkv.lm.defaults
assert pqkv.__file__.startswith({copy!r})
assert torch.equal(nearest(vectors, centroids), expected)
print(pqkv.lm.defaults.cache_folder(), os.listdir("."))
"""


@as_root
def test_a_user_without_name_and_home_runs_kernels_of_an_installation_that_it_cannot_write():
    with tempfile.TemporaryDirectory() as outer:
        root = Path(outer)
        copy, here, temporary = (root / name for name in ("installed", "here", "tmp"))
        shutil.copytree(ROOT / "pqkv", copy / "pqkv", ignore=shutil.ignore_patterns("__pycache__", "reference"))
        for folder, mode in ((root, 0o755), (here, 0o777), (temporary, 0o777)):
            folder.mkdir(exist_ok=True)
            folder.chmod(mode)
        done = run(NAMELESS.format(copy=str(copy), here=str(here), uid=NOBODY), TMPDIR=str(temporary))
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [str(temporary / f"pqkv-{NOBODY}"), "[]"]  # no folder called ~ either
        assert "there is no home folder" in done.stderr
        assert not list(copy.rglob("__pycache__"))
