"""What lies in results is what its records say, and what a run today would find again."""

import re
from pathlib import Path

import pytest

from pqkv.record import RecordStore
from pqkv.reproduce import EXPERIMENTS, Request
from pqkv.reproduce.million.lab import MILLION, Lab
from pqkv.reproduce.million.quality import PER_HEAD, ROTATED_MILLION
from pqkv.reproduce.models import MODELS_FILE
from pqkv.reproduce.run import asks_a_model, settings_of

ROOT = Path(__file__).parents[2]
REAL = "### On a real model"
pytestmark = pytest.mark.xdist_group("committed-claims")  # records are read once, not in each process


@pytest.fixture(scope="module", params=EXPERIMENTS)
def written(request, tmp_path_factory):
    """(name, folder of its results, what its records make today)."""
    found, folder = EXPERIMENTS[request.param], ROOT / "results" / request.param
    out = tmp_path_factory.mktemp(request.param)
    files = found.load().derive(RecordStore(folder).load_all(), out)
    return found.name, folder, {path.name: path for path in files}


def test_tables_and_claims_are_those_of_the_records(written):
    _, folder, files = written
    texts = {name: path.read_text() for name, path in files.items() if path.suffix in (".csv", ".md")}
    assert "claims.csv" in texts
    assert {name: (folder / name).read_text() for name in texts} == texts
    assert (folder / MODELS_FILE).exists() == (MODELS_FILE in texts)


def test_the_readme_quotes_what_a_real_model_said_word_by_word(written):
    """Lines of the section's table are lines of models.md; there are some once a second model was asked."""
    name, _, files = written
    if not asks_a_model(EXPERIMENTS[name]):
        assert MODELS_FILE not in files  # nothing there is a model's
        finding = (ROOT / "experiments" / name / "README.md").read_text().split("\n## Finding\n")[1].split("\n## ")[0]
        quoted = [line for line in finding.splitlines() if line.startswith("|")]
        assert len(quoted) > 2
        assert set(quoted) <= set(files["claims.md"].read_text().splitlines())
        return
    section = (ROOT / "experiments" / name / "README.md").read_text().split(f"\n{REAL}\n")[1].split("\n## ")[0]
    quoted = [line for line in section.splitlines() if line.startswith("|")]
    found = files[MODELS_FILE].read_text().splitlines() if MODELS_FILE in files else []
    assert set(quoted) <= set(found)
    assert (len(quoted) > 2) == bool(found)


def test_rows_of_a_readme_that_are_claims_are_rows_of_its_claims(written):
    """Wherever in it they stand: a part's letter in front, a verdict at the end. That of `million` sums several up."""
    name, _, files = written
    if name == "million":
        return
    text = (ROOT / "experiments" / name / "README.md").read_text()
    quoted = re.findall(r"^\| [a-z] \| .* \| (?:yes|no|not known|not measurable here|nothing claimed) \|$", text, re.M)
    found = [files[file].read_text().splitlines() for file in ("claims.md", MODELS_FILE) if file in files]
    assert set(quoted) <= {line for lines in found for line in lines}


def test_codebooks_that_were_trained_for_the_claims_are_found_again(reference, tmp_path):
    settings = settings_of(EXPERIMENTS["million"], ROOT / "experiments", quick=False)
    lab = Lab(settings, Request(RecordStore(tmp_path)))
    lab.__dict__["lm"] = reference
    shapes = (*settings.shapes, *settings.opq_shapes)
    recipes = (MILLION, ROTATED_MILLION, *PER_HEAD)
    wanted = [lab.about(lab.training(recipe, shape)) for shape in shapes for recipe in recipes]
    kept = [r.config for r in RecordStore(ROOT / "results" / "million").load_all() if r.kind == "million-codebooks"]
    own = [config for config in kept if config["model"] == reference.name]
    assert own
    assert all(config in wanted for config in own)
