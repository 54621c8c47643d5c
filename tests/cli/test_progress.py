"""Progress on stderr: lines where there is no terminal, a bar where there is one, and stdout for results alone."""

import io
import sys
import time
from pathlib import Path

import pytest
from pqkv_cli.main import main
from pqkv_cli.progress import ProgressBar

RESULTS = Path(__file__).parents[2] / "results"


class Terminal(io.StringIO):
    """A terminal that keeps what is drawn."""

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Standard error as a terminal of a width."""

    def of(columns, name="xterm-256color"):
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", name)
        found = Terminal()
        monkeypatch.setattr(sys, "stderr", found)
        return found

    return of


def test_without_a_terminal_lines_come_also_while_nothing_is_heard(capsys):
    with ProgressBar(interval=0.05) as bar:
        bar.show("capture", 0, 4)
        bar.show("capture", 1, 4)
        time.sleep(0.4)
        bar.say("note: [bold] stays as it is")
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "capture"
    assert lines[1].startswith("capture: 1 of 4 (")
    assert lines[1].endswith(" left)")
    assert "note: [bold] stays as it is" in lines
    assert lines[-1] == "capture: took 1 s"


def test_a_report_tells_its_stages_on_stderr_and_its_files_on_stdout(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["report", str(RESULTS / "demo"), "-o", str(tmp_path)])
    out, err = capsys.readouterr()
    assert [line for line in err.splitlines() if "took" not in line and "so far" not in line] == [
        "read records",
        "tables and plots of 1 record",
        "page",
    ]
    assert all(Path(line).exists() for line in out.splitlines())


def test_work_that_fails_is_not_said_to_be_over(capsys):
    with pytest.raises(ValueError, match="broken"), ProgressBar(interval=0.01) as bar:
        bar.show("capture", 0, 4)
        time.sleep(0.05)
        raise ValueError("broken")
    assert "took" not in capsys.readouterr().err


@pytest.mark.parametrize("columns", [40, 80, 140])
def test_on_a_terminal_the_figures_of_the_bar_stand_whole_at_any_width(terminal, columns):
    drawn = terminal(columns)
    with ProgressBar() as bar:
        for done in (0, 617, 1234):
            bar.show("cell 1 of 2 [x]: 4 bits, exact-schedule, 2048 tokens, and so on", done, 1600)
            time.sleep(0.2)
    text = drawn.getvalue()
    assert "1234/1600" in text
    assert "0:00:0" in text
    assert "cell 1 of" in text


def test_a_dumb_terminal_gets_lines(terminal):
    drawn = terminal(80, "dumb")
    with ProgressBar() as bar:
        bar.show("capture", 0, 4)
    assert drawn.getvalue() == "capture\n"


@pytest.mark.parametrize("columns", [0, 120])
def test_it_may_be_told_of_every_unit(terminal, monkeypatch, columns):
    if columns:
        drawn = terminal(columns)
    else:
        drawn = io.StringIO()
        monkeypatch.setattr(sys, "stderr", drawn)
    began = time.perf_counter()
    with ProgressBar() as bar:
        for done in range(100_000):
            bar.show("windows", done, 100_000)
    assert time.perf_counter() - began < 10
    assert len(drawn.getvalue()) < 100_000
