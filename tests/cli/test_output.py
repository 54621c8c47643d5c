"""Printing loses nothing: encodings that lack characters, readers that leave, full disks, interrupts."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pqkv_cli.main import main
from pqkv_cli.output import console, echo, make_encodable

NAME = "mod\u00e8le\u2026 \udcff [bold]"  # an accent, an ellipsis, a byte of a file name that is no text, no markup


@pytest.fixture
def stream(monkeypatch):
    """Standard output with an encoding of its own; returns a function that gives it and what was written."""

    def of(encoding, errors="strict"):
        found = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)
        monkeypatch.setattr(sys, "stdout", found)
        return found

    return of


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("ascii", b"mod\\xe8le... \\udcff [bold]\n"),
        ("latin-1", b"mod\xe8le... \\udcff [bold]\n"),
        ("cp1252", b"mod\xe8le\x85 \\udcff [bold]\n"),
        ("utf-8", b"mod\xc3\xa8le\xe2\x80\xa6 \\udcff [bold]\n"),
    ],
)
@pytest.mark.parametrize("way", [echo, lambda text: console().print(text)], ids=["echo", "console"])
def test_every_text_is_written_as_the_encoding_can(stream, encoding, written, way):
    out = stream(encoding)
    make_encodable()
    way(NAME)
    assert out.buffer.getvalue() == written


def test_a_stream_that_passes_the_bytes_of_file_names_still_does(stream):
    out = stream("ascii", "surrogateescape")
    make_encodable()
    make_encodable()
    echo(NAME)
    echo("\udcc3\udca8")
    assert out.buffer.getvalue() == b"mod\\xe8le... \xff [bold]\n\xc3\xa8\n"


def run(words, **streams):
    """A command in a process of its own: exit code and stderr."""
    environment = {**os.environ, **streams.pop("env", {})}
    script = "from pqkv_cli.main import main; main()"
    command = [sys.executable, "-c", script, *map(str, words)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, env=environment, **streams)
    return done.returncode, done.stderr


@pytest.mark.parametrize("words", [["env"], ["env", "--format", "json"], ["reproduce", "--list"], ["--version"]])
def test_a_reader_that_left_is_no_error(words):
    reading, writing = os.pipe()
    os.close(reading)
    assert run(words, stdout=writing) == (0, "")
    os.close(writing)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("words", [["env"], ["env", "--format", "json"], ["--version"], ["--help"]])
def test_a_full_disk_is_one_line(words):
    with Path("/dev/full").open("w") as full:
        code, err = run(words, stdout=full)
    assert code == 2
    assert err.startswith("error: cannot write")
    assert err.count("\n") == 1


def test_a_closed_standard_output_is_no_error():
    assert run(["env"], preexec_fn=lambda: os.close(1)) == (0, "")


def test_progress_that_cannot_be_told_ends_no_run(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    script = "from pqkv_cli.progress import ProgressBar\nwith ProgressBar() as bar:\n    bar.show('capture', 0, 2)\n"
    script += "    bar.say('note: x')\nprint('result')"
    done = subprocess.run([sys.executable, "-c", script], stderr=writing, stdout=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stdout) == (0, b"result\n")


def test_an_error_line_names_files_in_any_encoding(tmp_path):
    code, err = run(["report", tmp_path / "h\u00f4tel\u2026", "-o", "x"], env={"PYTHONIOENCODING": "ascii:strict"})
    assert code == 2
    assert err.splitlines()[-1].endswith("h\\xf4tel...")


def test_an_interrupt_while_a_table_is_printed_is_one_line(monkeypatch, capsys):
    class Interrupted(io.StringIO):
        def write(self, text):
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdout", Interrupted())
    with pytest.raises(SystemExit) as stop:
        main(["env"])
    assert stop.value.code == 130
    assert capsys.readouterr().err.strip().startswith("error: interrupted")


@pytest.mark.parametrize(("stated", "width"), [("40", 40), ("", 130), ("0", 130), ("many", 130)])
def test_a_pipe_is_as_wide_as_columns_says_or_wide(monkeypatch, stream, stated, width):
    monkeypatch.setenv("COLUMNS", stated)
    stream("utf-8")
    assert console().width == width


@pytest.mark.parametrize("terminal", ["dumb", "xterm-256color"])
def test_a_terminal_is_as_wide_as_it_is_and_no_color_is_heeded(terminal):
    import pty
    import tty

    script = "import os, fcntl, struct, termios, sys\n"
    script += "fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 40, 0, 0))\n"
    script += "from pqkv_cli.output import console\nfrom rich.text import Text\n"
    script += "out = console()\nout.print(Text(f'{out.width}', style='red'))"
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    environment |= {"TERM": terminal, "NO_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", script], stdout=theirs, stdin=theirs, check=False, env=environment)
    assert done.returncode == 0
    assert os.read(ours, 100) == b"40\n"
    os.close(ours)
    os.close(theirs)
