"""Whether a captured program is right where a free size is 1: torch.export proves it from 2 on.

At 1 a module may do something else (``squeeze``, an ``if``). What it gives there is compared with what the program
gives; where the two differ, or the module takes no 1, the size starts at 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Interpreter, Node
from torch.utils import _pytree as pytree

from mlxport.graph.capture.example_values import values_like
from mlxport.graph.capture.trial_runs import TrialRuns
from mlxport.graph.lower.traits import traits_of

__all__ = ["agrees", "input_symbols", "lowest_sizes", "user_inputs"]

_SECONDS = 10.0  # for all sizes together


class _GraphRun(Interpreter):  # type: ignore[misc]
    """Runs a program's graph as it is, without what it asserts of sizes."""

    def run_node(self, n: Node) -> Any:
        """Compute one node."""
        return None if traits_of(n).check else super().run_node(n)


def user_inputs(program: ExportedProgram) -> list[Node | None]:
    """The placeholder of each leaf of the inputs; None for what is no tensor."""
    by_name = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    found = []
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            node = by_name.get(getattr(spec.arg, "name", ""))
            found.append(node if node is not None and isinstance(node.meta.get("val"), torch.Tensor) else None)
    return found


def input_symbols(nodes: Sequence[Node | None]) -> dict[sympy.Symbol, int]:
    """The free symbols of the inputs' sizes, in their order, and the example's values of them."""
    found: dict[sympy.Symbol, int] = {}
    for node in nodes:
        value = node.meta["val"] if node is not None else None
        for size in value.shape if isinstance(value, torch.Tensor) else ():
            if isinstance(size, torch.SymInt):
                environment = size.node.shape_env
                for symbol in sorted(size.node.expr.free_symbols, key=str):
                    hints = getattr(environment, "backed_var_to_val", None) or environment.var_to_val
                    if symbol in hints:
                        found[symbol] = int(hints[symbol])
    return found


@dataclass(frozen=True)
class _ProgramRuns:
    program: ExportedProgram
    runs: TrialRuns
    random: bool

    def agrees(self, args: Any, kwargs: Any, given: Sequence[Any] | None = None) -> bool:
        """Whether module and program give the same; ``given``: what the module gives, if it has run."""
        wanted = self.runs(args, kwargs) if given is None else given
        leaves = pytree.tree_leaves((args, kwargs))
        if not self._shaped(leaves, wanted):
            return False
        try:
            found = self._run(leaves)
        except Exception:  # a graph that was made for other sizes: whatever an op says of these
            return False
        pairs = [(a, b) for a, b in zip(found, wanted, strict=False) if isinstance(b, torch.Tensor)]
        return len(found) == len(wanted) and all(self._same(a, b) for a, b in pairs)

    def _shaped(self, leaves: Sequence[Any], wanted: Sequence[Any]) -> bool:
        """Whether the shapes that the program was proven to give are those of ``wanted``."""
        inputs = zip(user_inputs(self.program), leaves, strict=True)
        sizes = {
            size.node.expr: given
            for node, leaf in inputs
            if node is not None
            for size, given in zip(node.meta["val"].shape, leaf.shape, strict=True)
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol
        }
        outputs = _user_outputs(self.program, self.program.graph.output_node().args[0])
        for node, tensor in zip(outputs, wanted, strict=False):
            value = node.meta.get("val") if isinstance(node, Node) else None
            if not isinstance(value, torch.Tensor) or not isinstance(tensor, torch.Tensor):
                continue
            shape = [_valued(size.node.expr, sizes) if isinstance(size, torch.SymInt) else size for size in value.shape]
            known = all(size is not None for size in shape)  # a size that depends on data is none
            if len(shape) != tensor.ndim or (known and shape != list(tensor.shape)):
                return False
        return True

    def _run(self, leaves: Sequence[Any]) -> list[Any]:
        signature = self.program.graph_signature
        state = {**self.program.state_dict, **self.program.constants}
        rest = iter(leaves)
        # Every token or object besides tensors is handed on as torch.export holds it.
        inputs = [
            next(rest) if spec.kind is InputKind.USER_INPUT else state.get(spec.target)
            for spec in signature.input_specs
        ]
        with torch.no_grad():
            found = _GraphRun(self.program.graph_module).run(*inputs)
        return _user_outputs(self.program, found)

    def _same(self, found: Any, wanted: torch.Tensor) -> bool:
        if not isinstance(found, torch.Tensor) or found.shape != wanted.shape:
            return False
        if self.random or not wanted.numel():
            return True
        if not (wanted.is_floating_point() or wanted.is_complex()):
            return torch.equal(found.to(wanted.dtype), wanted)
        allowed = 1e-3 if wanted.dtype in (torch.float32, torch.float64, torch.complex64) else 5e-2
        finite = wanted[torch.isfinite(wanted)]
        scale = float(finite.abs().max()) if finite.numel() else 0.0
        return torch.allclose(found, wanted, rtol=allowed, atol=allowed * scale + 1e-6, equal_nan=True)


