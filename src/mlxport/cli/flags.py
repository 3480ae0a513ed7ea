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
