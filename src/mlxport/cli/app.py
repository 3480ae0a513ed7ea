"""The command line: parse, call, print; nothing else."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from mlxport._version import __version__
from mlxport.cli import generation_commands as cli_run
from mlxport.cli.flags import (
    Calibrate,
    Dtype,
    Dynamic,
    FoldBatchnorm,
    Json,
    KvGroupSize,
    KvStart,
    Mlxfn,
    Overwrite,
    QBits,
    QGroupSize,
    QMode,
    Quantizer,
    Quiet,
    Revision,
    ShardSize,
    Trust,
    Verbose,
)
from mlxport.cli.json_output import print_json
from mlxport.errors import Interrupted, MlxportError, UsageError, VerificationError

app = typer.Typer(
    name="mlxport",
    help="Port PyTorch models to MLX: bounded memory, output that mlx-lm loads, numbers proven against the original.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Typer carries its own copy of click, or uses the installed one, by version; what it raises is found from its API.
_CLICK_ERROR: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
_INTERRUPTED = Interrupted.exit_code
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


@app.command()
def convert(
    source: Annotated[str | None, typer.Argument(metavar="SRC", help="A folder or a hub id.")] = None,
    destination: Annotated[str | None, typer.Argument(metavar="DST", help="The output folder.")] = None,
    hf_path: Annotated[str | None, typer.Option("--hf-path", "--model", help="SRC, as mlx-lm spells it.")] = None,
    mlx_path: Annotated[str | None, typer.Option("--mlx-path", help="DST, as mlx-lm spells it.")] = None,
    dtype: Dtype = "auto",
    quantize: Annotated[
        str | None,
        typer.Option("-q", "--quantize", help="Bits (2 3 4 5 6 8), mxfp4, nvfp4, mxfp8, or mixed_4_6 …; alone: 4."),
    ] = None,
    q_bits: QBits = None,
    q_group_size: QGroupSize = None,
    q_mode: QMode = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "--quant-predicate", help="A TOML file of rules, or mixed_4_6 …"),
    ] = None,
    quantizer: Quantizer = None,
    fit: Annotated[
        str | None,
        typer.Option("--fit", help='Choose bits by layer so that it runs on a Mac, as in "M2 8GB"; alone: this one.'),
    ] = None,
    context: Annotated[int | None, typer.Option("--context", help="Tokens that have to fit too [4096].")] = None,
    target_size: Annotated[str | None, typer.Option(help="Choose bits by layer for files of this size.")] = None,
    target_bpw: Annotated[float | None, typer.Option(help="Choose bits by layer for so many per weight.")] = None,
    calibrate: Calibrate = None,
    max_shard_size: ShardSize = "5GB",
    shard_by: Annotated[str, typer.Option(help="size, or layer to keep each layer in one file.")] = "size",
    layout: Annotated[str, typer.Option(help="auto, mlx-lm, or generated: MLX source of its own.")] = "auto",
    verify: Annotated[str, typer.Option(help="auto, full, layerwise or none.")] = "auto",
    overwrite: Overwrite = False,
    allow_overflow: Annotated[bool, typer.Option("--allow-overflow", help="Accept infinities after the cast.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; write nothing.")] = False,
    dynamic: Dynamic = True,
    fold_batchnorm: FoldBatchnorm = False,
    mlxfn: Mlxfn = False,
    distill: Annotated[int | None, typer.Option("--distill", help="Steps of training of scales and biases.")] = None,
    kv_bits: Annotated[int | None, typer.Option("--kv-bits", help="Bits of the cache that generate will use.")] = None,
    kv_group_size: KvGroupSize = None,
    quantized_kv_start: KvStart = None,
    report: Annotated[bool, typer.Option("--report", help="Measure what was lost: DST/report.html and .json.")] = False,
    report_device: Annotated[
        str | None, typer.Option("--report-device", help='A Mac to predict for in the report, as in "M2 8GB".')
    ] = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Convert a Hugging Face checkpoint to a folder that mlx-lm loads, and prove it against PyTorch."""
    from mlxport.convert.convert import convert as run

    result = run(
        _one("SRC", source, "--hf-path", hf_path),
        _one("DST", destination, "--mlx-path", mlx_path),
        dtype=dtype,
        quantize=True if quantize == _ALONE else quantize,
        q_bits=q_bits,
        q_group_size=q_group_size,
        q_mode=q_mode,
        recipe=recipe,
        quantizer=quantizer,
        fit=True if fit == _ALONE else fit,
        context=context,
        target_size=target_size,
        target_bpw=target_bpw,
        calibrate=calibrate,
        max_shard_size=max_shard_size,
        shard_by=shard_by,
        layout=layout,
        verify=verify,
        overwrite=overwrite,
        dry_run=dry_run,
        revision=revision,
        trust_remote_code=trust_remote_code,
        allow_overflow=allow_overflow,
        dynamic=dynamic,
        fold_batchnorm=fold_batchnorm,
        mlxfn=mlxfn,
        distill=distill,
        kv_bits=kv_bits,
        kv_group_size=kv_group_size,
        quantized_kv_start=quantized_kv_start,
        report=report,
        report_device=report_device,
        quiet=quiet or as_json,
    )
    if as_json:
        return print_json(result.to_json())
    from mlxport.cli.show.converted import show_conversion

    show_conversion(result)


