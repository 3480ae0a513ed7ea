"""Options that several commands share, each written once."""

from __future__ import annotations

from typing import Annotated

import typer

from mlxport.cli.derived_flags import flag
from mlxport.convert.options import ConvertOptions

Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show tracebacks.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, flag(ConvertOptions, "quiet")]
Trust = Annotated[bool, flag(ConvertOptions, "trust_remote_code")]
Revision = Annotated[str | None, flag(ConvertOptions, "revision")]
Dtype = Annotated[str, flag(ConvertOptions, "dtype")]
KvGroupSize = Annotated[int | None, flag(ConvertOptions, "kv_group_size")]
KvStart = Annotated[int | None, flag(ConvertOptions, "quantized_kv_start")]
Prompt = Annotated[str, typer.Option("-p", "--prompt", help='The message; "-" reads standard input.')]
MaxTokens = Annotated[int, typer.Option("-m", "--max-tokens", help="Most tokens to generate.")]
Temp = Annotated[float, typer.Option("--temp", help="Temperature; 0 is greedy.")]
TopP = Annotated[float, typer.Option("--top-p", help="Probability mass to sample from.")]
MinP = Annotated[float, typer.Option("--min-p", help="Least probability relative to the most likely token's.")]
TopK = Annotated[int, typer.Option("--top-k", help="Number of most likely tokens to sample from; 0 is off.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Makes sampling reproducible.")]
KvBits = Annotated[
    str | None, typer.Option("--kv-bits", help='Bits of a quantized cache, or "none" [as the model was converted for].')
]
System = Annotated[str | None, typer.Option("--system-prompt", help="Put before the message by the chat template.")]
