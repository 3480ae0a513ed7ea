"""Compute parts of a captured graph with torch: what a fusion claims is checked against what the graph computes.

Numbers are computed in float64 whatever their dtype in the graph, so that two formulas that are almost the same differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import sympy
import torch
from torch.fx import Node
from torch.fx.node import map_aggregate

from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.guards import SizeRule, size_rules
from mlxport.graph.lower.traits import filling, traits_of
from mlxport.graph.rewrite.graph_queries import shape

__all__ = ["CannotEvaluate", "Values", "close", "symbols"]

_WIDE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}


class CannotEvaluate(Exception):
    """A value depends on inputs, or on weights that are not there."""


def wide(item: Any) -> Any:
    """A tensor or dtype in double width; everything else as it is."""
    if isinstance(item, torch.Tensor):
        return item.to(_WIDE[item.dtype]) if item.dtype in _WIDE else item
    return _WIDE.get(item, item) if isinstance(item, torch.dtype) else item


def _is_filled(node: Node) -> bool:
    """Whether a node holds one number, no matter of whose sizes: integers or truth values, as masks are made of."""
    item = node.meta.get("val")
    return isinstance(item, torch.Tensor) and not item.dtype.is_floating_point and filling(node) is not None


def symbols(nodes: Iterable[Node]) -> set[sympy.Symbol]:
    """The symbols in the sizes of ``nodes``."""
    found: set[sympy.Symbol] = set()
    for node in nodes:
        item = node.meta.get("val")
        for size in item.shape if isinstance(item, torch.Tensor) else (item,):
            if isinstance(size, torch.SymInt | torch.SymFloat | torch.SymBool):
                found |= size.node.expr.free_symbols
    return found


class Values:
    """Evaluates nodes of one graph.

    Attributes:
        static: Nodes that depend on sizes, buffers and constants only, neither on inputs nor on trained parameters.
    """

    def __init__(self, captured: Captured, folds: dict[str, Any] | None = None) -> None:
        self.captured, self.folds = captured, {} if folds is None else folds
        self.static: set[Node] = set()
        self._constants: dict[Node, torch.Tensor | None] = {}
        self._symbols = sorted(symbols(captured.graph.nodes), key=str)
        for node in captured.graph.nodes:
            self.learn(node)

    def learn(self, node: Node) -> None:
        """Take note of a node that may be new."""
        if node.op == "placeholder":
            name = self.captured.weights.get(node)
            fixed = name is not None and not self._trained(name)
        else:
            fixed = node.op == "call_function" and all(item in self.static for item in node.all_input_nodes)
        if fixed or self._is_size(node) or _is_filled(node):
            self.static.add(node)

    def _trained(self, name: str) -> bool:
        fold = self.folds.get(name)
        names = (name,) if fold is None else fold.sources
        return any(item in self.captured.trainable for item in names)

    @staticmethod
    def _is_size(node: Node) -> bool:
        item = node.meta.get("val")
        if not isinstance(item, torch.SymInt | torch.SymBool | torch.SymFloat) or not node.args:
            return False
        return not traits_of(node).read and item.node.has_hint()  # data has none

    def constant(self, item: Any) -> torch.Tensor | None:
        """The value of a number or of a node that nothing can change; None for others."""
        if isinstance(item, bool | int | float):
            return torch.tensor(item, dtype=torch.float64)
        if not isinstance(item, Node) or item not in self.static:
            return None
        if item not in self._constants:
            self._constants[item] = None
            if isinstance(item.meta.get("val"), torch.Tensor) and not symbols([item]):
                try:
                    self._constants[item] = self.run([item], {}, {})[0]
                except CannotEvaluate:
                    pass
        return self._constants[item]

    def scalar(self, item: Any) -> float | None:
        """The one number that ``item`` is, or None."""
        found = self.constant(item)
        return float(found) if found is not None and found.numel() == 1 and not found.is_complex() else None

    def sizes(self) -> Iterator[dict[sympy.Symbol, int]]:
        """Sizes to try, one for each symbol of the graph: small ones, odd and even."""
        for choice in ((5, 7, 9, 11, 6, 8, 10, 12), (6, 10, 8, 12, 14, 9, 7, 11), (8, 16, 24, 32, 40, 48, 56, 64)):
            yield {
                symbol: self._rules[symbol].nearest(choice[index % len(choice)])
                for index, symbol in enumerate(self._symbols)
            }
            if not self._symbols:
                return

    def smallest(self) -> dict[sympy.Symbol, int]:
        """The least size that each symbol of the graph may have."""
        return {symbol: rule.low for symbol, rule in self._rules.items()}

    def fitting(self, symbol: sympy.Symbol, size: int) -> int:
        """The size of ``symbol`` nearest below ``size`` that it may have."""
        return self._rules[symbol].nearest(size)

    @cached_property
    def _rules(self) -> dict[sympy.Symbol, SizeRule]:
        return size_rules(self.captured, self._symbols)

    def random(self, node: Node, sizes: Mapping[sympy.Symbol, int], seed: int = 0, scale: float = 1.0) -> torch.Tensor:
        """Normal numbers in the shape of ``node``.

        Raises:
            CannotEvaluate: It has no such shape: of so few samples, say, there are no frames.
        """
        dims = [self.number(size, sizes) for size in shape(node)]
        if any(dim < 0 for dim in dims):
            raise CannotEvaluate(f"sizes {dims}")
        generator = torch.Generator().manual_seed(seed)
        dtype = torch.complex128 if node.meta["val"].is_complex() else torch.float64
        return torch.randn(dims, generator=generator, dtype=dtype) * scale

    @staticmethod
    def number(size: Any, sizes: Mapping[sympy.Symbol, int]) -> Any:
        """A size (or what is computed of sizes) as a number."""
        if isinstance(size, torch.SymInt | torch.SymFloat | torch.SymBool):
            try:
                number = size.node.expr.subs(sizes)
            except ZeroDivisionError as error:
                raise CannotEvaluate(f"size {size}") from error
            if not getattr(number, "is_number", True) and number not in (sympy.true, sympy.false):
                raise CannotEvaluate(f"size {size}")
            made = {torch.SymInt: int, torch.SymFloat: float, torch.SymBool: bool}[type(size)](number)
            return made
        return size

    def run(
        self,
        wanted: Iterable[Node],
        given: Mapping[Node, torch.Tensor],
        sizes: Mapping[sympy.Symbol, int],
        numbers: Mapping[int, int] | None = None,
    ) -> list[torch.Tensor]:
        """The values of ``wanted`` where ``given`` has the inputs; ``numbers`` replaces integers among arguments.

        Raises:
            CannotEvaluate: if a value is needed that is neither given nor constant, or if torch refuses these sizes.
        """
        known: dict[Node, Any] = {node: wide(item) for node, item in given.items()}

        def argument(item: Any) -> Any:
            if isinstance(item, Node):
                return known[item]
            if isinstance(item, torch.device):
                return torch.device("cpu")
            if numbers and type(item) in (int, float) and item in numbers:
                return type(item)(numbers[int(item)])
            return wide(item)

        for node in self._order(wanted, known):
            item = node.meta.get("val")
            if self._is_size(node):
                known[node] = self.number(item, sizes)
            elif _is_filled(node):
                dims = [self.number(size, sizes) for size in shape(node)]
                known[node] = torch.full(dims, filling(node), dtype=node.meta["val"].dtype)
            elif node.op == "placeholder":
                known[node] = wide(self._weight(node))
            elif node.op != "call_function" or traits_of(node).random:
                raise CannotEvaluate(node.name)
            else:
                # Copies have been taken out of the graph: what was a view need not be one here.
                target: Any = torch.ops.aten.reshape.default if traits_of(node).sized else node.target
                # Not by a function that calls itself: it would keep all values until the next collection of garbage.
                args, keywords = map_aggregate(node.args, argument), map_aggregate(node.kwargs, argument)
                try:
                    with torch.no_grad(), _wide_default():
                        known[node] = target(*args, **keywords)
                except (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError) as error:
                    raise CannotEvaluate(f"{node.name}: {error}") from error
        return [known[node] for node in wanted]

    def _order(self, wanted: Iterable[Node], known: Mapping[Node, Any]) -> list[Node]:
        order: dict[Node, None] = {}
        stack: list[tuple[Node, bool]] = [(node, False) for node in wanted]
        while stack:
            node, ready = stack.pop()
            if node in known or node in order:
                continue
            if ready or self._is_size(node) or _is_filled(node):
                order[node] = None
                continue
            if node.op == "placeholder" and node not in self.captured.weights:
                raise CannotEvaluate(f"{node.name} is an input")
            stack.append((node, True))
            stack.extend((item, False) for item in node.all_input_nodes)
        return list(order)

    def _weight(self, node: Node) -> torch.Tensor:
        name = self.captured.weights[node]
        tensor = self.captured.state.get(name)
        if name in self.folds:
            fold = self.folds[name]
            sources = [self.captured.state[source] for source in fold.sources]
            if not any(source.is_meta for source in sources):
                with torch.no_grad():
                    (tensor,) = torch.fx.Interpreter(torch.nn.Module(), graph=fold.graph).run(*sources)
        if tensor is None or tensor.is_meta:
            raise CannotEvaluate(f"the values of {name} are not known")
        return tensor


@contextmanager
def _wide_default() -> Iterator[None]:
    """For ops that make numbers without being told a dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-7) -> bool:
    """Whether two results are the same formula's."""
    if ours.shape != theirs.shape or not bool(torch.isfinite(theirs).all()):
        return False
    scale = float(theirs.abs().max()) if theirs.numel() else 0.0
    return bool((ours - theirs).abs().max() <= tolerance * scale) if theirs.numel() else True
