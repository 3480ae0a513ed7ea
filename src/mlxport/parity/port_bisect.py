"""Name the first module and the op at which a port leaves its original."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import torch
from mlx.utils import tree_flatten
from torch.fx import Graph, Interpreter, Node

from mlxport.graph.capture.examples import Example, output_arrays
from mlxport.graph.capture.export import export
from mlxport.graph.capture.origin import place
from mlxport.graph.lower.one_function import MissingOps, compile_source, flat_source, is_assertion
from mlxport.graph.write.port_weights import from_torch, to_mlx
from mlxport.parity.metrics import relative_error
from mlxport.parity.parity_report import Divergence
from mlxport.parity.recording import Array, Record, recording_mlx, recording_torch
from mlxport.quant.tolerances import PORTED

__all__ = ["first_divergence", "first_wrong_op", "wrong_weights"]


def first_divergence(
    ported: nn.Module,
    reference: Any,
    example: Example,
    *,
    dtype: str,
    expected: Mapping[str, mx.array] | None = None,
) -> Divergence | None:
    """The first module whose input agrees and whose output does not, with the op of it that is to blame.

    Args:
        ported: The port; its modules have the original's paths.
        reference: The original, computing in float32.
        example: Inputs of the call to follow.
        dtype: The port's main dtype.
        expected: What the port's weights should be, by path, where that is known.
    """
    limit = PORTED.get(dtype, PORTED["float32"]).module
    given = example.copied(torch.float32)
    with recording_torch(reference, lambda _: True) as theirs, torch.no_grad():
        reference(*given.args, **given.kwargs)
    with recording_mlx(ported, lambda _: True) as ours:
        try:
            mx.eval(output_arrays(ported(*to_mlx(example.args), **to_mlx(example.kwargs))))
        except Exception:  # the port stops half-way: what it recorded until then is what can be compared
            pass
    bad: tuple[Record, Record, float, float] | None = None
    for path, mine in ours.items():
        other = theirs.get(path)
        if other is None or (after := _error(mine.output, other.output)) is None or not after > limit:
            continue
        before = _error(mine.input, other.input)
        if before is None or before <= limit:
            bad = (mine, other, before or 0.0, after)
            break
        bad = bad or (mine, other, before, after)
    if bad is None:
        return _root(ported, reference, example, expected)
    mine, other, before, after = bad
    cause = _stored(ported, mine.path, expected) or _cause(reference, ported, mine.path, example)
    return Divergence(mine.path, other.path, mine.kind, other.kind, before, after, cause)


def _root(ported: nn.Module, reference: Any, example: Example, expected: Mapping[str, mx.array] | None) -> Divergence:
    """No inner module differs: what the root computes itself does."""
    cause = _stored(ported, "", expected) or _cause(reference, ported, "", example)
    return Divergence("model", "model", type(ported).__name__, type(reference).__name__, 0.0, float("inf"), cause)


def _stored(ported: nn.Module, path: str, expected: Mapping[str, mx.array] | None) -> str:
    """Which of a module's stored weights are not what the conversion makes them; empty if none."""
    prefix = f"{path}." if path else ""
    wrong = [name for name in wrong_weights(ported, expected or {}) if name.startswith(prefix)]
    return f"Stored weights differ from the original's: {', '.join(wrong[:4])}." if wrong else ""


def wrong_weights(ported: nn.Module, expected: Mapping[str, mx.array]) -> list[str]:
    """Paths of the port's weights that are not what the conversion makes them; quantized ones are not compared."""
    wrong = []
    arrays = dict(tree_flatten(ported.parameters()))
    for name in list(arrays):
        array, wanted = arrays.pop(name), expected.get(name)  # one that was read for this is not kept
        if wanted is None or array.dtype not in (wanted.dtype, mx.float32):
            continue
        if wanted.shape != array.shape:
            wrong.append(name)
        elif not bool(mx.allclose(array, wanted, rtol=1e-3, atol=1e-6, equal_nan=True)):
            wrong.append(name)
    return wrong


def _error(ours: Array | None, theirs: Array | None) -> float | None:
    """Relative error, whether or not the port has the channels last; None where the two cannot be compared."""
    if ours is None or theirs is None or ours.size != theirs.size:
        return None
    if ours.shape != theirs.shape and theirs.ndim > 2 and np.moveaxis(theirs, 1, -1).shape == ours.shape:
        theirs = np.moveaxis(theirs, 1, -1)
    error = relative_error(ours.reshape(theirs.shape), theirs)
    if ours.ndim > 2 and not error < 1e-3 and np.moveaxis(theirs, 1, -1).shape == ours.shape:
        return min(error, relative_error(ours, np.moveaxis(theirs, 1, -1)))
    return error


