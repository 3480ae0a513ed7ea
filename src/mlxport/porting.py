"""Port a PyTorch module to MLX in memory: capture, emit, load the weights, compare with the original."""

from __future__ import annotations

import linecache
import sys
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlxport.errors import UnsupportedError, UsageError, VerificationError

if TYPE_CHECKING:
    import torch

    from mlxport.graph.build import Port
    from mlxport.graph.lower import Missing

__all__ = ["port"]

# Largest difference from torch, relative to the output's scale, that a float32 port may have.
_TOLERANCE = 1e-4
_count = 0


def port(
    module: torch.nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: bool | Any = True,
    verify: bool = True,
) -> nn.Module:
    """An ``mlx.nn.Module`` that computes what ``module`` computes, weights in it, called as the original is.

    Args:
        module: The PyTorch module, in eval mode; its weights are copied.
        args: Example positional inputs: torch tensors, nested structures of them, None, numbers and flags. What is not
            a tensor is fixed in the port.
        kwargs: Example keyword inputs.
        dynamic: True: sizes of the inputs may change wherever torch.export proves that they can; False: the example's
            sizes only; otherwise ``dynamic_shapes`` as ``torch.export.export`` takes them.
        verify: Compare the outputs on the example inputs with the original's.

    Returns:
        The port. ``port.source`` is the Python source that it runs, which needs nothing but mlx.

    Raises:
        UnsupportedError: for ops that have no lowering, all of them at once, with the lines that call them.
        UsageError: if ``args`` do not fit the module's forward.
        VerificationError: if an output differs from the original's.
    """
    try:
        import torch
    except ImportError as error:
        raise UsageError("port needs PyTorch, which is not installed", hint="pip install 'mlxport[torch]'") from error

    from mlxport.graph.build import build
    from mlxport.graph.capture import capture
    from mlxport.graph.flat import MissingOps

    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"port: expected a torch.nn.Module, got {type(module).__name__}")
    given = dict(kwargs or {})
    captured = capture(module, tuple(args), given, dynamic=dynamic)
    try:
        result = build(captured)
    except MissingOps as error:
        raise _missing(error.missing) from None
    ported = _instance(result)
    if verify:
        _verify(module, ported, tuple(args), given)
    return ported


def _missing(missing: tuple[Missing, ...]) -> UnsupportedError:
    from mlxport.graph.origin import place
    from mlxport.graph.tree import module_path

    lines = []
    for item in missing:
        node = item.nodes[0]
        count = f"{len(item.nodes)} times" if len(item.nodes) > 1 else "once"
        where = module_path(node) or "the root module"
        reason = f": {item.reason}" if item.reason else ""
        lines.append(f"  {item.key}{reason} ({count}; first in {where}, {place(node) or 'unknown line'})")
    hint = 'say how MLX computes it: @mlxport.register_op("namespace::op") above a function on mx.arrays'
    return UnsupportedError("no MLX lowering for:\n" + "\n".join(lines), hint=hint)


def _instance(result: Port) -> nn.Module:
    """Execute the source and fill the model with weights made from the captured module's tensors."""
    global _count
    _count += 1
    name = f"mlxport_port_{_count}"
    file = f"<{name}>"
    namespace = types.ModuleType(name)
    sys.modules[name] = namespace
    namespace.__file__ = __file__
    linecache.cache[file] = (len(result.source), None, result.source.splitlines(keepends=True), file)
    exec(compile(result.source, file, "exec"), namespace.__dict__)
    model: nn.Module = namespace.Model(namespace.ModelArgs())
    weights = make_weights(result)
    expected = dict(tree_flatten(model.parameters()))
    if missing := sorted(set(expected) ^ set(weights)):
        raise AssertionError(f"the emitted model and its weights differ in {missing}")
    model.load_weights(list(weights.items()))
    object.__setattr__(model, "source", result.source)
    return model.eval()


