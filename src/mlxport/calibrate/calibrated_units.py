"""The parts of a model that are in memory one at a time: its blocks, and the matrices outside of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn

from mlxport.calibrate.leaves import LEAVES, Recorder, Site

__all__ = ["Unit", "find_units", "hook_units"]

_NUMBERED = re.compile(r"(?:^|\.)\d+(?=\.|$)")


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


class _Runner(Protocol):
    def enter(self, unit: Unit, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...

    def lookup(self, unit: Unit, ids: mx.array) -> mx.array: ...


def find_units(model: nn.Module, recorder: Recorder) -> list[Unit]:
    """The units of a model; their matrices are made to show their inputs to ``recorder``."""
    units: dict[str, Unit] = {}
    known: set[int] = set()
    # named_modules goes depth first, so parents are sorted before what is in them by the length of their paths.
    for path, module in sorted(model.named_modules(), key=lambda item: item[0].count(".")):
        if id(module) in known:
            continue
        match = _NUMBERED.search(path)
        block = path[: match.end()] if match else None
        is_matrix = type(module) in LEAVES
        if block == path or (block is None and (is_matrix or type(module) is nn.Embedding)):
            known.add(id(module))
            units[path] = Unit(path, module, leaf=block is None or is_matrix, table=type(module) is nn.Embedding)
        if (is_matrix or (block is None and type(module) is nn.Embedding)) and (block or path) in units:
            known.add(id(module))
            _watch(units[block or path], path, module, recorder)
    return list(units.values())


def _watch(unit: Unit, path: str, module: Any, recorder: Recorder) -> None:
    site = Site(path, unit.path, module, recorder)
    unit.sites[path] = site
    recorder.sites.append(site)
    if type(module) in LEAVES:
        module.__class__ = LEAVES[type(module)]
        object.__setattr__(module, "_site", site)


def hook_units(units: list[Unit], runner: _Runner) -> None:
    """Make every unit hand its calls to ``runner``."""
    for unit in units:
        _hook_table(unit, runner) if unit.table else _hook(unit, runner)


def _hook(unit: Unit, runner: _Runner) -> None:
    base: Any = type(unit.module)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return runner.enter(unit, lambda *a, **k: base.__call__(self, *a, **k), args, kwargs)

    unit.module.__class__ = type(base.__name__, (base,), {"__call__": call})


def _hook_table(unit: Unit, runner: _Runner) -> None:
    base: Any = type(unit.module)

    def lookup(self: Any, ids: mx.array) -> mx.array:
        return runner.lookup(unit, ids)

    def as_linear(self: Any, x: mx.array) -> Any:
        rows = self.weight.shape[0]
        return runner.enter(unit, lambda x: mx.zeros((*x.shape[:-1], rows)), (x,), {})

    unit.module.__class__ = type(base.__name__, (base,), {"__call__": lookup, "as_linear": as_linear})
