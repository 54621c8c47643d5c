"""The command line as a user meets it: what it prints, what it refuses and how."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from pqkv_cli.main import main


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Enough text for a few windows of 160 tokens."""
    path = tmp_path_factory.mktemp("text") / "novel.txt"
    path.write_text(
        "\n".join(f"In the year {1700 + i} the harbour held {i * 7} ships and a lantern." for i in range(400))
    )
    return path


@pytest.fixture(scope="module")
def codebooks(tmp_path_factory):
    """A small but real codebook file for the bundled model, made by the command itself."""
    path = tmp_path_factory.mktemp("books") / "books.safetensors"
    words = ["train-codebooks", "--num-subspaces", "16", "--nbits", "4", "--samples", "600", "--iterations", "3"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--calibration-tokens", "1024", "--context", "256", "-o", str(path)])
    assert stop.value.code == 0
    return path


def run(capsys, *words):
    """Exit code, stdout and stderr of one command."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def refused(capsys, *words):
    """The one line with which a command is refused; anything else fails the test."""
    code, out, err = run(capsys, *words)
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


def test_help_imports_nothing_heavy():
    script = (
        "import sys\nfrom pqkv_cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "names = 'torch transformers numpy pandas matplotlib faiss numba pydantic'\n"
        "heavy = set(names.split()) & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "train-codebooks" in done.stdout


def test_version_and_env(capsys):
    assert run(capsys, "--version")[1].startswith("pqkv ")
    code, out, _ = run(capsys, "env", "--format", "json")
    assert code == 0
    assert {"python", "cores", "versions", "git"} <= set(json.loads(out))


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["eval", "--contxt", "128"], "--contxt"),
        (["frobnicate"], "frobnicate"),
        (["eval", "--context", "many"], "--context takes whole numbers"),
        (["eval", "--mode", "guess"], "exact-schedule"),
        (["eval", "--metrics", "beauty"], "perplexity"),
        (["eval", "--page-size", "0"], "page_size"),
        (["eval", "--residual", "32"], "residual (32) is smaller than page_size (64)"),
        (["eval", "--bits", "0"], "exact cache"),
        (["eval", "--backend", "abacus", "--context", "256"], "reference"),
        (["eval", "--codebooks", "nowhere.safetensors"], "nowhere.safetensors"),
        (["eval", "--config", "nowhere.toml"], "nowhere.toml"),
        (["eval", "--context", "100000"], "8192 positions"),
        (["train-codebooks", "--bits", "5", "-o", "x.safetensors"], "5 bits"),
        (["train-codebooks", "--num-subspaces", "7", "--nbits", "8", "-o", "x.safetensors"], "not divisible"),
        (["train-codebooks", "--bits", "4"], "--output"),
        (["report", "nowhere", "-o", "out"], "nowhere"),
    ],
)
def test_a_wrong_word_is_one_line_with_its_cause(capsys, tmp_path, monkeypatch, words, cause):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PQKV_CACHE", str(tmp_path / "cache"))
    assert cause in refused(capsys, *words)
    assert not list(tmp_path.glob("*.safetensors"))


def test_debug_shows_the_traceback(capsys):
    from pqkv.errors import ConfigError

    with pytest.raises(ConfigError):
        main(["eval", "--context", "many", "--debug"])


def test_a_corrupt_codebook_file_is_refused(capsys, codebooks, text, tmp_path):
    data = bytearray(codebooks.read_bytes())
    data[len(data) // 2] ^= 1
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(data)
    line = refused(capsys, "eval", "--codebooks", broken, "--data", text, "--context", "160")
    assert "broken.safetensors" in line
    assert "checksum" in line


def test_an_output_that_cannot_be_written_is_refused_before_any_work(capsys, tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("in the way")
    assert "cannot write" in refused(capsys, "train-codebooks", "--bits", "4", "-o", occupied / "x.safetensors")
    assert occupied.read_text() == "in the way"


def test_eval_prints_records_and_keeps_them(capsys, codebooks, text, tmp_path):
    words = ["eval", "--codebooks", codebooks, "--data", text, "--context", "160,192", "--windows", "2"]
    words += ["--residual", "16", "--page-size", "16", "-o", tmp_path / "results", "--format", "json"]
    code, out, _ = run(capsys, *words)
    assert code == 0
    records = json.loads(out)
    assert [record["config"]["context"] for record in records] == [160, 192]
    assert {path.stem for path in (tmp_path / "results").glob("*.json")} == {record["digest"] for record in records}
    for record in records:
        metrics = record["metrics"]
        ratio = metrics["perplexity"]["value"] / metrics["perplexity_exact"]["value"]
        assert metrics["perplexity_ratio"]["value"] == pytest.approx(ratio)
        assert metrics["kld_mean"]["value"] > 0
        assert record["config"]["data"] == "novel.txt"  # no path of this machine in a record
        assert str(tmp_path) not in json.dumps(record)

    again = json.loads(run(capsys, *words)[1])
    assert again == records  # read, not measured again: even the times are the same
    forced = json.loads(run(capsys, *words, "--force")[1])
    assert [r["started_at"] for r in forced] != [r["started_at"] for r in records]
    assert forced[0]["metrics"] == records[0]["metrics"]

    code, out, _ = run(capsys, "report", tmp_path / "results", "-o", tmp_path / "report")
    assert code == 0
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"summary.csv", "summary.md", "kld_mean_by_context.png", "report.html"} <= names
    words = ["report", tmp_path / "results", "-o", tmp_path / "other", "--experiments", "nowhere"]
    assert "no folder of experiments at nowhere" in refused(capsys, *words)
    assert not (tmp_path / "other").exists()


def test_table_and_csv_go_to_stdout_and_progress_to_stderr(capsys, codebooks, text):
    words = ["eval", "--codebooks", codebooks, "--data", text, "--context", "160", "--windows", "1"]
    code, out, err = run(capsys, *words)
    assert code == 0
    assert "PPL ratio" in out
    assert "top-1 agreement" in out
    assert "cell 1 of 1" in err
    csv = run(capsys, *words, "--format", "csv")[1].splitlines()
    assert csv[0].startswith("kind,status,machine")
    assert len(csv) == 2


def test_a_finished_evaluation_is_printed_whatever_the_terminal_can_show(codebooks, text, tmp_path):
    named = tmp_path / "h\u00f4tel\u2026 [bold].txt"
    named.write_bytes(text.read_bytes())
    words = ["eval", "--codebooks", codebooks, "--data", named, "--context", "160", "--windows", "1", "-o", tmp_path]
    done = subprocess.run(
        [sys.executable, "-c", "from pqkv_cli.main import main; main()", *map(str, words)],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict", "COLUMNS": "40"},
    )
    assert done.returncode == 0, done.stderr
    out = done.stdout.decode("ascii")
    (record,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert "h\\xf4tel... [bold].txt" in out
    assert f"PPL exact  {record['metrics']['perplexity_exact']['value']:.3f}\n" in out
    assert f"context    {record['config']['context']}\n" in out


def test_flags_win_over_the_file_and_unknown_keys_are_named(capsys, codebooks, text, tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text(f'codebooks = ["{codebooks}"]\ndata = "{text}"\ncontext = [160]\nwindows = 2\nresidual = 64\n')
    out = run(capsys, "eval", "--config", file, "--windows", "1", "--format", "json")[1]
    config = json.loads(out)[0]["config"]
    assert (config["windows"], config["residual"]) == (1, 64)
    file.write_text("contxt = [160]\n")
    line = refused(capsys, "eval", "--config", file)
    assert "contxt" in line
    assert "settings.toml" in line


def test_running_out_of_pages_fails_the_cell_and_says_so(capsys, codebooks, text, tmp_path):
    words = ["eval", "--codebooks", codebooks, "--data", text, "--context", "160", "--windows", "1", "--mode", "chunk"]
    words += ["--page-size", "16", "--residual", "16", "--max-pages", "1", "--chunk-size", "32"]
    code, _, err = run(capsys, *words, "--no-fallback", "-o", tmp_path / "out")
    assert code == 2
    assert "out of pages" in err
    assert "--max-pages" in err
    assert [path.name.endswith(".failure.json") for path in (tmp_path / "out").iterdir()] == [True]


def test_a_fallback_is_said_once_and_recorded(capsys, codebooks, text, tmp_path):
    words = ["eval", "--codebooks", codebooks, "--data", text, "--context", "160", "--windows", "1", "--mode", "chunk"]
    words += ["--page-size", "16", "--residual", "16", "--max-pages", "1", "--format", "json", "--metrics", "kld"]
    code, out, err = run(capsys, *words, "--chunk-size", "32")
    assert code == 0
    assert err.count("a contiguous cache ran instead") == 1
    assert "out of pages" in json.loads(out)[0]["notes"][0]


def test_interrupting_keeps_finished_cells(codebooks, text, tmp_path):
    words = ["eval", "--codebooks", codebooks, "--data", text, "--metrics", "kld", "-o", tmp_path]
    words += ["--context", "160,2048", "--windows", "12"]  # the second cell takes seconds
    # a shell starts what it puts into the background with interrupts ignored, and children inherit that
    script = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script += "from pqkv_cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, words)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130, error
    assert error.strip().splitlines()[-1].startswith("error: interrupted")
    assert len(list(tmp_path.glob("*.json"))) == 1
