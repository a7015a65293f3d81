"""The ``zopeft`` command: every subcommand, and what happens when one fails.

Exit code 0: done. 2: the user's input is wrong. 1: it broke while running, or was
interrupted: by Ctrl-C, SIGTERM or SIGHUP. Each failure is one line on standard error;
``--debug`` shows the traceback.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Sequence

import typer

from zopeft.ranks import leads, several
from zopeft.tasks.threads import hold_threads

from .bench import bench
from .blocks import blocks
from .chat import chat
from .data import data_app
from .demo import demo
from .doctor import doctor
from .estimate import estimate
from .evaluate import evaluate
from .finetuner import finetuner_app
from .import_finetuner import import_finetuner
from .interrupts import TYPERS_INTERRUPT, InterruptError, ended_by_signals
from .leaving import Leaving
from .lists import list_names
from .merge import merge
from .meta_train import meta_train
from .push import push
from .recipes import recipe_app
from .run_options import with_auto
from .spared import Process
from .tune import tune

SHOWN = 40
"""Characters that are shown of a name that is too long."""

app = typer.Typer(
    name="zopeft",
    help="Fine-tune language models with forward passes only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("meta-train")(meta_train)
app.command("tune")(tune)
app.command("eval")(evaluate)
app.command("chat")(chat)
app.command("merge")(merge)
app.command("push")(push)
app.command("bench")(bench)
app.command("blocks")(blocks)
app.command("estimate")(estimate)
app.add_typer(finetuner_app, name="finetuner")
app.command("import-finetuner")(import_finetuner)
app.command("list")(list_names)
app.add_typer(data_app, name="data")
app.add_typer(recipe_app, name="recipe")
app.command("demo")(demo)
app.command("doctor")(doctor)


TOGETHER = ("tune", "eval", "meta-train")
"""Commands that several processes do together; of others the first one does them alone."""
STARTED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What tells a process that it was started with others."""


@app.callback(invoke_without_command=True)
def _version(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version."),
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"zopeft {installed('zopeft')}")
        raise typer.Exit(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The words after ``zopeft``; None takes the process's own.

    Returns:
        The exit code.
    """
    words = with_auto(sys.argv[1:] if argv is None else argv)
    Process.own = argv is None
    if several() and words[:1] not in [[name] for name in TOGETHER]:
        if not leads():
            return 0
        # Otherwise a library might wait for the others, which have gone.
        for name in STARTED:
            os.environ.pop(name, None)
    _calm_libraries()
    code = _ran(words)
    if several():
        from zopeft.ranks.losing import leave

        leave(code)
    elif Process.own:
        Leaving.code = code
    return code


def _ran(words: list[str]) -> int:
    """Runs one command, and tells what went wrong."""
    odd = next((word for word in words if not word.isascii() and not _is_text(word)), None)
    if odd is not None:
        do = "rename the file or folder; what is written names it, in UTF-8"
        return _fail(f"command line: a word that is no UTF-8, got {odd!r}; {do}", 2)
    try:
        with ended_by_signals():
            code = app(args=words, prog_name="zopeft", standalone_mode=False)
    except KeyboardInterrupt:
        return _fail("interrupted", 1)
    except BaseException as error:
        from zopeft.errors import panicked

        if "--debug" in words or not (isinstance(error, Exception) or panicked(error)):
            raise
        return _told(error)
    if code == TYPERS_INTERRUPT:
        return _fail("interrupted", 1)
    return code if isinstance(code, int) else 0


def _is_text(word: str) -> bool:
    """Whether a word could be written to a file: of bytes that are no UTF-8 Python makes halves."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _told(error: BaseException) -> int:
    """Prints the one line of an error and returns its exit code."""
    from zopeft.errors import ZopeftError

    if isinstance(error, InterruptError):
        return _fail(str(error), 1)
    if isinstance(error, ZopeftError):
        second_hand = type(error).__name__ == "LostError"
        return _fail(str(error), error.exit_code, second_hand)
    # Typer's own usage errors; their classes have moved between its versions.
    usage = getattr(error, "format_message", None)
    if usage is not None:
        if type(error).__name__ == "NoArgsIsHelpError":
            return 2
        return _fail(usage() or "wrong usage", int(getattr(error, "exit_code", 2)))
    if type(error).__name__ == "Abort":
        return _fail("interrupted", 1)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return _told(_too_long(str(error.filename)))
    if type(error).__name__ == "OutOfMemoryError":
        return _fail("out of memory: lower --batch-size, or use --load-in-4bit", 1)
    return _fail(f"{type(error).__name__}: {error}; --debug shows where", 1)


def _too_long(name: str) -> Exception:
    """Returns what to say of a name that no file can have, wherever it was looked for."""
    from zopeft.errors import input_error

    got = f"{name[:SHOWN]}... ({len(name)} characters)"
    return input_error("a file's name", "is too long", got, "check the arguments for a shorter one")


def _fail(line: str, code: int, second_hand: bool = False) -> int:
    if several():
        from zopeft.ranks.losing import tells

        told, code = tells(second_hand, code)
        if not told:
            return code
    print("zopeft: " + " ".join(line.split()), file=sys.stderr)
    return code


def _calm_libraries() -> None:
    """Keeps the libraries' chatter off the terminal; set before they are imported."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    hold_threads()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # torch (2.13) makes this folder when it is imported, and fails where it cannot.
    compiled = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    try:
        if compiled:
            os.makedirs(compiled, exist_ok=True)
    except OSError:
        del os.environ["TORCHINDUCTOR_CACHE_DIR"]


if __name__ == "__main__":
    sys.exit(main())
