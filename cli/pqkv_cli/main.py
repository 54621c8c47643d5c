"""The application and its one way to fail: a line that names cause and remedy, exit code 2."""

from __future__ import annotations

import errno
import logging
import sys
from typing import Annotated

import typer

from pqkv.errors import PqkvError
from pqkv_cli.bench import bench
from pqkv_cli.codecs import codecs
from pqkv_cli.compare import compare
from pqkv_cli.env import env
from pqkv_cli.evaluate import evaluate
from pqkv_cli.examples import EXAMPLES
from pqkv_cli.export import export
from pqkv_cli.generate import generate
from pqkv_cli.harness import HANDED_ON, lm_eval
from pqkv_cli.lab import lab
from pqkv_cli.merge import merge
from pqkv_cli.models import models
from pqkv_cli.output import discard, echo, make_encodable
from pqkv_cli.recommend import recommend
from pqkv_cli.report import report
from pqkv_cli.reproduce import reproduce
from pqkv_cli.sweep import sweep
from pqkv_cli.train_codebooks import train_codebooks

USAGE_ERROR = 2
_GIVEN_UP = (errno.EPIPE, errno.ENOSPC)  # a reader that left, a full disk: no fault of ours to trace
INTERRUPTED = 130
_INTERRUPTED_LINE = (
    "interrupted; finished cells are kept where -o names a folder, and the same command goes on from them"
)

app = typer.Typer(
    name="pqkv",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="What it costs to product-quantize and page a KV cache: quality, memory and speed, measured.",
)
for name, command in {
    "train-codebooks": train_codebooks,
    "eval": evaluate,
    "lm-eval": lm_eval,
    "generate": generate,
    "export": export,
    "lab": lab,
    "codecs": codecs,
    "recommend": recommend,
    "bench": bench,
    "sweep": sweep,
    "merge": merge,
    "compare": compare,
    "report": report,
    "reproduce": reproduce,
    "models": models,
    "env": env,
}.items():
    given = HANDED_ON if command is lm_eval else None
    app.command(name, epilog=f"Example: {EXAMPLES[name]}", context_settings=given)(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        from pqkv import __version__

        echo(f"pqkv {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere on the line).")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with 0, with 1 for what `compare` was told to fail above, with 2 for whatever the
    user can mend, with 130 for Ctrl-C.
    """
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    make_encodable()
    _log_to_stderr()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries end in one error of ours
    try:
        code = app([word for word in given if word != "--debug"], standalone_mode=False)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except PqkvError as error:
        if debug:
            raise
        _fail(str(error), USAGE_ERROR)
    except OSError as error:
        if debug or error.errno not in _GIVEN_UP:
            raise
        discard(sys.stdout)
        _fail(f"cannot write: {error.strerror}; make room or name another place", USAGE_ERROR)
    except Exception as error:
        if type(error).__name__ == "Abort":
            _fail(_INTERRUPTED_LINE, INTERRUPTED)
        # typer carries its own copy of click in some versions: know its usage errors by what they can do
        message = getattr(error, "format_message", None)
        if message is None or debug:
            raise
        command = next((word for word in given if word in _commands()), None)
        where = f"pqkv {command} --help" if command else "pqkv --help"
        _fail(f"{message().splitlines()[0].rstrip('.')} (see {where})", USAGE_ERROR)
    if code == INTERRUPTED:
        _fail(_INTERRUPTED_LINE, INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


class _Echo(logging.Handler):
    """Log records as lines on whatever stderr is at the time: above a bar that is being drawn, and in any encoding."""

    def emit(self, record: logging.LogRecord) -> None:
        echo(self.format(record), stderr=True)


def _log_to_stderr() -> None:
    logger = logging.getLogger("pqkv")
    if not any(isinstance(handler, _Echo) for handler in logger.handlers):
        handler = _Echo()
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        logger.addHandler(handler)


def _commands() -> set[str]:
    return {info.name for info in app.registered_commands if info.name}


def _fail(message: str, code: int) -> None:
    echo(f"error: {' '.join(message.split())}", stderr=True)
    sys.exit(code)
