"""The commands that make a folder: of a checkpoint, or of a module of the user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlxport.cli.derived_flags import flags_for
from mlxport.cli.flags import Json, Verbose
from mlxport.cli.json_output import print_json, warn
from mlxport.convert.options import ConvertOptions
from mlxport.errors import UsageError
from mlxport.port.port_options import PortOptions
from mlxport.printable import printable

if TYPE_CHECKING:
    from mlxport.convert.convert_report import ConvertReport

__all__ = ["convert", "port"]

_EXPLAINED = 1_000_000  # characters of --explain: it was asked for


@flags_for(ConvertOptions)
def convert(
    source: Annotated[str | None, typer.Argument(metavar="SRC", help="A folder or a hub id.")] = None,
    destination: Annotated[str | None, typer.Argument(metavar="DST", help="The output folder.")] = None,
    hf_path: Annotated[str | None, typer.Option("--hf-path", "--model", help="SRC, as mlx-lm spells it.")] = None,
    mlx_path: Annotated[str | None, typer.Option("--mlx-path", help="DST, as mlx-lm spells it.")] = None,
    *,
    as_json: Json = False,
    verbose: Verbose = False,
    **options: Any,
) -> None:
    """Convert a Hugging Face checkpoint to a folder that mlx-lm loads, and prove it against PyTorch."""
    from mlxport.convert.convert import convert as run

    options["quiet"] |= as_json
    result = run(
        _one("SRC", source, "--hf-path", hf_path),
        _one("DST", destination, "--mlx-path", mlx_path),
        **options,
    )
    _tell(result, as_json)


@flags_for(PortOptions)
def port(
    factory: Annotated[str, typer.Argument(metavar="FILE.py:FACTORY", help="A function: (module, example inputs).")],
    destination: Annotated[str | None, typer.Argument(metavar="DST", help="The output folder.")] = None,
    *,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print ops, fusions applied and declined, folded weights.")
    ] = False,
    as_json: Json = False,
    verbose: Verbose = False,
    **options: Any,
) -> None:
    """Port a PyTorch module of your own to readable MLX source with its weights, and prove it against the original."""
    from mlxport.port.into_folder import explain as explained
    from mlxport.port.into_folder import port_folder

    if destination is None and not explain:
        raise UsageError("DST is missing", hint="mlxport port FILE.py:FACTORY DST, or --explain alone")
    options["quiet"] |= as_json
    if destination is None:
        options |= {"overwrite": True, "dry_run": True}
    if explain:
        options["on_port"] = lambda ported: typer.echo(printable(explained(ported), whole=_EXPLAINED), err=as_json)
    report = port_folder(factory, destination or "port", **options)
    _tell(report, as_json, outcome=destination is not None)


def _tell(report: ConvertReport, as_json: bool, outcome: bool = True) -> None:
    """Print what was done. Warnings come last, quiet or not: on the way they were lines among many, or not shown."""
    if as_json:
        print_json(report.to_json())
    elif outcome:
        from mlxport.cli.show.conversion_outcome import show_conversion

        show_conversion(report)
    for line in report.warnings:
        warn(line)


def _one(name: str, positional: str | None, option: str, value: str | None) -> str:
    if (positional is None) == (value is None):
        found = "neither" if value is None else "both"
        raise UsageError(f"{name} or {option}: give exactly one, got {found}", hint="mlxport convert SRC DST")
    return positional if positional is not None else str(value)
