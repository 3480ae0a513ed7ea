"""Print what is in a checkpoint and what is wrong with it: to stdout, through rich."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from mlxport.cli.show.console import standard_console
from mlxport.printable import printable
from mlxport.progress import format_bytes

if TYPE_CHECKING:
    from mlxport.inspect.inspection import Inspection
    from mlxport.source.processor_files import ProcessorInfo

__all__ = ["show_inspection"]


def show_inspection(inspection: Inspection, console: Console | None = None) -> None:
    """Print for people, to stdout unless `console` is given; names are printed as they are, never as markup."""
    out = console or standard_console()
    for label, value in _rows(inspection):
        out.print(Text(f"{label:<17}", style="bold") + Text(printable(value)), soft_wrap=True)
    out.print()
    if not inspection.problems:
        out.print(Text("nothing is wrong with it", style="green"))
    for problem in inspection.problems:
        out.print(Text(f"! {printable(problem)}", style="yellow"), soft_wrap=True)


def _rows(it: Inspection) -> Iterator[tuple[str, str]]:
    yield "model", it.name
    yield "architecture", f"{it.architecture or 'not named'} ({it.model_type})"
    if it.port:
        yield "port", "built by source of its own, not by mlx-lm"
    else:
        yield "mlx-lm", f"loads it as {it.mlx_lm}" if it.mlx_lm else "has no such architecture"
    if it.task:
        yield "task", f"{it.task}, once converted: {it.runs}" if it.runs else it.task
    if it.way_out:
        yield "use" if it.port else "otherwise", it.way_out
    yield "format", _format(it)
    yield "parameters", f"{it.parameters:,}"
    yield "size", f"{format_bytes(it.nbytes)} in {it.tensors} tensors, {len(it.files)} file(s)"
    yield "dtypes", ", ".join(f"{d}: {c.tensors} tensors, {format_bytes(c.nbytes)}" for d, c in it.dtypes.items())
    yield "quantization", _describe(it.quantization) if it.quantization else "none"
    for number, large in enumerate(it.largest):
        shape = " x ".join(map(str, large.shape))
        yield "largest" if number == 0 else "", f"{large.name} {large.dtype} {shape}, {format_bytes(large.nbytes)}"
    if it.layers is not None or it.reads_text:
        yield "layers", _or_unknown(it.layers)
    if it.reads_text:
        yield "vocabulary", _or_unknown(it.vocabulary)
        yield "context", _or_unknown(it.context_length)
        yield "rope", _describe(it.rope) if it.rope else "none stated"
        yield "tied embeddings", {True: "yes", False: "no", None: "unknown"}[it.tied]
        yield from _tokenizer_rows(it)
    if it.processor is not None:
        yield "processor", _processor(it.processor)
    if (seen := it.picture) is not None:
        yield "reads pictures", f"{format_bytes(it.tower_bytes)} of the weights"
        tiles = f" in {seen.tiles} tiles" if seen.tiles > 1 else ""
        yield "", f"{seen.width} x {seen.height} pixels: {seen.patches:,} patches{tiles}, {seen.all_tokens:,} tokens"
    yield "licence", it.license or "not stated"
    for number, code in enumerate(it.code):
        yield "code" if number == 0 else "", code
    for number, change in enumerate(it.config_changes):
        yield "convert writes" if number == 0 else "", change


def _format(it: Inspection) -> str:
    if any(file.endswith(".gguf") for file in it.files):
        return "GGUF"
    return {True: "MLX", False: "PyTorch", None: "unknown (the weights are not here)"}[it.mlx_format]


def _processor(found: ProcessorInfo) -> str:
    size = f"pictures of {found.width} x {found.height} pixels" if found.height else ""
    rate = f"{found.rate:,} samples of sound a second" if found.rate else ""
    return ", ".join(filter(None, [found.kind or "class not named", size, rate]))


def _tokenizer_rows(it: Inspection) -> Iterator[tuple[str, str]]:
    if it.tokenizer is not None:
        own = it.tokenizer
        chat = "chat template" if own.chat_template else "no chat template"
        yield "tokenizer", f"{own.kind or 'class not named'}, {_or_unknown(own.vocabulary)} ids, {chat}"
        if own.special:
            yield "special tokens", ", ".join(f"{role} {token}" for role, token in own.special.items())
    else:
        yield "tokenizer", "none"


def _describe(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _or_unknown(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"