def _user_outputs(program: ExportedProgram, outputs: Any) -> list[Any]:
    """Of all that a program gives, what the module gives: the rest is what it writes."""
    kinds = [spec.kind for spec in program.graph_signature.output_specs]
    return [item for item, kind in zip(outputs, kinds, strict=True) if kind is OutputKind.USER_OUTPUT]


def _comparison(program: ExportedProgram, runs: TrialRuns) -> _ProgramRuns:
    kinds = [traits_of(node) for node in program.graph.nodes]
    drawn = [kind.name for kind in kinds if kind.random and not kind.name.startswith(("empty", "new_"))]
    return _ProgramRuns(program, runs, random=bool(drawn))


def agrees(program: ExportedProgram, runs: TrialRuns, args: Any, kwargs: Any, given: Sequence[Any]) -> bool:
    """Whether a program gives on inputs what the module gave on them."""
    return _comparison(program, runs).agrees(args, kwargs, given)


def lowest_sizes(program: ExportedProgram, runs: TrialRuns, args: Any, kwargs: Any, known: set[str]) -> dict[str, int]:
    """Symbol to the least size that is known to be right, where that is not 1.

    Args:
        program: The program.
        runs: Of the module.
        args: Positional inputs that were captured.
        kwargs: Keyword inputs that were captured.
        known: Symbols that have been compared at 1.
    """
    trials = _Trials(_comparison(program, runs), user_inputs(program), (args, kwargs))
    symbols = input_symbols(trials.nodes)
    lowest: dict[str, int] = {}
    for symbol, size in symbols.items():
        alike = frozenset(other for other, given in symbols.items() if given == size)  # of one batch, as like as not
        if str(symbol) not in known and not trials.right(frozenset([symbol])) and not trials.right(alike):
            lowest[str(symbol)] = 2
    return lowest


@dataclass
class _Trials:
    """Comparisons where some sizes are 1.

    Attributes:
        compared: What compares.
        nodes: The placeholder of each leaf of the inputs.
        inputs: (args, kwargs) that were captured.
        spent: Seconds so far.
    """

    compared: _ProgramRuns
    nodes: Sequence[Node | None]
    inputs: tuple[Any, Any]
    spent: float = 0.0
    found: dict[frozenset[sympy.Symbol], bool] = field(default_factory=dict)

    def right(self, ones: frozenset[sympy.Symbol]) -> bool:
        """Whether module and program give the same where these sizes are 1; not where time is up."""
        if ones not in self.found:
            self.spent += 2 * self.compared.runs.seconds
            self.found[ones] = self.spent < _SECONDS and self._agrees(ones)
        return self.found[ones]

    def _agrees(self, ones: frozenset[sympy.Symbol]) -> bool:
        leaves, spec = pytree.tree_flatten(self.inputs)
        shapes = [self._shape(node, leaf, ones) for node, leaf in zip(self.nodes, leaves, strict=True)]
        if any(shape is not None and None in shape for shape in shapes):
            return False
        generator = torch.Generator().manual_seed(2)
        given = [
            leaf if shape is None or shape == tuple(leaf.shape) else values_like(leaf, shape, generator, {})
            for leaf, shape in zip(leaves, shapes, strict=True)
        ]
        try:
            return self.compared.agrees(*pytree.tree_unflatten(given, spec))
        except Exception:  # the module takes no 1 there
            return False

    def _shape(self, node: Node | None, leaf: Any, ones: frozenset[sympy.Symbol]) -> Any:
        """The shape of a leaf where ``ones`` are 1, with None for a size that is none; None for what is no tensor."""
        if node is None or not isinstance(leaf, torch.Tensor):
            return None
        sizes = {**input_symbols(self.nodes), **dict.fromkeys(ones, 1)}
        return tuple(
            _valued(size.node.expr, sizes) if isinstance(size, torch.SymInt) else int(size)
            for size in node.meta["val"].shape
        )


def _valued(expr: sympy.Expr, sizes: Mapping[sympy.Symbol, int]) -> int | None:
    try:
        number = expr.subs(sizes)
    except ZeroDivisionError:
        return None
    return int(number) if number.is_Integer and number >= 0 else None  # an expression where a symbol is not known
