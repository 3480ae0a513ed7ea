"""The commands that run a converted model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from mlxport.cli.derived_flags import flags_for
from mlxport.cli.flags import Json, Verbose
from mlxport.cli.json_output import print_json, stream, warn
from mlxport.convert.options import ConvertOptions
from mlxport.options.option_field import option, refined
from mlxport.run.tasks.task_options import GenerationOptions, TranslationOptions

__all__ = ["chat", "generate"]

Model = Annotated[str, typer.Argument(metavar="DST", help="A converted model: a folder or a hub id.")]
Prompt = Annotated[str, typer.Option("-p", "--prompt", help='The message; "-" reads standard input.')]


@dataclass(frozen=True, kw_only=True)
class CacheFlags:
    """What ``generate`` and ``chat`` have in common besides what is generated."""

    kv_bits: str | None = option(None, 'Bits of a quantized cache, or "none" [as the model was converted for].')
    kv_group_size: int | None = refined(ConvertOptions, "kv_group_size", panel="")
    quantized_kv_start: int | None = refined(ConvertOptions, "quantized_kv_start", panel="")
    trust_remote_code: bool = refined(ConvertOptions, "trust_remote_code")
    quiet: bool = refined(ConvertOptions, "quiet")


@dataclass(frozen=True, kw_only=True)
class ChatFlags(CacheFlags):
    """Those of ``chat``."""

    max_tokens: int = refined(GenerationOptions, "max_tokens", default=512, help="Most tokens to generate.")
    temp: float = refined(GenerationOptions, "temp")
    top_p: float = refined(GenerationOptions, "top_p")
    min_p: float = refined(GenerationOptions, "min_p")
    top_k: int = refined(GenerationOptions, "top_k")
    seed: int | None = refined(GenerationOptions, "seed")
    system_prompt: str | None = refined(GenerationOptions, "system_prompt")


@dataclass(frozen=True, kw_only=True)
class GenerateFlags(CacheFlags, TranslationOptions):
    """Those of ``generate``."""


@flags_for(GenerateFlags)
def generate(path: Model, prompt: Prompt, *, as_json: Json = False, verbose: Verbose = False, **options: Any) -> None:
    """Stream a completion; tokens per second and peak memory go to stderr."""
    from mlxport.run import generate as run
    from mlxport.run import read_prompt

    quiet = options.pop("quiet")
    result = run(path, read_prompt(prompt), **options, on_text=None if as_json else stream, on_warning=warn)
    if as_json:
        return print_json(result.to_json())
    typer.echo()
    if not quiet:
        typer.echo(result.summary(), err=True)


@flags_for(ChatFlags)
def chat(path: Model, *, verbose: Verbose = False, **options: Any) -> None:
    """Talk to a model, one message a line; /reset forgets, /exit leaves."""
    from mlxport.run import chat as run

    run(path, **options)
