"""Run a model on all sequences at once, block by block: what a block does with them is for the caller to say.

mlx-lm's own model does everything between its blocks: embeddings, masks, rotary tables. Whenever it calls a block, a
visitor answers instead, so that only this block's weights need to be in memory, and only hidden states in between.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxport.errors import UnsupportedError
from mlxport.model.block_paths import blocks
from mlxport.model.both_texts import has_encoder, source_size, written_size
from mlxport.model.hooks import hooked, map_arrays

__all__ = ["BlockCall", "head", "walk"]


class _Stopped(Exception):
    """The last block was visited."""


@dataclass(frozen=True)
class BlockCall:
    """One call of a block by its model.

    Attributes:
        number: The block's place.
        path: Its path.
        block: What the block computes.
        hidden: Hidden states of all sequences, [sequences, tokens, size].
        args: Its other positional arguments.
        kwargs: Its keyword arguments.
    """

    number: int
    path: str
    block: Callable[..., Any]
    hidden: mx.array
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, block: Callable[..., Any], hidden: mx.array, rows: mx.array | slice) -> mx.array:
        """What a block, this or its quantized twin, makes of the hidden states of some sequences."""
        count = self.hidden.shape[0]

        def cut(array: mx.array) -> mx.array:
            return array[rows] if array.ndim and array.shape[0] == count else array

        args, kwargs = map_arrays((self.args, self.kwargs), cut)
        output = block(hidden, *args, **kwargs)
        if not isinstance(output, mx.array) or output.shape != hidden.shape:
            raise UnsupportedError(
                f"{self.path} does not map hidden states to hidden states: it cannot be distilled by itself",
                hint="leave out --distill, or convert on a machine whose memory holds the whole model",
            )
        return output


Visit = Callable[[BlockCall], mx.array]


def walk(model: nn.Module, ids: mx.array, visit: Visit, last: int | None = None) -> None:
    """Run a model up to and with its last block.

    Args:
        model: mlx-lm's; what is outside of its blocks must be in memory.
        ids: All sequences, [sequences, tokens].
        visit: Gives the output of a call.
        last: How many calls precede the last that is visited; by default all blocks are.
    """
    found = blocks(model)
    paths = {id(module): path for path, module in found}
    seen: set[int] = set()
    rows, length = ids.shape
    shapes = [(rows, source_size(length)), (rows, written_size(model, length))] if has_encoder(model) else [ids.shape]

    def answer(module: Any, _: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        path, number = paths[id(module)], len(seen)
        hidden = args[0] if args else None
        if id(module) in seen or not isinstance(hidden, mx.array) or hidden.shape[:2] not in shapes:
            raise UnsupportedError(
                f"{path} is not called once, with the hidden states: this model cannot be distilled in parts",
                hint="leave out --distill, or convert on a machine whose memory holds the whole model",
            )
        seen.add(id(module))
        output = visit(BlockCall(number, path, call, hidden, args[1:], kwargs))
        if number == (len(found) - 1 if last is None else last):
            raise _Stopped
        return output

    with hooked([module for _, module in found], answer), contextlib.suppress(_Stopped):
        model(ids)


def head(model: nn.Module, ids: mx.array, hidden: mx.array) -> mx.array:
    """Logits of the hidden states after the last block, by what comes after the blocks.

    Args:
        model: mlx-lm's; what is outside of its blocks must be in memory.
        ids: Some sequences.
        hidden: Their hidden states.
    """

    def answer(module: Any, _: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # an encoder reads another number of tokens, or what it gives is not looked at
        return hidden if args[0].shape == hidden.shape else args[0]

    with hooked([module for _, module in blocks(model)], answer):
        output: Any = model(ids)
    return getattr(output, "logits", output)  # type: ignore[no-any-return]
