"""Options that several commands share, each written once."""

from __future__ import annotations

import functools
from typing import Annotated

import typer

Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show tracebacks.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Allow code of the checkpoint to run.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a hub repository.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")]
QBits = Annotated[int | None, typer.Option("--q-bits", "--bits", help="Bits per weight.")]
QGroupSize = Annotated[int | None, typer.Option("--q-group-size", "--group-size", help="Group size.")]
Quantizer = Annotated[str | None, typer.Option(help="rtn: mlx-lm's tensors; search: less error, same format.")]
Calibrate = Annotated[str | None, typer.Option(help="Quantize by activations on a text: default, self, FILE or none.")]
QMode = Annotated[str | None, typer.Option("--q-mode", help="affine, mxfp4, nvfp4 or mxfp8.")]
ShardSize = Annotated[str, typer.Option(help="Limit of an output file.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace DST, at the very end.")]
KvGroupSize = Annotated[int | None, typer.Option("--kv-group-size", help="Group size of a quantized cache [64].")]
KvStart = Annotated[int | None, typer.Option("--quantized-kv-start", help="Tokens after which it is quantized.")]
_ported = functools.partial(typer.Option, rich_help_panel="Options of the generated layout")
Dynamic = Annotated[bool, _ported("--dynamic/--no-dynamic", help="Other input sizes, where provable.")]
FoldBatchnorm = Annotated[bool, _ported("--fold-batchnorm", help="Multiply BatchNorm into the convolution before it.")]
Mlxfn = Annotated[bool, _ported("--mlxfn", help="Write model.mlxfn for C++ and Swift too.")]
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
