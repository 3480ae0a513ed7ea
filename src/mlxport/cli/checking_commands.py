"""The commands that look at a checkpoint, at a converted folder, or at what a machine has room for."""

from __future__ import annotations

from typing import Annotated

import typer

from mlxport.cli.flags import Dtype, Json, Quiet, Revision, Trust, Verbose
from mlxport.cli.json_output import print_json
from mlxport.errors import VerificationError

__all__ = ["inspect", "plan", "report", "verify"]


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
    from mlxport.convert.verify import verify as run

    report = run(
        output, against, mode=mode, revision=revision, trust_remote_code=trust_remote_code, quiet=quiet or as_json
    )
    if as_json:
        print_json(report.to_json())
    else:
        from mlxport.cli.show.parity_table import show_any_parity

        show_any_parity(report)
    if not report.passed:
        if as_json:
            raise typer.Exit(VerificationError.exit_code)
        raise VerificationError(report.failure_message(), hint="convert it again, or report this architecture")


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
    from mlxport.cli.show.quality_figures import show_quality

    show_quality(result)


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
    from mlxport.cli.show.checkpoint_facts import show_inspection

    show_inspection(inspection)


def plan(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A folder or a hub id (only headers are fetched).")],
    device: Annotated[
        str | None, typer.Option("--device", help='A Mac, as in "M2 8GB"; without it the one that this runs on.')
    ] = None,
    context: Annotated[int | None, typer.Option("--context", help="Tokens of prompt and answer [4096].")] = None,
    kv_bits: Annotated[int | None, typer.Option("--kv-bits", help="Bits of a quantized cache.")] = None,
    kv_group_size: Annotated[int, typer.Option("--kv-group-size", help="Its group size.")] = 64,
    dtype: Dtype = "auto",
    image_size: Annotated[
        str | None, typer.Option("--image-size", help="Width and height of a picture in pixels [1024x768].")
    ] = None,
    macos: Annotated[int | None, typer.Option("--macos", help="Its major version; without it the newest.")] = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Say what of a model fits a Mac, with what context and how fast; nothing is downloaded but headers."""
    from mlxport.convert.without_torch import leave_torch_out
    from mlxport.fit import TaskPlan, plan_for

    leave_torch_out(source, "auto")
    report = plan_for(
        source,
        device=device,
        context=context,
        kv_bits=kv_bits,
        kv_group_size=kv_group_size,
        dtype=dtype,
        image_size=image_size,
        macos=macos,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        return print_json(report.to_json())
    if isinstance(report, TaskPlan):
        from mlxport.cli.show.task_plan import show_task_plan

        return show_task_plan(report)
    from mlxport.cli.show.machine_plan import show_fit

    show_fit(report)
