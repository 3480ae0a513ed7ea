"""The blocks of a model: its numbered modules that are in no other numbered one (``model.layers.3``)."""

from __future__ import annotations

import re
from collections.abc import Collection

import mlx.nn as nn

__all__ = ["block_number", "block_of", "blocks", "earlier_blocks", "is_block"]

_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


def block_of(path: str) -> str | None:
    """The path of the block that a module, or a tensor by its name, is in; None outside of blocks."""
    found = _NUMBER.search(path)
    return path[: found.end()] if found else None


def block_number(path: str) -> int | None:
    """The number of the block that a module is in, None outside of blocks."""
    found = _NUMBER.search(path)
    return int(found[1]) if found else None


def is_block(path: str) -> bool:
    """Whether a path is that of a block."""
    return block_of(path) == path


def earlier_blocks(block: str, modules: Collection[str]) -> list[str]:
    """The paths of those blocks of the same list that come before one, as far as there are such modules."""
    owner, _, number = block.rpartition(".")
    return [path for path in (f"{owner}.{place}" for place in range(int(number))) if path in modules]


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The blocks with their paths, one list of them after the other, in the order of their numbers."""
    found = [(path, module) for path, module in model.named_modules() if is_block(path)]
    return sorted(found, key=lambda item: (item[0].rpartition(".")[0], int(item[0].rpartition(".")[2])))
