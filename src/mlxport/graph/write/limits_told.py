"""What is said of the tables that a port looks up: in the docstring of its class, and in what is printed of it."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.capture.table_limits import SizeLimit, ValueLimit
from mlxport.graph.lower import symbolic_sizes

__all__ = ["lengths_told", "limits_told", "size_places"]


def size_places(names: Mapping[Node, str]) -> dict[Any, str]:
    """Where each size of the inputs stands: ``x.shape[1]``."""
    places: dict[Any, str] = {}
    for node, name in names.items():
        value = node.meta["val"]
        for axis, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
            if isinstance(size, torch.SymInt):
                places.setdefault(size.node.expr, f"{name}.shape[{axis}]")
    return places


def limits_told(sizes: Sequence[SizeLimit], values: Sequence[ValueLimit], names: Mapping[Node, str]) -> list[str]:
    """A sentence for each limit of the inputs.

    Args:
        sizes: Limits of sizes, which the port checks.
        values: Limits of values, which it does not.
        names: What the inputs are called.
    """
    places = size_places(names)
    told = []
    for size in sizes:
        counted = ast.unparse(ast.fix_missing_locations(symbolic_sizes.written(size.counted, places)))
        told.append(f"{counted} is at most {size.most}{_table(size.table, ', by the rows of ')}.")
    least: dict[tuple[Node, bool], ValueLimit] = {}
    for value in values:
        known = least.setdefault((value.source, value.itself), value)
        least[value.source, value.itself] = min(known, value, key=lambda item: item.rows)
    for value in least.values():
        what = f"{'Values of' if value.itself else 'Places computed from'} {names[value.source]}"
        told.append(f"{what} must be below {value.rows}{_table(value.table, ', the rows of ')} (not checked).")
    return told


def lengths_told(sizes: Sequence[SizeLimit]) -> list[str]:
    """A sentence for each limit of a step of generation: how many tokens there may be, those before included."""
    told = {}
    for size in sizes:
        further = size.counted.subs(dict.fromkeys(size.counted.free_symbols, 0))
        most = size.most - int(further) if further.is_Integer else size.most
        told[most] = (
            f"Prompt and answer have at most {most} tokens{_table(size.table, ', by the rows of ')} (not checked)."
        )
    return [told[min(told)]] if told else []


def _table(name: str, before: str) -> str:
    return before + name if name else ""