def _cause(reference: Any, ported: nn.Module, path: str, example: Example) -> str:
    module = reference.get_submodule(path) if path else reference
    differing = _wrong_weights(module, ported, path)
    if differing:
        return f"Its weights differ from the original's: {', '.join(differing[:4])}."
    calls = _inputs_of(reference, module, example)
    if calls is None:
        return "Its inputs could not be recorded."
    try:
        found = first_wrong_op(module, *calls)
    except Exception as error:  # torch.export on a part of the model, which may not be exportable by itself
        return f"Its ops could not be compared one by one ({type(error).__name__})."
    if found is None:
        return "Each of its ops alone computes the same: the emitted source or a fusion is to blame."
    op, where, error_ = found
    return f"First diverging op: {op}{f', called in {where}' if where else ''} (relative error {error_:.1e})."


def _wrong_weights(module: torch.nn.Module, ported: nn.Module, path: str) -> list[str]:
    """Own parameters that exist under the same name and shape on both sides and differ."""
    other: Any = ported
    for part in path.split(".") if path else ():
        other = other[int(part)] if isinstance(other, list) else getattr(other, part, None)
    if not isinstance(other, nn.Module) or "scales" in other:
        return []
    found = []
    for name, tensor in module.named_parameters(recurse=False):
        value = other.get(name)
        if isinstance(value, mx.array) and tuple(value.shape) == tuple(tensor.shape):
            ours, theirs = np.array(value.astype(mx.float32)), tensor.detach().float().numpy()
            if not relative_error(ours, theirs) < 2e-2:
                found.append(f"{path}.{name}" if path else name)
    return found


def _inputs_of(reference: Any, module: torch.nn.Module, example: Example) -> tuple[tuple[Any, ...], Any] | None:
    calls: list[tuple[tuple[Any, ...], Any]] = []

    def hook(_: Any, args: Any, kwargs: Any) -> None:
        calls.append((args, kwargs))

    given = example.copied(torch.float32)
    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with torch.no_grad():
            reference(*given.args, **given.kwargs)
    finally:
        handle.remove()
    return calls[0] if calls else None


def first_wrong_op(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str, str, float] | None:
    """The first op of ``module`` that computes something else in MLX from torch's own inputs to it.

    Returns:
        The op, the line of the user's model that calls it, the relative error; None if every op agrees.
    """
    program = export(module, args, kwargs)
    found: list[tuple[str, str, float]] = []

    class Follower(Interpreter):  # type: ignore[misc]
        def run_node(self, node: Node) -> Any:
            result = super().run_node(node)
            if not found and node.op == "call_function" and not is_assertion(node):
                error = _op_error(node, self.env, result)
                if error > 1e-3:
                    found.append((str(node.target), place(node), error))
            return result

    inputs = [leaf for leaf in _placeholders(program, args, kwargs)]
    with torch.no_grad():
        Follower(program.graph_module).run(*inputs)
    return found[0] if found else None


def _placeholders(program: torch.export.ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Values of the graph's placeholders: lifted weights, then the leaves of the inputs."""
    from torch.utils import _pytree as pytree

    signature = program.graph_signature
    lifted = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    values = {**program.state_dict, **program.constants}
    bound = inspect.signature(program.module(check_guards=False).forward)
    assert bound is not None
    leaves = iter(pytree.tree_leaves((args, kwargs)))
    return [
        values[lifted[node.name]] if node.name in lifted else next(leaves)
        for node in program.graph.nodes
        if node.op == "placeholder"
    ]


def _op_error(node: Node, values: dict[Node, Any], result: Any) -> float:
    """Relative error of one op on torch's inputs; 0 where it has nothing to compare or no lowering."""
    graph = Graph()
    copies: dict[Node, Node] = {}
    for source in node.all_input_nodes:
        copies[source] = graph.placeholder(source.name)
        copies[source].meta = dict(source.meta)
    if any(not isinstance(values[source], torch.Tensor) for source in copies):
        return 0.0
    made = graph.node_copy(node, lambda source: copies[source])
    made.meta = dict(node.meta)
    graph.output((made,))
    try:
        (got,) = compile_source(flat_source(graph))(*(from_torch(values[source]) for source in copies))
    except (MissingOps, TypeError):
        return 0.0
    pairs = zip(got, result, strict=False) if isinstance(result, tuple | list) else [(got, result)]
    worst = 0.0
    for ours, theirs in pairs:
        if isinstance(ours, mx.array) and isinstance(theirs, torch.Tensor) and theirs.numel():
            if tuple(ours.shape) != tuple(theirs.shape):
                return float("inf")
            a, b = np.array(ours.astype(mx.float32)), theirs.float().numpy()
            worst = max(worst, 0.0 if np.array_equal(a, b, equal_nan=True) else relative_error(a, b))
    return worst