@app.command()
def port(
    factory: Annotated[str, typer.Argument(metavar="FILE.py:FACTORY", help="A function: (module, example inputs).")],
    destination: Annotated[str | None, typer.Argument(metavar="DST", help="The output folder.")] = None,
    dtype: Dtype = "auto",
    quantize: Annotated[
        str | None,
        typer.Option("-q", "--quantize", help="Bits (2 3 4 5 6 8), mxfp4, nvfp4 or mxfp8; alone: 4."),
    ] = None,
    q_bits: QBits = None,
    q_group_size: QGroupSize = None,
    q_mode: QMode = None,
    recipe: Annotated[str | None, typer.Option("--recipe", "--quant-predicate", help="A TOML file of rules.")] = None,
    quantizer: Quantizer = None,
    max_shard_size: ShardSize = "5GB",
    dynamic: Dynamic = True,
    fold_batchnorm: FoldBatchnorm = False,
    mlxfn: Mlxfn = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print ops, fusions applied and declined, folded weights.")
    ] = False,
    verify: Annotated[str, typer.Option(help="auto or none.")] = "auto",
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Capture and plan; write nothing.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Port a PyTorch module of your own to readable MLX source with its weights, and prove it against the original."""
    from mlxport.port.into_folder import explain as explained
    from mlxport.port.into_folder import port_folder

    if destination is None and not explain:
        raise UsageError("DST is missing", hint="mlxport port FILE.py:FACTORY DST, or --explain alone")
    report = port_folder(
        factory,
        destination or "port",
        dtype=dtype,
        quantize=True if quantize == _ALONE else quantize,
        q_bits=q_bits,
        q_group_size=q_group_size,
        q_mode=q_mode,
        recipe=recipe,
        quantizer=quantizer,
        max_shard_size=max_shard_size,
        dynamic=dynamic,
        fold_batchnorm=fold_batchnorm,
        mlxfn=mlxfn,
        verify=verify,
        overwrite=overwrite or destination is None,
        dry_run=dry_run or destination is None,
        quiet=quiet or as_json,
        on_port=lambda ported: typer.echo(explained(ported), err=as_json) if explain else None,
    )
    if as_json:
        return print_json(report.to_json())
    from mlxport.cli.show.converted import show_conversion

    if destination is not None:
        show_conversion(report)


@app.command()
def verify(
    output: Annotated[str, typer.Argument(metavar="DST", help="The converted folder.")],
    against: Annotated[str, typer.Option("--against", metavar="SRC", help="The original: a folder or a hub id.")],
    mode: Annotated[str, typer.Option(help="auto, full or layerwise.")] = "auto",
    revision: Revision = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare a converted folder with its original; when it differs, name the first module that diverges."""
    from mlxport.convert.convert import verify as run
    from mlxport.port.into_folder import is_generated, verify_folder

    report: Any
    if is_generated(Path(output)):
        report = verify_folder(output, against, revision=revision, trust_remote_code=trust_remote_code)
    else:
        report = run(
            output,
            against,
            mode=mode,
            revision=revision,
            trust_remote_code=trust_remote_code,
            quiet=quiet or as_json,
        )
    if as_json:
        print_json(report.to_json())
    else:
        from mlxport.cli.show.converted import show_any_parity

        show_any_parity(report)
    if not report.passed:
        if as_json:
            raise typer.Exit(VerificationError.exit_code)
        raise VerificationError(report.failure_message(), hint="convert it again, or report this architecture")


