"""Notebooks run as they are, wherever they are started, and are committed without what they printed, but one: the whole
way on the bundled model, which measures and is committed as it ran.
"""

import json
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WHOLE = ROOT / "notebooks/whole-way.ipynb"
NOTEBOOKS = sorted(set((ROOT / "notebooks").glob("*.ipynb")) - {WHOLE})


def cells(path, kind):
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def run(path, where, timeout=120):
    """The notebook after a run of all its cells in `where`, by the kernel of this Python and with this pqkv."""
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient").NotebookClient
    pytest.importorskip("ipykernel")
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    runner = client(book, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(where)}})
    runner.execute(env=environment)
    return book


def printed(book):
    return "".join(
        "".join(output.get("text", ""))
        for cell in book["cells"]
        if cell["cell_type"] == "code"
        for output in cell["outputs"]
        if output.get("name") == "stdout"
    )


def pictures(book):
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output for output in outputs if "image/png" in output.get("data", {})]


def test_there_is_a_notebook_for_each_experiment():
    assert {path.stem for path in NOTEBOOKS} == {
        "quality", "bench", "static", "reference-model", "quality-degradation", "million",
    }  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_printed_is_committed(path):
    for cell in cells(path, "code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
    headings = [cell["source"][0].strip() for cell in cells(path, "markdown")]
    assert headings[0].endswith("?")  # the question
    assert headings[-1] == "## What to read from it"


def losses(text):
    """Figures of the rows on quality: mode, bits, then ratio, agreement and KLD with their intervals."""
    rows = [line for line in text.splitlines() if re.match(r" *(all-coded|exact-schedule)", line)]
    return {tuple(row.split()[:2]): [float(number) for number in re.findall(r"\d[\d.e-]*", row)[3:]] for row in rows}


def test_the_whole_way_was_gone():
    book = json.loads(WHOLE.read_text(encoding="utf-8"))
    code = cells(WHOLE, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    found = losses(printed(book))
    assert len(found) == 6
    for bits in ("4.06", "3.06", "2.06"):  # what its last page concludes
        schedule, everything = found["exact-schedule", bits], found["all-coded", bits]
        assert everything[6] > 10 * schedule[6]
    assert "smaller than bfloat16" in printed(book)
    assert str(ROOT.parent) not in WHOLE.read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_way_goes_on_working(tmp_path):
    committed = json.loads(WHOLE.read_text(encoding="utf-8"))
    book = run(WHOLE, tmp_path, timeout=600)
    assert len(pictures(book)) == 2
    then, now = losses(printed(committed)), losses(printed(book))
    assert then.keys() == now.keys()
    if committed["metadata"]["language_info"]["version"] == ".".join(map(str, sys.version_info[:2])):  # one text
        for cell, figures in then.items():
            assert now[cell] == pytest.approx(figures, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_runs_from_anywhere(path, tmp_path):
    for where in (path.parent, tmp_path):
        book = run(path, where)
        holds_records = next((ROOT / "results" / path.stem).glob("*.json*"), None) is not None
        if holds_records:
            assert pictures(book)
        else:
            assert f"results/{path.stem} holds no records yet" in printed(book)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quality-degradation", "million"])
def test_a_notebook_shows_what_an_experiment_wrote(name, tmp_path):
    records = sorted((ROOT / "results" / "demo").glob("*.json"))
    folder = tmp_path / "results" / name
    folder.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("")
    for record in records:
        (folder / record.name).write_bytes(record.read_bytes())
    (folder / "fingerprint.csv").write_text(
        "model,device,bits,fault,context,kld_mean\nm,cpu,4,none,512,0.1\nm,cpu,4,stale,512,0.5\nn,cpu,4,none,512,0.3\n"
    )
    (folder / "claims.csv").write_text("part,model,claim,theirs,ours,holds\n1,m,a,1.0,1.1,yes\n2,m,b,few,many,no\n")
    (folder / "a_quality.csv").write_text(
        "model,text,context,setting,bits,kld_mean\nm,x,512,ours,2,0.1\nn,x,512,ours,4,0.01\n"
    )
    book = run(ROOT / "notebooks" / f"{name}.ipynb", tmp_path)
    assert pictures(book)
    assert "no records yet" not in printed(book)
    assert f"{len(records)} cells, 0 failed" in printed(book)
