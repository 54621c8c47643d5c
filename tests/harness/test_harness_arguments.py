"""What the harness's model is told and how it is found: model arguments, entry point, registry, command."""

import sys
from importlib.metadata import EntryPoint
from inspect import signature

import pytest

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'pqkv[lm-eval]'")

from pqkv.errors import ConfigError, PqkvError
from pqkv.harness.config import OF_THE_HARNESS, HarnessConfig
from pqkv.harness.model import PQKVLM
from pqkv.harness.run import TASKS, register, run


def test_what_the_harness_takes_itself_is_named_among_the_known():
    own = {"batch_size", "max_batch_size"}  # options of the command
    taken = {name for name, one in signature(PQKVLM.__init__).parameters.items() if one.kind is one.KEYWORD_ONLY}
    assert set(OF_THE_HARNESS) == taken - own


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bit": 4}, "unknown key 'bit'; did you mean 'bits'\\? known keys: .*bits.*max_length"),
        ({"bits": 4, "codebooks": "x"}, "one of codebooks, bits and codec"),
        ({"coded_sinks": 4}, "mode=all-coded"),
        ({"bits": 0, "control": True}, "no control"),
        ({"mode": "token"}, "'exact-schedule' or 'all-coded'"),
        ({"page_size": 256}, "residual"),
    ],
)
def test_wrong_model_arguments_are_told_in_one_line(arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        HarnessConfig.of(arguments)
    assert "\n" not in str(caught.value)


def test_a_batch_size_that_is_tried_out_is_refused():
    with pytest.raises(ConfigError, match="--batch_size 8"):
        PQKVLM(batch_size="auto")


def test_options_of_a_codec_may_stand_in_model_arguments():
    assert HarnessConfig.of({"codec": "kivi:bits=2;group=32"}).evaluation().codec == ("kivi:bits=2,group=32",)


def test_model_arguments_name_the_codes_of_eval():
    wanted = HarnessConfig.of({"pretrained": "reference", "bits": 3, "page-size": 32}).evaluation()
    assert (wanted.model, wanted.bits, wanted.page_size, wanted.mode) == ("reference", (3,), 32, ("exact-schedule",))


def test_the_model_is_registered_and_its_entry_point_names_it():
    import tomllib
    from pathlib import Path

    from lm_eval.api.registry import get_model

    register()
    register()
    assert get_model("pqkv") is PQKVLM
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    ((name, target),) = project["entry-points"]["lm_eval.models"].items()
    assert EntryPoint(name, target, "lm_eval.models").load() is PQKVLM


def test_without_the_harness_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setattr("pqkv.harness.run.find_spec", lambda name: None)
    with pytest.raises(PqkvError, match=r"pip install 'pqkv\[lm-eval\]'"):
        run(["--tasks", "pqkv_needle"])


def handed_on(monkeypatch, arguments):
    """The command line that the harness is given."""
    import lm_eval.__main__ as harness

    seen = []
    monkeypatch.setattr(harness, "cli_evaluate", lambda: seen.extend(sys.argv))
    from pqkv_cli.main import main

    with pytest.raises(SystemExit) as caught:
        main(["lm-eval", *arguments])
    assert caught.value.code == 0
    return seen


def test_the_command_hands_its_options_on_in_their_order(monkeypatch):
    before = list(sys.argv)
    given = ["--model_args", "pretrained=reference,bits=2", "-t", "a,b", "--limit", "2", "--log_samples", "-o", "out"]
    seen = handed_on(monkeypatch, given)
    assert seen == ["lm_eval", "run", "--model", "pqkv", "--include_path", str(TASKS), *given]
    assert sys.argv == before
    assert handed_on(monkeypatch, ["--control", *given])[-2:] == ["--model_args", "control=True"]
    seen = handed_on(monkeypatch, [*given, "--include_path", "mine"])
    assert seen.count("--include_path") == 1


def test_what_the_harness_refuses_is_told_in_one_line(monkeypatch, capsys):
    import lm_eval.__main__ as harness

    def refuse():
        raise ValueError("Tasks not found: no_such_task")

    monkeypatch.setattr(harness, "cli_evaluate", refuse)
    from pqkv_cli.main import main

    with pytest.raises(SystemExit) as caught:
        main(["lm-eval", "--tasks", "no_such_task"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: lm-eval: Tasks not found: no_such_task (see lm_eval")


@pytest.mark.timeout(1200)
@pytest.mark.slow  # the harness reads the 14,000 files of its own tasks first
def test_the_command_runs_a_task_and_keeps_what_was_coded(four, tmp_path, capfd):
    from json import loads

    from pqkv_cli.main import main

    with pytest.raises(SystemExit) as caught:
        main(
            ["lm-eval", "--model_args", f"codebooks={four}", "--tasks", "pqkv_needle", "--metadata", "fact=number",
             "characters=900", "needles=2", "--output_path", str(tmp_path), "--log_samples", "--control"]
        )  # fmt: skip
    assert caught.value.code == 0
    out, err = capfd.readouterr()
    assert "depth 10%" in out
    assert "codes, in 2 of 2 requests any" in err
    (results,) = tmp_path.rglob("results_*.json")
    about = loads(results.read_text())["config"]["pqkv"]
    assert about["control"] is True
    assert about["coded_columns"]["loglikelihood"]["pqkv_needle_10"]["requests"] == 2
    assert len(list(tmp_path.rglob("samples_*.jsonl"))) == 5
