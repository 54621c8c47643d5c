"""The harness's own command line with the model `pqkv` and the tasks that ship with it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from pqkv.errors import ConfigError

MODEL = "pqkv"
TASKS = Path(__file__).parent / "tasks"
_TARGET = "pqkv.harness.model:PQKVLM"


def register() -> None:
    """Let the harness know the model `pqkv`, as an entry point does where a release reads those (after 0.4.13).

    Raises `ConfigError` where the harness is not installed.
    """
    if missing := [name for name in ("lm_eval", "accelerate") if find_spec(name) is None]:
        raise ConfigError(f"lm-evaluation-harness needs the package {missing[0]}: pip install 'pqkv[lm-eval]'")
    import lm_eval.models  # noqa: F401 - its own models come first
    from lm_eval.api.registry import model_registry

    if MODEL not in model_registry:
        model_registry.register(MODEL, target=_TARGET)


def run(arguments: Sequence[str]) -> None:
    """`lm_eval run --model pqkv` with these arguments; without an `--include_path` among them, that of our tasks.

    Raises `ConfigError` for what the harness refuses, and `SystemExit` where it cannot read the arguments.
    """
    register()
    from lm_eval.__main__ import cli_evaluate

    own = ["--model", MODEL]
    if not any(word.split("=")[0] == "--include_path" for word in arguments):
        own += ["--include_path", str(TASKS)]
    with _command_line(["lm_eval", "run", *own, *arguments]):
        try:
            cli_evaluate()
        except (ValueError, KeyError, FileNotFoundError) as error:
            said = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
            raise ConfigError(f"lm-eval: {said} (see lm_eval run --help, lm_eval ls tasks)") from error


@contextmanager
def _command_line(words: list[str]) -> Iterator[None]:
    """The harness reads no other arguments than the process's."""
    before, sys.argv = sys.argv, words
    try:
        yield
    finally:
        sys.argv = before
