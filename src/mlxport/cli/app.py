"""The command line as a whole: its commands, its version, and how errors come out of it."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Annotated, Any, NoReturn

import typer

from mlxport._version import __version__
from mlxport.cli import signals
from mlxport.cli.checking_commands import inspect, plan, report, verify
from mlxport.cli.conversion_commands import convert, port
from mlxport.cli.derived_flags import SeveralValues, with_bare_flags
from mlxport.cli.flags import Verbose
from mlxport.cli.generation_commands import chat, generate
from mlxport.cli.json_output import (
    escape_what_has_no_letter,
    finish_stdout,
    is_about_output,
    nothing_more_to_stdout,
    print_json,
)
from mlxport.cli.run_command import run
from mlxport.convert.options import ConvertOptions
from mlxport.errors import DiskError, Interrupted, MlxportError, UsageError, system_error
from mlxport.printable import printable, words

app = typer.Typer(
    name="mlxport",
    help="Port PyTorch models to MLX: bounded memory, output that mlx-lm loads, numbers proven against the original.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Typer carries its own copy of click, or uses the installed one, by version; what it raises is found from its API.
_CLICK_ERROR: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
_INTERRUPTED = Interrupted.exit_code
_TRACEBACK = 100_000  # characters: it was asked for
_state = {"verbose": False, "json": False}


def _version(value: bool) -> None:
    if value:
        typer.echo(f"mlxport {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
    verbose: Verbose = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(UsageError.exit_code)


for command in (convert, port, verify, report, inspect, plan, run, generate, chat):
    app.command(cls=SeveralValues)(command)


def _usage(error: Any) -> UsageError:
    """What is wrong with the arguments, as one of our own errors."""
    command = error.ctx.command_path if getattr(error, "ctx", None) is not None else "mlxport"
    return UsageError(error.format_message(), hint=f"see: {command} --help")


def _fail(error: MlxportError) -> NoReturn:
    if _state["verbose"]:
        import traceback

        typer.echo(printable("".join(traceback.format_exception(error)), whole=_TRACEBACK), err=True)
    with contextlib.suppress(OSError, UnicodeError):  # there may be nowhere to say it
        if _state["json"]:
            detail = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
            print_json({"error": detail})
    with contextlib.suppress(OSError, UnicodeError):
        typer.echo(f"error: {error.message}", err=True)
        if error.hint:
            typer.echo(f"hint: {error.hint}", err=True)
    raise SystemExit(error.exit_code)


def _printable_logs() -> None:
    """What libraries log and warn of quotes files, too."""
    import logging
    import warnings

    class Record(logging.LogRecord):
        def getMessage(self) -> str:
            return printable(super().getMessage())

    logging.setLogRecordFactory(Record)
    plain, ours = warnings.formatwarning, os.path.join(os.path.dirname(os.path.dirname(__file__)), "")

    def shown(message: Any, category: type[Warning], filename: str, *given: Any, **more: Any) -> str:
        if category is UserWarning and filename.startswith(ours):  # where in our code that is, is of no use
            return f"warning: {printable(str(message))}\n"
        return printable(plain(message, category, filename, *given, **more))

    warnings.formatwarning = shown


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with 0, 1, 2 or 3 as the design says (130 when interrupted)."""
    given = sys.argv[1:] if arguments is None else arguments
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _state.update(verbose=bool({"-v", "--verbose"} & {*given}), json="--json" in given)
    if arguments is None:
        from mlxport.convert.without_torch import own_process

        own_process()
        _printable_logs()
        with signals.ending_well():
            _run(given)
    else:
        _run(given)


def _run(given: list[str]) -> NoReturn:
    escape_what_has_no_letter()
    try:
        code = app(with_bare_flags(given, ConvertOptions), prog_name="mlxport", standalone_mode=False)
        finish_stdout()
        if code == _INTERRUPTED:  # Typer's answer to Ctrl-C
            raise KeyboardInterrupt
        raise SystemExit(code if isinstance(code, int) else 0)
    except MlxportError as error:
        _fail(error)
    except _CLICK_ERROR as error:
        _fail(_usage(error))
    except (KeyboardInterrupt, typer.Abort):
        _fail(Interrupted("stopped", hint="run the same command again"))
    except BrokenPipeError:
        nothing_more_to_stdout()
        raise SystemExit(1) from None
    except Exception as error:
        _fail(_explained(error))


def _explained(error: Exception) -> MlxportError:
    """What no part of the program expected: the system's doing, or a bug, shown in one line and in full with -v."""
    known = system_error(error)
    if isinstance(error, OSError) and is_about_output(error):
        nothing_more_to_stdout()
        message = f"what the command prints cannot be written: {error.strerror or error}"
        known = DiskError(message, hint="send its output elsewhere")
    if known is None:
        hint = "this is a bug in mlxport; run again with -v and report what it prints"
        known = MlxportError(f"{type(error).__name__}: {words(error)}", hint=hint)
    known.__cause__ = error
    return known
