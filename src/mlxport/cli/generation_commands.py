"""The commands that run a converted model."""

from __future__ import annotations

from typing import Annotated

import typer

from mlxport.cli.flags import (
    Json,
    KvBits,
    KvGroupSize,
    KvStart,
    MaxTokens,
    MinP,
    Prompt,
    Quiet,
    Seed,
    System,
    Temp,
    TopK,
    TopP,
    Trust,
    Verbose,
)
from mlxport.cli.json_output import print_json, stream, warn

__all__ = ["chat", "generate"]


def generate(
    path: Annotated[str, typer.Argument(metavar="DST", help="A converted model: a folder or a hub id.")],
    prompt: Prompt,
    max_tokens: MaxTokens = 256,
    temp: Temp = 0.0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    top_k: TopK = 0,
    seed: Seed = None,
    system_prompt: System = None,
    ignore_chat_template: Annotated[
        bool, typer.Option("--ignore-chat-template", help="Continue the prompt as it is.")
    ] = False,
    kv_bits: KvBits = None,
    kv_group_size: KvGroupSize = None,
    quantized_kv_start: KvStart = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Stream a completion; tokens per second and peak memory go to stderr."""
    from mlxport.run import generate as run
    from mlxport.run import read_prompt

    result = run(
        path,
        read_prompt(prompt),
        max_tokens=max_tokens,
        temp=temp,
        top_p=top_p,
        min_p=min_p,
        top_k=top_k,
        seed=seed,
        system_prompt=system_prompt,
        ignore_chat_template=ignore_chat_template,
        kv_bits=kv_bits,
        kv_group_size=kv_group_size,
        quantized_kv_start=quantized_kv_start,
        trust_remote_code=trust_remote_code,
        on_text=None if as_json else stream,
        on_warning=warn,
    )
    if as_json:
        return print_json(result.to_json())
    typer.echo()
    if not quiet:
        typer.echo(result.summary(), err=True)


def chat(
    path: Annotated[str, typer.Argument(metavar="DST", help="A converted model: a folder or a hub id.")],
    max_tokens: MaxTokens = 512,
    temp: Temp = 0.0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    top_k: TopK = 0,
    seed: Seed = None,
    system_prompt: System = None,
    kv_bits: KvBits = None,
    kv_group_size: KvGroupSize = None,
    quantized_kv_start: KvStart = None,
    trust_remote_code: Trust = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Talk to a model, one message a line; /reset forgets, /exit leaves."""
    from mlxport.run import chat as run

    run(
        path,
        max_tokens=max_tokens,
        temp=temp,
        top_p=top_p,
        min_p=min_p,
        top_k=top_k,
        seed=seed,
        system_prompt=system_prompt,
        kv_bits=kv_bits,
        kv_group_size=kv_group_size,
        quantized_kv_start=quantized_kv_start,
        trust_remote_code=trust_remote_code,
        quiet=quiet,
    )