@app.command()
def report(
    output: Annotated[str, typer.Argument(metavar="DST", help="The converted folder.")],
    against: Annotated[
        str | None, typer.Option("--against", metavar="SRC", help="The original; without it the one on record.")
    ] = None,
    folder: Annotated[str | None, typer.Option("--output", metavar="FOLDER", help="Where to write [DST].")] = None,
    device: Annotated[str | None, typer.Option("--device", help='A Mac to predict for, as in "M2 8GB".')] = None,
    text: Annotated[str | None, typer.Option("--text", metavar="FILE", help="Measure on this text.")] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", help="Most tokens of the text [4096 or less].")] = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure what a conversion lost, and write it as a page: report.html, with report.json beside it."""
    from mlxport.quality.make_report import quality_report

    result = quality_report(
        output,
        against,
        folder=folder,
        device=device,
        text=text,
        tokens=tokens,
        revision=revision,
        trust_remote_code=trust_remote_code,
        quiet=quiet or as_json,
    )
    if as_json:
        return print_json(result.to_json())
    from mlxport.cli.show.converted import show_quality

    show_quality(result)


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A folder or a hub id (only headers are fetched).")],
    revision: Revision = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show what is in a checkpoint, and what is wrong with it, from config and headers alone."""
    from mlxport.inspect.inspection import inspect as run

    inspection = run(path, revision=revision)
    if as_json:
        return print_json(inspection.to_json())
    from mlxport.inspect.inspection import print_inspection

    print_inspection(inspection)


@app.command()
def plan(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A folder or a hub id (only headers are fetched).")],
    device: Annotated[
        str | None, typer.Option("--device", help='A Mac, as in "M2 8GB"; without it the one that this runs on.')
    ] = None,
    context: Annotated[int | None, typer.Option("--context", help="Tokens of prompt and answer [4096].")] = None,
    kv_bits: Annotated[int | None, typer.Option("--kv-bits", help="Bits of a quantized cache.")] = None,
    kv_group_size: Annotated[int, typer.Option("--kv-group-size", help="Its group size.")] = 64,
    dtype: Dtype = "auto",
    macos: Annotated[int | None, typer.Option("--macos", help="Its major version; without it the newest.")] = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Say what of a model fits a Mac, with what context and how fast; nothing is downloaded but headers."""
    from mlxport.fit import plan_for

    report = plan_for(
        source,
        device=device,
        context=context,
        kv_bits=kv_bits,
        kv_group_size=kv_group_size,
        dtype=dtype,
        macos=macos,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        return print_json(report.to_json())
    from mlxport.cli.show.machine_plan import show_fit

    show_fit(report)


app.command()(cli_run.generate)
app.command()(cli_run.chat)

_ALONE = "alone"


def _with_bare_options(arguments: list[str]) -> list[str]:
    """Let ``-q``, as in mlx-lm, and ``--fit`` stand alone: give them a value where none follows."""
    if not {"-q", "--quantize", "--fit"} & set(arguments):
        return arguments
    from mlxport.quant import MIXED, MODES

    bits = {str(number) for mode in MODES.values() for number in mode.bits}
    values = bits | set(MODES) | set(MIXED)
    result = []
    for position, argument in enumerate(arguments):
        result.append(argument)
        following = arguments[position + 1] if position + 1 < len(arguments) else "-"
        is_option, exists = following.startswith("-"), Path(following).exists()
        if argument in ("-q", "--quantize"):
            is_path = "/" in following or exists
            if is_option or (is_path and following not in values and not following.isdigit()):
                result.append(_ALONE)
        elif argument == "--fit" and (is_option or (following and exists)):
            result.append(_ALONE)
    return result


def _one(name: str, positional: str | None, option: str, value: str | None) -> str:
    if (positional is None) == (value is None):
        found = "neither" if value is None else "both"
        raise UsageError(f"{name} or {option}: give exactly one, got {found}", hint="mlxport convert SRC DST")
    return positional if positional is not None else str(value)


def _usage(error: Any) -> UsageError:
    """What is wrong with the arguments, as one of our own errors."""
    command = error.ctx.command_path if getattr(error, "ctx", None) is not None else "mlxport"
    return UsageError(error.format_message(), hint=f"see: {command} --help")


def _fail(error: MlxportError) -> NoReturn:
    if _state["verbose"]:
        import traceback

        traceback.print_exception(error)
    if _state["json"]:
        detail = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
        print_json({"error": detail})
    typer.echo(f"error: {error.message}", err=True)
    if error.hint:
        typer.echo(f"hint: {error.hint}", err=True)
    raise SystemExit(error.exit_code)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with 0, 1, 2 or 3 as the design says (130 when interrupted)."""
    given = sys.argv[1:] if arguments is None else arguments
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _state.update(verbose=bool({"-v", "--verbose"} & {*given}), json="--json" in given)
    if arguments is None:
        from mlxport.convert.without_torch import own_process

        own_process()
    try:
        code = app(_with_bare_options(given), prog_name="mlxport", standalone_mode=False)
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
