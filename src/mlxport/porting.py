"""Port a PyTorch module to MLX in memory: capture, emit, load the weights, compare with the original."""

from __future__ import annotations

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
    from mlxport.graph.execute import execute

    namespace = execute(result.source)
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
    from mlxport.graph.weights import apply_fold, apply_weight, from_torch

    state = {name: from_torch(tensor) for name, tensor in result.captured.state.items()}
    for name, fold in result.folds.items():
        state[name] = apply_fold(fold, [state[source] for source in fold.sources])
    return {
        path: apply_weight(weight, [state[source] for source in weight.sources])
        for path, weight in result.weights.items()
    }


def _verify(module: torch.nn.Module, ported: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    import torch
    from torch.utils import _pytree as pytree

    from mlxport.graph.weights import from_torch, to_mlx

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
