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

__all__ = ["chat", "generate"]

Model = Annotated[str, typer.Argument(metavar="DST", help="A converted model: a folder or a hub id.")]
Prompt = Annotated[str, typer.Option("-p", "--prompt", help='The message; "-" reads standard input.')]


@dataclass(frozen=True, kw_only=True)
class ChatFlags:
    """What ``generate`` and ``chat`` have in common, with the defaults of ``chat``."""

    max_tokens: int = option(512, "Most tokens to generate.", flags=("-m", "--max-tokens"))
    temp: float = option(0.0, "Temperature; 0 is greedy.")
    top_p: float = option(1.0, "Probability mass to sample from.")
    min_p: float = option(0.0, "Least probability relative to the most likely token's.")
    top_k: int = option(0, "Number of most likely tokens to sample from; 0 is off.")
    seed: int | None = option(None, "Makes sampling reproducible.")
    system_prompt: str | None = option(None, "Put before the message by the chat template.")
    kv_bits: str | None = option(None, 'Bits of a quantized cache, or "none" [as the model was converted for].')
    kv_group_size: int | None = refined(ConvertOptions, "kv_group_size", panel="")
    quantized_kv_start: int | None = refined(ConvertOptions, "quantized_kv_start", panel="")
    trust_remote_code: bool = refined(ConvertOptions, "trust_remote_code")
    quiet: bool = refined(ConvertOptions, "quiet")


@dataclass(frozen=True, kw_only=True)
class GenerateFlags(ChatFlags):
    """Those of ``generate``."""

    max_tokens: int | None = option(  # type: ignore[assignment]
        None, "Most tokens to generate [256, or what generation_config.json says for a model with an encoder].",
        flags=("-m", "--max-tokens"),
    )  # fmt: skip
    ignore_chat_template: bool = option(False, "Continue the prompt as it is.")
    num_beams: int | None = option(None, "Beams of a model with an encoder [as its generation_config.json says].")
    source_lang: str | None = option(None, "Language of the prompt, as an encoder's tokenizer calls it.")
    target_lang: str | None = option(None, "Language that a model with an encoder is to write.")


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
