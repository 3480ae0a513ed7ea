"""Open what is to be converted, or compared with: what cannot work is refused before anything is fetched."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from mlxport.convert.resolved_options import ResolvedOptions
from mlxport.errors import UnsupportedError, UsageError
from mlxport.layouts.left_out import refuse_whole
from mlxport.layouts.table import chosen, refuse_unknown_code, way_out
from mlxport.source import open_checkpoint
from mlxport.types import Checkpoint

__all__ = ["need_reference", "next_step", "open_source"]


def open_source(source: str, options: ResolvedOptions) -> Checkpoint:
    """The checkpoint, checked as far as its config tells.

    Raises:
        MlxportError: It cannot be opened, or not be converted with these options.
    """

    def check(config: Mapping[str, Any]) -> None:
        refuse_unknown_code(config, source, options.trust_remote_code)
        if options.limit is not None:
            options.limit.check(config)
        if options.text_only:
            refuse_whole(config, chosen(options.layout, config), f"{source}/config.json")
        if not os.path.isdir(os.path.expanduser(source)):  # of a folder, the layout checks it when it is opened
            layout = chosen(options.layout, config)
            replace(options, layout=layout.name)  # options that are not of this layout are refused
            with next_step(config, source):
                layout.check(config, f"{source}/config.json")

    return open_checkpoint(
        source, revision=options.revision, trust_remote_code=options.trust_remote_code, check_config=check
    )


@contextmanager
def next_step(config: Mapping[str, Any], source: str) -> Iterator[None]:
    """Say what else can be done with a model that mlx-lm does not have, or would compute something else with."""
    try:
        yield
    except UnsupportedError as error:
        from mlxport.layouts.mlx_lm.rope_settings import REFUSED

        if isinstance(error.__cause__, UnsupportedError) and error.hint == error.__cause__.hint == REFUSED:
            error.hint = way_out(config, source)
        raise


def need_reference(mode: str) -> None:
    """Refuse a verification that was asked for by name where there is no PyTorch to compare with."""
    from mlxport import parity

    if mode in ("full", "layerwise") and (reason := parity.unavailable()):
        raise UsageError(f"--verify {mode}: {reason}", hint="pip install 'mlxport[torch]', or use --verify none")