def make_weights(result: Port) -> dict[str, mx.array]:
    """The port's parameters by path, from the captured module's tensors."""
    state = {name: from_torch(tensor) for name, tensor in result.captured.state.items()}
    for name, fold in result.folds.items():
        state[name] = _folded(fold, state)
    return {
        path: _transformed([state[source] for source in weight.sources], weight.op, weight.args)
        for path, weight in result.weights.items()
    }


def _folded(fold: Any, state: Mapping[str, mx.array]) -> mx.array:
    from mlxport.graph.flat import compile_source, flat_source

    (value,) = compile_source(flat_source(fold.graph))(*(state[source] for source in fold.sources))
    result: mx.array = value
    return result


def _transformed(sources: list[mx.array], op: str, args: tuple[int, ...]) -> mx.array:
    """A weight in the form that its MLX layer has; see ``graph.layers.Weight``."""
    first = sources[0]
    match op:
        case "":
            return first
        case "move":
            return mx.contiguous(mx.moveaxis(first, *args))
        case "add":
            return sources[0] + sources[1]
        case "tail":
            return first[-args[0] :]
        case "gru_bias":  # the candidate's recurrent bias stays apart: it is inside of the reset gate
            gates = args[0]
            return mx.concatenate([sources[0][:gates] + sources[1][:gates], sources[0][gates:]])
    raise AssertionError(f"unknown transformation {op!r}")


def from_torch(tensor: torch.Tensor) -> mx.array:
    """A torch tensor as an MLX array; float64 becomes float32, complex128 complex64."""
    import torch

    tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if tensor.dtype is torch.bfloat16:
        return mx.array(tensor.view(torch.uint16).numpy()).view(mx.bfloat16)
    if tensor.dtype in (torch.float64, torch.complex128):
        tensor = tensor.to(torch.float32 if tensor.dtype is torch.float64 else torch.complex64)
    return mx.array(tensor.numpy())


def to_mlx(value: Any) -> Any:
    """``value`` with every torch tensor in it as an MLX array."""
    import torch
    from torch.utils import _pytree as pytree

    return pytree.tree_map(lambda item: from_torch(item) if isinstance(item, torch.Tensor) else item, value)


def _verify(module: torch.nn.Module, ported: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    import torch
    from torch.utils import _pytree as pytree

    with torch.no_grad():
        wanted = [leaf for leaf in pytree.tree_leaves(module(*args, **kwargs)) if isinstance(leaf, torch.Tensor)]
    got = [leaf for leaf in pytree.tree_leaves(ported(*to_mlx(args), **to_mlx(kwargs))) if isinstance(leaf, mx.array)]
    if len(got) != len(wanted):
        raise VerificationError(f"the port gives {len(got)} arrays, the original {len(wanted)}")
    for index, (ours, theirs) in enumerate(zip(got, wanted, strict=True)):
        reference = from_torch(theirs)
        if ours.shape != reference.shape or ours.dtype != reference.dtype:
            found = f"{ours.shape} {ours.dtype}, the original's {reference.shape} {reference.dtype}"
            raise VerificationError(f"output {index} of the port is {found}")
        limit = _TOLERANCE if reference.dtype == mx.float32 else 3e-2
        error = _difference(ours, reference)
        if not error <= limit:
            raise VerificationError(
                f"output {index} of the port differs from torch by {error:.1e} of its scale, over {limit:.0e}",
                hint="please report it with the module; verify=False gives the port as it is",
            )


def _difference(ours: mx.array, theirs: mx.array) -> float:
    """Largest absolute difference, relative to the largest finite value; equal infinities and NaNs do not count."""
    if theirs.size == 0:
        return 0.0
    if theirs.dtype == mx.complex64:
        return max(_difference(ours.real, theirs.real), _difference(ours.imag, theirs.imag))
    a, b = ours.astype(mx.float32), theirs.astype(mx.float32)
    same = (a == b) | (mx.isnan(a) & mx.isnan(b))
    scale = mx.where(mx.isfinite(b), mx.abs(b), 0).max()
    error: Any = (mx.where(same, 0, mx.abs(a - b)).max() / mx.maximum(scale, 1e-6)).item()
    return float(error)
