"""Open what is to be converted, or compared with: what cannot work is refused before anything is fetched."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlxport.convert.resolved_options import ResolvedOptions
from mlxport.errors import UnsupportedError, UsageError
from mlxport.layouts.left_out import left_out, refuse_left_out, refuse_whole
from mlxport.layouts.table import chosen, is_other_model, refuse_unknown_code, way_out
from mlxport.source import open_checkpoint
from mlxport.types import Checkpoint, ModelPart

if TYPE_CHECKING:
    from mlxport.layouts.base import Layout
    from mlxport.layouts.conversion import Conversion

__all__ = ["as_stored", "checking", "foreseeing", "need_reference", "next_step", "open_source", "parts_left_out"]


def open_source(
    source: str, options: ResolvedOptions, check_headers: Callable[[Checkpoint], None] | None = None
) -> Checkpoint:
    """The checkpoint, checked as far as its config tells.

    Args:
        source: A folder or a hub id.
        options: What was asked for.
        check_headers: Refuses what headers tell too, before weights are fetched; as of ``open_checkpoint``.

    Raises:
        MlxportError: It cannot be opened, or not be converted with these options.
    """
    return open_checkpoint(
        source,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
        check_config=checking(source, options),
        check_headers=check_headers,
    )


def checking(source: str, options: ResolvedOptions) -> Callable[[Mapping[str, Any]], None]:
    """Refuses, by a checkpoint's config, what cannot be converted with these options."""

    def check(config: Mapping[str, Any]) -> None:
        refuse_unknown_code(config, source, options.trust_remote_code)
        if options.limit is not None:
            options.limit.check(config)
        if options.text_only:
            layout = chosen(options.layout, config, cache=options.cache, text_only=True)
            refuse_whole(config, layout, f"{source}/config.json")
        if not os.path.isdir(os.path.expanduser(source)):  # of a folder, the layout checks it when it is opened
            layout = chosen(options.layout, config, cache=options.cache, text_only=options.text_only)
            replace(options, layout=layout.name)  # options that are not of this layout are refused
            with next_step(config, source):
                layout.check(config, f"{source}/config.json")

    return check


def foreseeing(options: ResolvedOptions) -> Callable[[Checkpoint], None]:
    """Refuses, by a checkpoint's headers, what would be refused once its weights are here."""

    def check(checkpoint: Checkpoint) -> None:
        layout = chosen(
            options.layout, checkpoint.config, checkpoint.tensors, cache=options.cache, text_only=options.text_only
        )
        if layout.foresees is not None:
            with next_step(checkpoint.config, checkpoint.location):
                parts_left_out(checkpoint, layout.foresees(checkpoint, options), options)

    return check


def as_stored(checkpoint: Checkpoint, layout: Layout, options: ResolvedOptions) -> tuple[Checkpoint, tuple[str, ...]]:
    """A GGUF checkpoint with the blocks that MLX has too as they are, unless it is to be quantized; what to say of it.

    Another checkpoint is itself.
    """
    if checkpoint.file is None:
        return checkpoint, ()
    from mlxport.source.gguf.mlx_groups import holds_blocks, in_mlx_groups

    if not holds_blocks(checkpoint):
        return checkpoint, ()
    if options.quant is not None or options.limit is not None:
        return checkpoint, ("the blocks of the GGUF file are quantized anew, which adds one error to another",)
    if not layout.keeps_groups:
        return checkpoint, (f"the blocks of the GGUF file come out as numbers: {layout.name} has no place for them",)
    grouped, said = in_mlx_groups(checkpoint)
    if options.dtype == "bfloat16" and grouped is not checkpoint:
        said += "; but their scales, to bfloat16 (--dtype float16 keeps them)"
    return grouped, (said,) if said else ()


def parts_left_out(checkpoint: Checkpoint, conversion: Conversion, options: ResolvedOptions) -> tuple[ModelPart, ...]:
    """The parts that are not in the output; refused unless that was asked for."""
    parts = left_out(checkpoint, conversion.program)
    if not options.text_only:
        refuse_left_out(parts, checkpoint.location)
    return parts


@contextmanager
def next_step(config: Mapping[str, Any], source: str) -> Iterator[None]:
    """Say what else can be done with a model that mlx-lm does not have, or would compute something else with."""
    try:
        yield
    except UnsupportedError as error:
        if isinstance(error.__cause__, UnsupportedError) and is_other_model(error) and is_other_model(error.__cause__):
            error.hint = way_out(config, source)
        raise


def need_reference(mode: str) -> None:
    """Refuse a verification that was asked for by name where there is no PyTorch to compare with."""
    from mlxport import parity

    if mode in ("full", "layerwise") and (reason := parity.unavailable()):
        raise UsageError(f"--verify {mode}: {reason}", hint="pip install 'mlxport[torch]', or use --verify none")
