"""What bringing an MLX folder back needs to know of it: which layout it has, and the original where that is at hand."""

from __future__ import annotations

from dataclasses import replace

from mlxport.convert.resolved_options import ResolvedOptions
from mlxport.errors import UnsupportedError, UsageError
from mlxport.layouts.table import layout_of
from mlxport.output.record import read_record
from mlxport.run.load import in_mlx_files
from mlxport.source import open_checkpoint
from mlxport.types import Checkpoint

__all__ = ["with_way_back"]


def with_way_back(options: ResolvedOptions, checkpoint: Checkpoint) -> ResolvedOptions:
    """The options with the layout of the source and its original.

    Raises:
        UsageError: The source is no MLX folder, or nothing says what its tensors are called in transformers.
        UnsupportedError: It is a folder of several models.
        MlxportError: The original cannot be opened.
    """
    from mlxport import parity

    if not in_mlx_files(checkpoint.weight_files):
        raise UsageError(
            f"{checkpoint.location} is not an MLX folder, so there is nothing to bring back",
            hint="--to hf takes what mlxport convert or mlx_lm.convert wrote",
        )
    made_by = layout_of(checkpoint.config, read_record(checkpoint.root))
    if made_by.verification == "parts":
        raise UnsupportedError(
            f"{checkpoint.location} holds parts of a model by themselves ({made_by.name}), which have no way back yet",
            hint="use the checkpoint that it was made from",
        )
    if options.against is None and (reason := parity.unavailable()):
        raise UsageError(
            f"--to hf asks transformers for the names of its tensors: {reason.removeprefix('not verified: ')}",
            hint="pip install 'mlxport[torch]', or add --against ORIGINAL --verify none",
        )
    original = None
    if options.against is not None:
        original = open_checkpoint(options.against, trust_remote_code=options.trust_remote_code)
    return replace(options, made_by=made_by, original=original)
