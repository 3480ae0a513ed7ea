"""The command line as a whole: its commands, its version, and how errors come out of it."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any, NoReturn

import typer

from mlxport._version import __version__
from mlxport.cli.checking_commands import inspect, plan, report, verify
from mlxport.cli.conversion_commands import convert, port
from mlxport.cli.derived_flags import with_bare_flags
from mlxport.cli.flags import Verbose
from mlxport.cli.generation_commands import chat, generate
from mlxport.cli.json_output import print_json
from mlxport.convert.options import ConvertOptions
from mlxport.errors import Interrupted, MlxportError, UsageError
from mlxport.printable import printable

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


for command in (convert, port, verify, report, inspect, plan, generate, chat):
    app.command()(command)


def _usage(error: Any) -> UsageError:
    """What is wrong with the arguments, as one of our own errors."""
    command = error.ctx.command_path if getattr(error, "ctx", None) is not None else "mlxport"
    return UsageError(error.format_message(), hint=f"see: {command} --help")


def _fail(error: MlxportError) -> NoReturn:
    if _state["verbose"]:
        import traceback

        typer.echo(printable("".join(traceback.format_exception(error)), whole=_TRACEBACK), err=True)
    if _state["json"]:
        detail = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
        print_json({"error": detail})
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
    plain = warnings.formatwarning
    warnings.formatwarning = lambda *given, **more: printable(plain(*given, **more))  # type: ignore[assignment]


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
    try:
        code = app(with_bare_flags(given, ConvertOptions), prog_name="mlxport", standalone_mode=False)
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:  # a bug: shown in one line, in full with -v
        hint = "this is a bug in mlxport; run again with -v and report what it prints"
        unexpected = MlxportError(f"{type(error).__name__}: {error}", hint=hint)
        unexpected.__cause__ = error
        _fail(unexpected)
