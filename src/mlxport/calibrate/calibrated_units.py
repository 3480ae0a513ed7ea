"""The parts of a model that are in memory one at a time: its blocks, and the matrices outside of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn

from mlxport.calibrate.sites import Recorder, Site
from mlxport.model.block_paths import block_of
from mlxport.model.hooks import Answer, answering
from mlxport.model.leaf_calls import MATRICES, LeafCalls, leaf_class

__all__ = ["Unit", "UnitCalls", "find_units", "hooked_classes"]


@dataclass(eq=False)
class Unit:
    """A block, a matrix outside of the blocks, or a table of embeddings.

    Attributes:
        path: Of the module.
        module: The module.
        leaf: Whether it is a matrix itself.
        table: Whether it is a table of embeddings, which may be the head too.
        sites: The matrices in it, by path.
        calls: How often the model calls it in one pass; of a table, as a head.
        seen: How often it was called so far.
        head: Whether nothing comes after it.
    """

    path: str
    module: Any
    leaf: bool = False
    table: bool = False
    sites: dict[str, Site] = field(default_factory=dict)
    calls: int = 0
    seen: int = 0
    head: bool = False


class UnitCalls(Protocol):
    """What the calls of units are handed to."""

    def enter(self, unit: Unit, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A unit is called; ``call`` computes it, for any part of what it is given."""

    def lookup(self, unit: Unit, ids: mx.array) -> mx.array:
        """Rows of a table."""


def find_units(model: nn.Module, recorder: Recorder, apart: Collection[str] = ()) -> list[Unit]:
    """The units of a model, with the matrices whose inputs ``recorder`` is to measure.

    Args:
        model: The model.
        recorder: What measures.
        apart: Matrices of blocks that are called from outside of these: each is a unit of its own.
    """
    units: dict[str, Unit] = {}
    known: set[int] = set()
    # named_modules goes depth first, so parents are sorted before what is in them by the length of their paths.
    for path, module in sorted(model.named_modules(), key=lambda item: item[0].count(".")):
        if id(module) in known:
            continue
        block, is_matrix = None if path in apart else block_of(path), type(module) in MATRICES
        is_table = block is None and type(module) is nn.Embedding
        if block == path or (block is None and is_matrix) or is_table:
            known.add(id(module))
            units[path] = Unit(path, module, leaf=block is None or is_matrix, table=type(module) is nn.Embedding)
        if (is_matrix or is_table) and (block or path) in units:
            known.add(id(module))
            unit = units[block or path]
            unit.sites[path] = Site(path, unit.path, module, recorder)
            recorder.sites.append(unit.sites[path])
    return list(units.values())


def hooked_classes(units: list[Unit], calls: UnitCalls) -> Iterator[tuple[Any, type]]:
    """Classes that make every unit hand its calls to ``calls``, and every matrix to its site."""
    for unit in units:
        inner = {id(site.module): leaf_class(site.module, site) for site in unit.sites.values() if not unit.table}
        yield from ((site.module, inner[id(site.module)]) for site in unit.sites.values() if not unit.table)
        if unit.table:
            yield unit.module, leaf_class(unit.module, _Table(unit, calls))
        else:
            yield unit.module, answering(inner.get(id(unit.module), type(unit.module)), _entering(unit, calls))


def _entering(unit: Unit, calls: UnitCalls) -> Answer:
    def answer(_: Any, __: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return calls.enter(unit, call, args, kwargs)

    return answer


@dataclass(frozen=True)
class _Table(LeafCalls):
    """The calls of a table of embeddings, which is not in memory."""

    unit: Unit
    calls: UnitCalls

    def lookup(self, ids: mx.array) -> mx.array:
        return self.calls.lookup(self.unit, ids)

    def linear(self, x: mx.array) -> mx.array:
        rows = self.unit.module.weight.shape[0]
        output: mx.array = self.calls.enter(self.unit, lambda x: mx.zeros((*x.shape[:-1], rows)), (x,), {})
        return output
